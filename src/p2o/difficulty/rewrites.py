r"""Backward rewrites: a question with one of its numbers asked for, and its answer given. Pure.

From "Mechanistically Interpreting the Role of Sample Difficulty in RLVR for LLMs" (arXiv 2605.28388): in a question
with m numbers one is replaced by z, the answer is stated, and z is asked for, in up to 2m questions. The wording is
ours, and so is the reading of 2m as two wordings for each number.

Nothing here shows that z is determined by the rest: a question about a remainder has many. Numbers are replaced without
their sign. Number words ("three") are left as they are.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

LETTERS = "zwuvkpqt"
WORDINGS = (
    "{question}\n\nThe answer to this question is {answer}. What is the value of {letter}?",
    "Find the value of {letter} for which the answer to the following question is {answer}.\n\n{question}",
)

_GROUPED = r"\d{1,3}(?:,\d{3})+(?![\d,])|\d{1,3}(?:\{,\}\d{3})+"
_NUMBER = re.compile(
    r"\\[dt]?frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
    r"|\\[dt]?frac\s*(?P<short_top>\d)\s*(?P<short_bottom>\d)(?!\d)"
    r"|(?P<whole>\d+) (?P<mixed_top>\d+)/(?P<mixed_bottom>\d+)(?![\d/])"
    r"|(?P<plain_top>\d+)/(?P<plain_bottom>\d+)"
    r"|(?P<ordinal>\d+)(?:st|nd|rd|th)\b"
    rf"|(?P<number>(?:{_GROUPED}|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)",
    re.ASCII,
)
# What is no text of a question, or whose digits are no quantities, with what it is.
_PROTECTED = tuple(
    (re.compile(pattern, re.DOTALL), reason)
    for pattern, reason in (
        (r"\[asy\].*?\[/asy\]", "inside a drawing"),
        (r"```.*?```|`[^`]*`", "inside code"),
        (r"https?://\S+", "inside an address"),
        (r"\\(?:begin|end)\s*\{[^{}]*\}(?:\[[^\]]*\])?(?:\{[^{}]*\})?", "inside a formula's layout"),
        (r"\\(?:[hv]space|label|ref|tag|includegraphics|color|rule)\*?(?:\[[^\]]*\])?\{[^{}]*\}", "inside a layout"),
        (r"\\\\\[[^\]]*\]", "inside a formula's layout"),
        (r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b", "inside a date"),
        (r"\d+(?:\.\d+){2,}", "inside a version or an address"),
        (r"\d+(?:\s*:\s*\d+(?:\.\d+)?)+", "inside a ratio or a time"),
    )
)
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_LABEL = re.compile(
    r"(?:\b(?:figure|table|problem|question|step|part|case|equation|chapter|page|section|exercise|theorem|option|"
    r"example|number|no\.)\s*(?:\\?#)?|\#)$",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(r"\b(?:answer|respond|return|output|write|print|reply)(?: with)? [-\"'`]*$", re.IGNORECASE)
_UNITS = frozenset("mm cm m km g kg mg l ml cl s h min ms mph kmh ft in oz lb lbs am pm".split())


@dataclass(frozen=True)
class Number:
    """A number as it stands in a question.

    Args:
        start, end: of its characters.
        text: these.
        value: as a gold answer: 1234 of "1,234", 5/2 of "2 1/2", 3 of "3rd".
        problem: why it cannot be asked for; None where it can.
    """

    start: int
    end: int
    text: str
    value: str
    problem: str | None = None


@dataclass(frozen=True)
class Rewrite:
    """A question that asks for a number of another, with its gold answer."""

    question: str
    solution: str
    number: Number


@dataclass(frozen=True)
class Rejection:
    """What was not rewritten, and why. `number` is None where it concerns the whole question."""

    reason: str
    number: Number | None = None


@dataclass(frozen=True)
class Rewrites:
    """All rewrites of a question; each of its numbers is in `made`, once for each wording, or in `rejected`."""

    made: tuple[Rewrite, ...] = ()
    rejected: tuple[Rejection, ...] = ()


def rewrites(question: str, answer: str, *, wordings: int = len(WORDINGS), repeated: bool = False) -> Rewrites:
    """The backward rewrites of a question.

    Args:
        question: its text, without instructions about the form of the answer.
        answer: the gold answer.
        wordings: for each number, from 1 to 2.
        repeated: whether a number is asked for whose value the question states a second time, perhaps of the same
            quantity, which would give it away.

    Raises:
        ValueError: another number of wordings.
    """
    if not 1 <= wordings <= len(WORDINGS):
        raise ValueError(f"wordings={wordings} must be from 1 to {len(WORDINGS)}.")
    answer = answer.strip()
    if not answer:
        return Rewrites(rejected=(Rejection("there is no answer to state"),))
    if re.fullmatch(r"\(?[A-J]\)?\.?", answer) and re.search(
        r"\([A-J]\)|\\text(?:bf)?\{\(?[A-J]|^[A-J][.)]", question, re.M
    ):
        return Rewrites(rejected=(Rejection("the answer names a choice, which says nothing about a number"),))
    numbers = numbers_in(question)
    if not numbers:
        return Rewrites(rejected=(Rejection("there is no number in it"),))
    letter = _free_letter(f"{question} {answer}")
    if letter is None:
        return Rewrites(rejected=(Rejection(f"all of the letters {', '.join(LETTERS)} are in use"),))
    counts = Counter(Fraction(number.value) for number in numbers)
    made, rejected = [], []
    for number in numbers:
        problem = number.problem or _gives_away(number, answer, counts, repeated)
        if problem:
            rejected.append(Rejection(problem, number))
            continue
        asked = _replaced(question, number, letter)
        stated = f"${answer}$" if "$" in question and re.search(r"[\\^_]", answer) and "$" not in answer else answer
        for wording in WORDINGS[:wordings]:
            text = wording.format(question=asked, answer=stated, letter=letter)
            made.append(Rewrite(text, number.value, number))
    return Rewrites(tuple(made), tuple(rejected))


def numbers_in(question: str) -> list[Number]:
    """All numbers of a question, in order; those that cannot be asked for with what is the matter."""
    layouts = [(*found.span(), reason) for pattern, reason in _PROTECTED for found in pattern.finditer(question)]
    return list(_numbers(question, layouts))


def _numbers(question: str, layouts: list[tuple[int, int, str]]) -> Iterator[Number]:
    for found in _NUMBER.finditer(question):
        start, end = found.span()
        inside = next((reason for low, high, reason in layouts if start < high and low < end), None)
        value, faulty = _value(found)
        yield Number(start, end, found[0], value, inside or faulty or _context_problem(question, start, end))


def _value(found: re.Match[str]) -> tuple[str, str | None]:
    """The value as a gold answer, and what is the matter with it."""
    parts = found.groupdict()
    for top, bottom in (("top", "bottom"), ("short_top", "short_bottom"), ("plain_top", "plain_bottom")):
        if parts[top]:
            if not int(parts[bottom]):
                return parts[top], "a fraction over 0"
            return f"{int(parts[top])}/{int(parts[bottom])}", None
    if parts["whole"]:
        if not int(parts["mixed_bottom"]):
            return parts["whole"], "a fraction over 0"
        value = int(parts["whole"]) + Fraction(int(parts["mixed_top"]), int(parts["mixed_bottom"]))
        return str(value), None
    text = (parts["ordinal"] or parts["number"]).replace("{,}", "").replace(",", "")
    return f"0{text}" if text.startswith(".") else text, None


def _context_problem(question: str, start: int, end: int) -> str | None:
    """Why the number between these characters cannot be replaced by a letter; None where it can."""
    before, after = question[:start], question[end:]
    command = re.search(r"\\[A-Za-z]+\s*$", before)
    if not command and re.search(r"[^\W_]-?$", before):
        return "part of a word"
    if re.search(r"_(?:\{[^{}]*)?$", before):
        return "a subscript, which names something"
    in_formula = _in_formula(before)
    if in_formula and before.endswith("^") and end - start > 1:
        return "an exponent without braces, of which TeX takes one digit"
    if re.search(r"\d\.$", before):
        return "part of a longer number"
    if re.match(r"[./]\d", after) or re.search(r"\d/$", before):
        return "part of a longer number"
    listed = re.search(r"(?:^|\n)\s*\(?$", before) and re.match(r"[.)]\s", after)
    if listed or _LABEL.search(before.rstrip()):
        return "a label"
    if _INSTRUCTION.search(before):
        return "inside an instruction about the answer"
    month_before = re.search(rf"\b(?:{_MONTH})\.?\s+(?:\d+,\s*)?$", before)
    if month_before or re.match(rf"(?:st|nd|rd|th)?\s+(?:of )?(?:{_MONTH})\b", after):
        return "inside a date"
    word = re.match(r"[^\W\d_]+", after)
    if word and not in_formula and word[0] not in _UNITS and not re.fullmatch(r"[a-z]", word[0]):
        return "part of a word"
    return None


def _in_formula(before: str) -> bool:
    r"""Whether a formula of TeX is open after this text: between $, \( and \), or \[ and \]."""
    dollars = len(re.findall(r"(?<!\\)\$", before))
    opened = max(before.rfind("\\("), before.rfind("\\["))
    return dollars % 2 == 1 or opened > max(before.rfind("\\)"), before.rfind("\\]"))


def _free_letter(text: str) -> str | None:
    return next((x for x in LETTERS if not re.search(rf"(?<![A-Za-z\\]){x}(?![A-Za-z])", text, re.IGNORECASE)), None)


def _gives_away(number: Number, answer: str, counts: Counter[Fraction], repeated: bool) -> str | None:
    try:
        if Fraction(answer.replace(",", "").replace("$", "").strip()) == Fraction(number.value):
            return "it equals the answer, which is stated"
    except (ValueError, ZeroDivisionError):
        pass  # an answer that is no plain number
    if counts[Fraction(number.value)] > 1 and not repeated:
        return "the question states its value a second time"
    return None


def _replaced(question: str, number: Number, letter: str) -> str:
    """The question with the letter in place of the number; an ordinal keeps being one: the z-th."""
    before, after = question[: number.start], question[number.end :]
    in_formula = _in_formula(before)
    ordinal = re.search(r"\d(?:st|nd|rd|th)$", number.text)
    written = f"{letter}-th" if ordinal else letter
    if re.search(r"[A-Za-z]$", before):  # a command of TeX
        written = f" {written}"
    if re.match(r"[A-Za-z]", after):
        variable = not in_formula and re.match(r"[a-z](?![A-Za-z])", after) and after[:1] not in _UNITS
        written += "*" if variable else " "
    return f"{before}{written}{after}"
