"""Numbers that a text states, however it writes them. Pure."""

import re

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER_WORD = "|".join([*_SMALL, *_SCALES])
_IN_WORDS = re.compile(
    rf"(?<!\w)(?:{_NUMBER_WORD})(?:(?:[\s-]+|,\s+|\s+and\s+)(?:{_NUMBER_WORD}))*(?!\w)", re.IGNORECASE
)
_IN_DIGITS = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?")
_SIGN = r"(?:[-+−*×·/÷]|\\times|\\cdot|\\div|plus|minus|times)"
_SUM = re.compile(rf"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:\s*{_SIGN}\s*\d[\d,]*(?:\.\d+)?)+")
_SPACED = re.compile(r"(?<=\d)(?:\{,\}|\\[,;:! ]|[  '’_\u2000-\u200a\u202f\u205f,])(?=\d{3}(?!\d))")

_RESULT = re.compile(
    r"(?:^|(?<=[.!?])\s+)[*_]*(?:so |hence |thus |therefore |then )?,?\s*(?:the |a |our )?"
    r"(?:final |correct |right |exact )?(?:answer|result|solution|total|value|sum|product|difference)(?: here)?[*_]*"
    r"\s*(?:is|equals|will be|=|:)\s*[:=]?\s*"
    r"([^.\n!?]*(?:\.\d[^.\n!?]*)*)(?:[.!?]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_EXAMPLE = re.compile(
    r"\b(?:examples?|e\.g|for instance|such as|question|problem)\b[^\n]*\W|\bq\s*:|[\"“«]", re.IGNORECASE
)


def stated_numbers(text: str) -> set[float]:
    r"""The values of numbers in a text: `4711`, `4,711`, `4{,}711`, `4 711`, `4711cm`, `4700 + 11`, English words."""
    text = _SPACED.sub("", text)
    found = {_value(match[0]) for match in _IN_DIGITS.finditer(text)}
    found |= {_sum(match[0]) for match in _SUM.finditer(text)}
    return found | {_in_words(match[0]) for match in _IN_WORDS.finditer(text)}


def _value(digits: str) -> float:
    return float(digits.replace(",", "").replace("−", "-").replace("+", ""))


def _sum(expression: str) -> float:
    """From left to right, products first; a division by zero is no number."""
    terms, sign = [0.0], "+"
    for token in re.findall(rf"\d[\d,]*(?:\.\d+)?|{_SIGN}", expression, re.IGNORECASE):
        if not token[0].isdigit():
            sign = token
        elif sign in ("-", "−", "minus"):
            terms.append(-_value(token))
        elif sign in ("/", "÷", r"\div"):
            terms[-1] = terms[-1] / _value(token) if _value(token) else float("nan")
        elif sign in ("+", "plus"):
            terms.append(_value(token))
        else:
            terms[-1] *= _value(token)
    return sum(terms)


def _in_words(words: str) -> float:
    total, group = 0, 0
    for word in re.findall("[a-z]+", words.lower()):
        scale = _SCALES.get(word)
        if scale is None:
            group += _SMALL.get(word, 0)  # "and" adds nothing
        elif scale == 100:
            group = max(group, 1) * 100
        else:
            total, group = total + max(group, 1) * scale, 0
    return float(total + group)


def states_a_result(text: str) -> bool:
    """Whether a sentence says what the result is, as "The result is 4711." does, outside of an example or a block."""
    text = re.sub(r"(?ms)^[ \t]*(```|~~~).*?(?:^[ \t]*\1|\Z)", ":", text)
    for match in _RESULT.finditer(text):
        said = _SPACED.sub("", match[1]).strip(" $*_`{}()[]\\")
        said = _SUM.sub("1", said) if _SUM.search(said) else said
        number = _IN_WORDS.match(said) or _IN_DIGITS.match(said)
        # A number with a unit at most; with more words behind it, it is a rule: "The answer is 0 if there is none."
        shown = re.search(r":\s*$", text[: match.start()])  # what follows a colon is a form to be filled
        if number and not shown and re.fullmatch(r"\s*[^\W\d_]{0,12}[²³%°]?\W*", said[number.end() :]):
            return not _EXAMPLE.search(text[: match.start()])
    return False
