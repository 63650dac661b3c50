"""The page about reliability says what its commands printed."""

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "reliability.md"


def plain(text):
    return " ".join(re.sub(r"[*`>]", "", text).split())


@pytest.mark.parametrize("path", sorted((DOCS / "reliability").glob("*.json")), ids=lambda path: path.stem)
def test_what_a_command_printed_stands_there(path):
    said = json.loads(path.read_text())["said"]
    assert said
    for sentence in said:
        assert plain(sentence) in plain(PAGE.read_text())


def test_every_count_on_the_page_was_printed():
    """Quoted lines, and only these, have results."""
    printed = {
        plain(said) for path in (DOCS / "reliability").glob("*.json") for said in json.loads(path.read_text())["said"]
    }
    quoted = {plain(line.removeprefix(">")) for line in PAGE.read_text().splitlines() if line.startswith("> ")}
    assert quoted == printed
