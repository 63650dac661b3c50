"""Where the answer of a completion stands: string work only, in time linear in the text."""

import re
from collections import deque

MOST_CHARACTERS = 32_768
_MARKERS = re.compile(r"\\boxed\s*\{|<answer>|^[ \t]*(?:\*\*)?Answer:(?:\*\*)?", re.MULTILINE)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ENUMERATION = re.compile(r"(?:[\s$,;]|\\[()\[\],; ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|and|or)*")


class GoldError(ValueError):
    """The gold answer cannot be read; the message goes on after "'solution' is '…': "."""


def shortened(text: str) -> str:
    """What is read of a completion: its last 32,768 characters, or as many from shortly before its last `\\boxed`.

    The answer stands at the end. Megabytes must not reach regular expressions.
    """
    if len(text) <= MOST_CHARACTERS:
        return text
    start = len(text) - MOST_CHARACTERS
    box = text.rfind("\\boxed")
    if 0 <= box < start:
        start = max(box - 100, 0)
    return text[start : start + MOST_CHARACTERS]


def find_answer(text: str) -> str | None:
    """The last of `\\boxed{…}`, `<answer>…</answer>` and `Answer: …` (to the end of its line); None if there is none.

    An empty one, or one that is never closed, is none.
    """
    found = next(iter(deque(_MARKERS.finditer(text), maxlen=1)), None)
    if found is None:
        return None
    rest = text[found.end() :]
    if found[0].startswith("<"):
        answer, closed, _ = rest.partition("</answer>")
        return (answer.strip() or None) if closed else None
    if not found[0].startswith("\\"):
        return rest.split("\n", 1)[0].strip() or None
    end = _closing(rest)
    return None if end is None else rest[:end].strip() or None


def around_last_boxes(text: str) -> str:
    """The text from the paragraph of its last box, or of the enumeration of boxes that ends with it, on.

    What stands before cannot matter and takes most of the time: formulas do not span a blank line. In that paragraph
    `\\boxed` is struck out before them, because math-verify takes boxes with ten characters or a comma between them for
    answers of one set, even in `\\boxed{3}, no, \\boxed{4}`. Here they are one when nothing stands between them but
    commas, "and", "or". Text without a box is left as it is.
    """
    boxes = [match.span() for match in _BOX.finditer(text)]
    if not boxes:
        return text
    first = len(boxes) - 1
    while first > 0:
        _, opened = boxes[first - 1]
        content = text[opened : boxes[first][0]]
        end = _closing(content)
        if end is None or not _ENUMERATION.fullmatch(content, end + 1):
            break
        first -= 1
    start = boxes[first][0]
    paragraph = text.rfind("\n\n", 0, start) + 1
    return _BOX.sub("{", text[paragraph:start]) + text[start:]


def _closing(text: str) -> int | None:
    """Where the brace closes that was opened before the text; None when it does not."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
