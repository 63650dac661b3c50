"""What differs between two texts, word by word. Pure."""

import re
from difflib import SequenceMatcher
from typing import NamedTuple


class Piece(NamedTuple):
    """A stretch of a text.

    Args:
        is_new: whether the other text has nothing like it in its place.
    """

    text: str
    is_new: bool


def differences(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces that, put together, are the text again."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    matching = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, a, b, c, d in matching:
        for side, words in ((sides[0], old[a:b]), (sides[1], new[c:d])):
            if words:
                side.append(Piece("".join(words), tag != "equal"))
    return sides
