r"""Letters of multiple choice and answers in words. Pure functions over text that
[`notation.spelled`][p2o.verifiers.notation.spelled] has gone over.

Source: #16 (choice letters), NVIDIA-NeMo/Gym#1844 (`\textbf{(B)}\ 12`), huggingface/open-r1#503 and #628 (NuminaMath's
golds), zwhe99/DeepMath#1 (Yes, No, True).
"""

import re
from typing import NamedTuple

_STYLE = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|rm|bf)\s*\{([^{}]*)\}")
_SAID = re.compile(
    r"^(?:the\s+)?(?:correct\s+|right\s+|final\s+)*(?:options?|choices?|answers?)\b\s*(?:is|are)?\s*:?\s*",
    re.IGNORECASE,
)
_ONE = r"(?:\(\s*[A-Ja-j]\s*\)|\[\s*[A-J]\s*\]|\{?[A-J]\}?)"
_BETWEEN = r"\s*(?:,|;|/|&|\\&|\+|\band\b|,\s*and\b|\s)\s*"
_SEVERAL = re.compile(rf"{_ONE}(?:{_BETWEEN}{_ONE})*\s*[.)]?")
_MARKER = re.compile(
    r"(?:\(\s*([A-Ja-j])\s*\)\s*[.:]?|\[\s*([A-J])\s*\]|([A-J])\s*[.):](?!\d)|([A-J])\s+-\s+)\s*(\S.*)"
)
_NONE = frozenset(
    ("no solution", "no solutions", "no real solution", "no real solutions", "there is no solution",
     "there are no solutions", "there are no real solutions", "empty set", "the empty set", "∅")
)  # fmt: skip
_UNDEFINED = frozenset(("does not exist", "dne", "it does not exist", "the limit does not exist", "undefined"))
_LETTER = "a-zà-ÿ\u4e00-\u9fff"
_ARTICLE = re.compile(r"^(?:the|an?)\s+")


class Choice(NamedTuple):
    """The letters chosen, and what is written behind a single one ("" for nothing)."""

    letters: frozenset[str]
    behind: str


def choice(text: str) -> Choice | None:
    r"""`C`, `(C)`, `\textbf{(C) }12`, `C. 12`, `Option C`, and several as in `A, C` or `ACD`; None of anything else."""
    text = _SAID.sub("", unstyled(text)).strip()
    text = re.sub(r"^\\\{(.*)\\\}$", r"\1", text).strip()
    if _SEVERAL.fullmatch(text):
        found = re.findall(r"[A-Ja-j](?![a-z])", re.sub(r"\band\b", " ", text))
        return Choice(frozenset(letter.upper() for letter in found), "")
    if re.fullmatch(r"[A-J]{2,6}", text) and len(set(text)) == len(text):
        return Choice(frozenset(text), "")
    if (match := _MARKER.fullmatch(text)) is None:
        return None
    letter = next(group for group in match.groups()[:4] if group)
    behind = match[5].strip()
    if re.match(r"(?:or|and|nor|is|isn't|not|,|;|/)(?![a-zA-Z])", behind) or _SEVERAL.fullmatch(behind):
        return None
    return Choice(frozenset(letter.upper()), behind)


def is_letters(text: str) -> bool:
    """Whether the text is nothing but letters of choices."""
    found = choice(text)
    return found is not None and not found.behind


def words(text: str) -> str | None:
    r"""An answer in words in one spelling: small letters, without styles, articles, full stops; None of anything else.

    At least one word has three letters or more, or the text is "no": `AB` is a product or a segment.
    """
    text = re.sub(r"\\(?:emptyset)(?![a-zA-Z])", "∅", unstyled(text))
    text = re.sub(r"\s+", " ", text).strip().strip(".!\"'").lower()
    if text in _NONE:
        return "no solution"
    if text in _UNDEFINED:
        return "does not exist"
    text = _ARTICLE.sub("", text)
    if not re.fullmatch(rf"[{_LETTER}0-9 ,.'-]+", text) or not re.search(rf"[{_LETTER}]{{3}}|^no$", text):
        return None
    return text.replace(",", " ").replace("  ", " ")


def unstyled(text: str) -> str:
    r"""Without `\text{…}` and the like, whose contents stay."""
    before = None
    while before != text:
        before, text = text, _STYLE.sub(r" \1 ", text)
    return re.sub(r"\s+", " ", text).strip()
