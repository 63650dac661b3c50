r"""Numbers as they are written: their exact values, times of day, numbers to a base. Pure functions over text that
[`notation.spelled`][p2o.verifiers.notation.spelled] has gone over."""

import re
from fractions import Fraction
from typing import NamedTuple

MOST_DIGITS = 400
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
         "twelve": 12, "sixteen": 16}  # fmt: skip


def value(text: str) -> Fraction | None:
    r"""The exact value of a number written as a whole number, decimal, fraction, mixed number, multiple of a power of
    ten, or with a word such as "million"; None of anything else.

    Source: #34 (`1 1/4`), MATH's golds (`137 \frac{1}{2}`), Minerva's golds (`6.02 \times 10^{23}`),
    EleutherAI/lm-evaluation-harness#4039 ("1 million").
    """
    if len(text) > MOST_DIGITS:
        return None
    text = re.sub(r"\s+", " ", text.replace(r"\left", "").replace(r"\right", "")).strip()
    text = re.sub(r"^\\text\s*\{\s*([A-Za-z]+)\s*\}$", r"\1", text)
    sign = 1
    if match := re.fullmatch(r"([-+])\s*(.+)", text):
        sign, text = (-1 if match[1] == "-" else 1), match[2]
    if text.lower() in _WORDS:
        return Fraction(sign * _WORDS.index(text.lower()))
    for read in (_decimal, _fraction, _mixed, _power_of_ten, _scaled):
        found = read(text)
        if found is not None:
            return sign * found
    return None


def _decimal(text: str) -> Fraction | None:
    return Fraction(text) if re.fullmatch(_DECIMAL, text) else None


def _fraction(text: str) -> Fraction | None:
    match = re.fullmatch(r"\\[dtc]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*(-?[\d.]+)\s*\}", text)
    match = match or re.fullmatch(r"\(?(-?[\d.]+)\s*/\s*([\d.]+)\)?", text)
    if match is None:
        return None
    above, below = (_decimal(group.lstrip("-")) for group in match.groups())
    if above is None or not below:
        return None
    return above / below * (-1) ** sum(group.startswith("-") for group in match.groups())


def _mixed(text: str) -> Fraction | None:
    match = re.fullmatch(r"(\d+) ?(\\[dtc]?frac.+)", text) or re.fullmatch(
        r"(\d+)(?: and | ?\+ ?|-| )(\d+ ?/ ?\d+)", text
    )
    if match is None:
        return None
    part = _fraction(match[2])
    return None if part is None or not 0 < part < 1 else int(match[1]) + part


def _power_of_ten(text: str) -> Fraction | None:
    match = re.fullmatch(
        rf"(?:({_DECIMAL}) ?(?:\\times|\\cdot|\*|x) ?)?10 ?\^ ?(?:\{{ ?([-+]?\d+) ?\}}|([-+]?\d+))", text
    )
    if match is None:
        return None
    power = int(match[2] or match[3])
    return Fraction(match[1] or 1) * Fraction(10) ** power if abs(power) <= MOST_DIGITS else None


def _scaled(text: str) -> Fraction | None:
    match = re.fullmatch(rf"({_DECIMAL}) ?(?:\\text ?\{{)? ?([a-z]+?)s? ?\}}?", text)
    return Fraction(match[1]) * _SCALES[match[2]] if match and match[2] in _SCALES else None


class Based(NamedTuple):
    """Digits without leading zeros, in upper case, and their base."""

    digits: str
    base: int


def based(text: str) -> Based | None:
    r"""A number with its base: `1010_2`, `52_{8}`, `(2A)_{\text{base 16}}`, `52 \text{ base } 8`.

    Source: rasbt/reasoning-from-scratch#133.
    """
    if "_" not in text and "base" not in text:
        return None
    text = re.sub(r"\\(?:text|mathrm|mathit)\s*\{([^{}]*)\}", r"\1", text).replace(" ", "")
    match = re.fullmatch(r"\(?\{?([0-9A-Fa-f]+)\}?\)?(?:_\{*|\(?\{?in\}?|\{|\()*(?:base)?[-{(]*(\d+|[a-z]+)[})]*", text)
    if match is None or not ("_" in text or "base" in text):
        return None
    base = int(match[2]) if match[2].isdigit() else BASES.get(match[2])
    digits = match[1].upper().lstrip("0") or "0"
    return Based(digits, base) if base is not None and 2 <= base <= 36 else None


class Clock(NamedTuple):
    """A time of day as written; `half` is "a" before noon, "p" after it, "" if not said."""

    hour: int
    minute: int
    second: int
    half: str


def clock(text: str) -> Clock | None:
    r"""A time of day: `10:30`, `10{:}30\text{ AM}`, `3:30 p.m.`. Only the shape is asked for: 20:60 is read, too.

    Source: #14 (12:00 is not 1:00), NousResearch's open-r1 style wrappers (`10{:}30`).
    """
    if ":" not in text:
        return None
    text = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}|\\[!,;: ]|[{}~$]", r"\1", text)
    text = re.sub(r"\s+", "", text).lower()
    match = re.fullmatch(r"(\d{1,2}):(\d\d)(?::(\d\d))?\(?(?:([ap])\.?m\.?)?\)?(?:o'clock|h|hrs?|hours?)?", text)
    if match is None:
        return None
    return Clock(int(match[1]), int(match[2]), int(match[3] or 0), match[4] or "")


def is_time(read: Clock) -> bool:
    """Whether there is such a time of day; else it is a ratio."""
    return read.hour <= 24 and read.minute < 60 and read.second < 60


def same_time(one: Clock, other: Clock) -> bool:
    """Whether two times agree. Where only one says which half of the day it means, that is left open, unless the other
    counts 24 hours."""
    if one[1:3] != other[1:3]:
        return False
    if one.half == other.half:
        return one.hour == other.hour
    said, left_open = (one, other) if one.half else (other, one)
    if said.half and left_open.half:
        return False
    hour = said.hour % 12 + (12 if said.half == "p" else 0)
    return left_open.hour in ((hour,) if left_open.hour > 12 or left_open.hour == 0 else (hour, said.hour))
