"""Help: one page with the options of a command that people use most; `--help all` has every option."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

# Text files, so that help is there before torch and TRL are imported. A test compares them with the parsers.
PAGES = {path.stem: path for path in Path(__file__).parent.glob("*.txt")}


def asks_for_help(argv: Sequence[str]) -> bool:
    return "--help" in argv or "-h" in argv


def short_help(command: str, argv: Sequence[str]) -> str | None:
    """The page about a command; None where the words do not ask for it, or the command's parser has what they ask for.

    Args:
        argv: the words behind the command.
    """
    asked = [following for word, following in pairwise([*argv, ""]) if asks_for_help([word])]
    # Two evaluations are compared by a command of its own, whose options are few.
    if command not in PAGES or not asked or "all" in asked or "--compare" in argv:
        return None
    return PAGES[command].read_text(encoding="utf-8")
