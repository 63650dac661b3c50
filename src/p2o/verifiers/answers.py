"""Where the answer of a completion stands: string work only, in time linear in the text."""

import re
from collections import deque
from typing import Any

from p2o.thoughts import MARKED, ThoughtReading, without_thoughts

MOST_CHARACTERS = 32_768
_MARKERS = re.compile(
    r"\\(?:boxed|fbox)\s*\{|<(?i:answer)>|^[ \t]*(?:\*\*)?(?:Final [Aa]nswer|Answer)(?:\*\*)?:(?:\*\*)?", re.MULTILINE
)
_CLOSING_TAG = re.compile(r"</answer>", re.IGNORECASE)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_UNBRACED = re.compile(r"\\(boxed|fbox)[ \t]+([^\s{}$\\][^\s{}$\\]{0,39}?)(?=[.,;]?(?:[\s$]|\\[)\]]|$))")
_STATED = re.compile(r"(?i:\banswer(?:\s+is)?):?\s+(\S[^\n]*?)[.\s]*$")
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


def answer_part(text: str, reading: ThoughtReading = MARKED, prompt: Any = None) -> str:
    """What stands outside of thoughts ([`p2o.thoughts.without_thoughts`]); an answer that only stands in one is none.

    But for one: the box of a thought that the text behind it ends by naming as the answer.

    Args:
        prompt: of the completion, which may open a thought itself; None where it is not known.
    """
    if reading.kept:
        return text
    outside = without_thoughts(text, begins_inside=reading.begins_inside(prompt))
    if outside == text or _BOX.search(outside):
        return outside
    return outside + _restated(last_boxes(text), outside)


def _restated(boxed: str | None, outside: str) -> str:
    """The box of a thought, if the text ends with "the answer is" and just that."""
    if boxed is None or not (match := _STATED.search(outside[-200:])):
        return ""
    return f" \\boxed{{{boxed}}}" if match[1].strip("$*") == boxed else ""


def _braced(text: str) -> str:
    r"""With braces around what a box holds without: `\\boxed 42` is meant to box all of 42."""
    return _UNBRACED.sub(r"\\\1{\2}", text) if _UNBRACED.search(text) else text


def find_answer(text: str) -> str | None:
    """The last of `\\boxed{…}`, `<answer>…</answer>` and `Answer: …` or `Final answer: …` (to the end of its
    line); None if there is none.

    An empty one, or one that is never closed, is none.
    """
    text = _braced(text)
    found = next(iter(deque(_MARKERS.finditer(text), maxlen=1)), None)
    if found is None:
        return None
    rest = text[found.end() :]
    if found[0].startswith("<"):
        closed = _CLOSING_TAG.search(rest)
        return (rest[: closed.start()].strip() or None) if closed else None
    if not found[0].startswith("\\"):
        return rest.split("\n", 1)[0].strip() or None
    end = _closing(rest)
    return None if end is None else rest[:end].strip() or None


def last_boxes(text: str) -> str | None:
    """What the last box holds, or the enumeration of boxes that ends with it, joined by commas; None without one."""
    boxes = [match.span() for match in _BOX.finditer(text)]
    found: list[str] = []
    for index in range(_first_of_last(text, boxes), len(boxes)):
        content = text[boxes[index][1] :]
        end = _closing(content)
        if end is None:
            return None
        if not found or found[-1] != content[:end].strip():
            found.append(content[:end].strip())
    return ", ".join(found) or None


def gold_answer(solution: str) -> str | None:
    """The answer in a gold text: what GSM8K writes behind `####`, the last box, or the text itself if it is bare.

    None where it stands among words and formulas, and math-verify has to search for it.
    """
    text = solution.strip()
    if "####" in text:
        last = text.rpartition("####")[2].strip()
        if last and "\n" not in last:
            return last
    if (boxed := last_boxes(text)) is not None:
        return boxed
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
            return inner.strip() if not inner.endswith("\\") else text
    searched = len(re.findall(r"(?<!\\)\$", text)) > 1 or re.search(r"\\\(|\\\[|(?i:\banswer\b)|\n", text)
    return None if searched else text


def around_last_boxes(text: str) -> str:
    """The text from the paragraph of its last box, or of the enumeration of boxes that ends with it, on.

    What stands before cannot matter and takes most of the time: formulas do not span a blank line. In that paragraph
    `\\boxed` is struck out before them, because math-verify takes boxes with ten characters or a comma between them for
    answers of one set, even in `\\boxed{3}, no, \\boxed{4}`. Here they are one when nothing stands between them but
    commas, "and", "or". Text without a box is left as it is.
    """
    text = _braced(text)
    boxes = [match.span() for match in _BOX.finditer(text)]
    if not boxes:
        return text
    start = boxes[_first_of_last(text, boxes)][0]
    paragraph = text.rfind("\n\n", 0, start) + 1
    # math-verify reads neither `\boxed {` nor a lone `\fbox{`.
    return _BOX.sub("{", text[paragraph:start]) + _BOX.sub(r"\\boxed{", text[start:])


def _first_of_last(text: str, boxes: list[tuple[int, int]]) -> int:
    """Which box begins the enumeration of boxes that ends with the last one."""
    first = max(len(boxes) - 1, 0)
    while first > 0:
        _, opened = boxes[first - 1]
        content = text[opened : boxes[first][0]]
        end = _closing(content)
        if end is None or not _ENUMERATION.fullmatch(content, end + 1):
            break
        first -= 1
    return first


def _closing(text: str) -> int | None:
    """Where the brace closes that was opened before the text; None when it does not."""
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
