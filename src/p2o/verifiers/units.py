r"""Units, currencies and words around a number. Pure functions over text that
[`notation.spelled`][p2o.verifiers.notation.spelled] has gone over.

Source: #57 and #60 (units, words, left-hand sides), pytorch/rl#3542 (currencies), josdejong/mathjs#3593 (元),
Khan/khan-exercises#75882 (degrees), #61 (percent).
"""

import re
from typing import NamedTuple

_SYMBOLS = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yuan", "￥": "yuan", "₹": "rupee", "₩": "won", "₽": "ruble"}
_NAMES = {
    "dollar": "usd us dollar bucks buck", "cent": "¢", "euro": "eur", "pound": "gbp quid",  "yuan":
    "yen jpy rmb cny 元 圆 円", "rupee": "rs inr", "won": "krw", "ruble": "rub", "franc": "chf", "peso": "",
    "m": "meter metre", "cm": "centimeter centimetre 厘米", "mm": "millimeter millimetre",
    "km": "kilometer kilometre 千米",
    "dm": "decimeter decimetre", "nm": "nanometer", "mile": "mi", "ft": "foot feet", "inch": "in", "yard": "yd",
    "s": "sec second 秒", "min": "minute 分钟", "h": "hr hour 小时", "day": "d 天", "week": "", "month": "",
    "year": "yr",
    "g": "gram gm", "kg": "kilogram 千克", "mg": "milligram", "lb": "lbs", "oz": "ounce", "t": "ton tonne",
    "l": "liter litre 升", "ml": "milliliter", "gallon": "gal", "cc": "", "degree": "deg °", "radian": "rad",
    "mph": "", "km/h": "kmh kph", "m/s": "", "n": "newton", "j": "joule", "w": "watt", "v": "volt", "a": "ampere amp",
    "hz": "hertz", "pa": "pascal", "k": "kelvin", "c": "celsius", "f": "fahrenheit", "ev": "", "mol": "mole", "ohm": "",
    "erg": "", "kj": "", "kw": "", "kwh": "", "atm": "", "arcsec": "", "au": "", "pc": "", "angstrom": "", "mev": "",
    "unit": "", "square unit": "sq unit", "cubic unit": "", "unit^2": "", "平方厘米": "", "个": "", "人": "", "米": "",
}  # fmt: skip
_SAME = {other: name for name, others in _NAMES.items() for other in (name, *others.split())}
_SCALES = (
    {"mm", "cm", "dm", "m", "km", "mile", "ft", "inch", "yard", "nm"},
    {"s", "min", "h", "day", "week", "month", "year"},
    {"mg", "g", "kg", "lb", "oz", "t"},
    {"ml", "l", "gallon"},
    {"dollar", "cent", "euro", "pound", "yuan", "rupee", "won", "ruble", "franc", "peso"},
    {"degree", "radian"},
    {"mph", "km/h", "m/s"},
)
"""Units of one quantity, of which one is not another."""

_NOT_UNITS = frozenset(
    "and or more less than times factorial squared cubed percent percentage pct hundred thousand million billion "
    "trillion dozen half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths tenth tenths "
    "hundredth hundredths thousandth thousandths below above minus plus negative over mod modulo base to infinity not "
    "no at least most between except if where when with for is are but wait however maybe perhaps am pm sqrt sin cos "
    "tan log ln exp pi theta alpha beta choose remainder divided either neither wrong incorrect monday "
    "tuesday wednesday thursday friday saturday sunday january february march april may june july august september "
    "october november december".split()
)
_CHANGING = re.compile(
    r"\\text\s*\{[^{}]*\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|thirds?|quarters?|fifths?|"
    r"sixths?|tenths?|hundredths?|thousandths?|or (?:more|less|fewer|greater|higher)|factorial|squared|cubed|mod|below|"
    r"or \d+|and \d+)\b|\d\s*\\text\s*\{\s*k\s*\}"
)
_SHORT = frozenset(
    "sq square cu cubic per of in the a men boy boys girl girls box way ways team cow dog cat egg eggs pen pens".split()
)
_WORD = r"[A-Za-z\u4e00-\u9fff¢][A-Za-z\u4e00-\u9fff.¢'-]*"
_TEXT = r"\\(?:text|mathrm|textrm|textit|textbf|rm|operatorname|mathit)\s*\{([^{}]*)\}"
_POWER = r"(?:\^\s*(?:\{\s*(-?\d)\s*\}|(-?\d)))?"


_SAID = (
    re.compile(
        r"^(?:\\text\s*\{[^{}]*?\b(?:is|are|was|were|equals|about|approximately|roughly|around|needs?|"
        r"has|have|had|costs?|takes?|took|gets?|makes?|pays?|paid|earns?|earned)\s*:?\s*\}|"
        r"[A-Za-z][A-Za-z ]*\b(?:is|are|equals):?\s)\s*(?=\S)"
    ),
    re.compile(r"^\\text\s*\{[^{}\d]*:\s*\}\s*(?=\S)|^[A-Z][a-z]{2,}:\s+(?=\S)"),
)
_NAMED = re.compile(r"\\(?:#|max|min|text|mathrm|angle|triangle|overline|operatorname|Delta)|[A-Za-z]{3}|\(|_|\|")
_NAME = re.compile(r"(?:\\(?:angle|triangle|Delta|odot|measuredangle|max|min|#)|[A-Za-z\s|'])+")
_GROUP = re.compile(r"\\(?:text|mathrm|operatorname|overline|textbf|widehat|vec)\s*\{[^{}]*\}")
_INDEX_OR_ARGUMENT = re.compile(r"\([^()]*\)|_\s*(?:\{[^{}]*\}|\\?\w)")
_PERCENT = re.compile(
    r"(.+?)\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|per\s?cent|percentage|pct)\s*\}|per\s?cent|percentage|pct)", re.IGNORECASE
)
_CURRENCY = re.compile(
    r"([-+]?)\s*(?:\\text\s*\{\s*)?(?:(?:US|CA|A|HK)?\s*(?:\\?(\$)|(€|£|¥|￥|₹|₩|₽)|\\(euro|pounds)\b)|"
    r"(Rs\.?|USD|EUR|GBP|INR|RMB|CNY)(?![a-zA-Z]))\s*\}?\s*(?=[\d.\\({-])"
)


class Quantity(NamedTuple):
    """What is left without its unit, and the unit in one spelling ("" without one)."""

    core: str
    unit: str


def quantity(text: str) -> Quantity:
    """Without units and currencies before and behind it, left-hand sides and words such as "The total is"."""
    text = without_left_hand_side(text)
    core, before = _without_currency(text)
    core, behind = _without_unit(core)
    if not core or (before and behind and not behind.startswith((before, "per ", "/")) and behind != before):
        return Quantity(text, "")
    return Quantity(core, behind or before)


def conflicting(one: str, other: str) -> bool:
    """Whether two units measure the same in different measures, such as metres and kilometres."""
    (name, _, power), (another, _, its_power) = one.partition("^"), other.partition("^")
    return name != another and power == its_power and any(name in scale and another in scale for scale in _SCALES)


def is_measure(unit: str) -> bool:
    """Whether it is a unit of length, time, mass, volume, money, angle or speed."""
    return any(unit.partition("^")[0] in scale for scale in _SCALES)


def changes_value(text: str) -> bool:
    """Whether words behind a number, with all that follows them, which math-verify strikes out, change it: "thousand",
    "or more", "feet 3 inches"."""
    struck = re.sub(r"[\^_]\s*\{?\s*-?\d+\s*\}?", "", text.partition(r"\text")[2])
    return bool(_CHANGING.search(text)) or bool(re.search(r"\d", struck) and not re.search(r"[=:]|\\approx", struck))


def without_left_hand_side(text: str) -> str:
    r"""The right-hand side of `\text{Area} = 18`, `P(\text{red}) = 0.3`, `\angle ABC = 18`, `Area: 18`, and what
    follows "is" in `\text{The total is } 18`."""
    for said in _SAID:
        text = said.sub("", text).lstrip("=: ")
    text = re.sub(r"^\\text\s*\{[^{}]*\b(?:is|are|equals):?\s+([^{}]*\d[^{}]*)\}$", r"\1", text)
    signs = _equals_signs(text)
    if not signs or not text[signs[-1] + 1 :].strip() or re.search(r"[,;<>≤≥]|\\[lg]eq", text):
        return text
    return text[signs[-1] + 1 :].strip() if _is_name(text[: signs[0]]) else text


def _equals_signs(text: str) -> list[int]:
    """Where equals signs stand in no brace: one of `\\sum_{k=0}` divides nothing."""
    found, depth = [], 0
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "=" and depth == 0 and text[at - 1 : at] not in ("<", ">", "!", ":", "\\", "\n"):
            found.append(at)
    return found


def _is_name(left: str) -> bool:
    r"""Whether it names a quantity and computes nothing: `\text{Area}`, `P(\text{red})`, `S_{\triangle ABC}`."""
    if not _NAMED.search(left):
        return False
    rest = _INDEX_OR_ARGUMENT.sub("", _GROUP.sub("x", left)).strip()
    return bool(rest) and bool(_NAME.fullmatch(rest))


def percentage(text: str) -> str | None:
    r"""What stands before a sign or word of percent; None without one."""
    match = _PERCENT.fullmatch(text.strip().rstrip("."))
    return match[1] if match else None


def _without_currency(text: str) -> Quantity:
    match = _CURRENCY.match(text)
    if match is None:
        return Quantity(text, "")
    sign, dollar, symbol, command, letters = match.groups()
    name = _SYMBOLS.get(dollar or symbol or "") or (command or letters).lower().rstrip(".s")
    name = {"r": "rupee"}.get(name) or _SAME.get(name, name)
    return Quantity(sign + text[match.end() :].strip(), name)


def _without_unit(text: str) -> Quantity:
    """Strips units and words from the end, as long as something is left that can be a number or formula."""
    units: list[str] = []
    core = re.sub(rf"\\frac\s*\{{\s*({_TEXT})\s*\}}\s*\{{\s*({_TEXT})\s*\}}\s*$", r"\1/\3", text.strip())
    for _ in range(6):
        found = _last_unit(core)
        if found is None:
            break
        core = found.core.strip()
        units.insert(0, found.unit)
    if not core or not units:
        return Quantity(text, "")
    core = re.sub(r"[-\s/]+$|\\cdot\s*$", "", core)
    return Quantity(core, _canonical(" ".join(units)))


def _last_unit(text: str) -> Quantity | None:
    if match := re.search(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:[CF]|\\(?:text|mathrm)\s*\{\s*[CF]\s*\})?\s*$", text):
        return Quantity(text[: match.start()], "degree") if match.start() else None
    if match := re.search(rf"(?:\s|/|\\cdot)*{_TEXT}\s*{_POWER}\s*\.?\s*$", text):
        said = match[1].strip()
        power = match[2] or match[3] or ""
        if match.start() and _is_unit(said, bare=False) and not re.search(r"[+*=<>^_-]\s*$", text[: match.start()]):
            slash = "/" if "/" in match[0].partition("\\text")[0] else ""
            return Quantity(text[: match.start()], slash + said + (f"^{power}" if power else ""))
        return None
    if match := re.search(r"(?<=[\d}])\s+m\s*\^\s*\{?\s*([23])\s*\}?$", text):
        return Quantity(text[: match.start()], f"m^{match[1]}")
    if match := re.search(rf"(?<=[\d}})\s$]){_WORD}(?:/{_WORD})?\s*{_POWER}\s*\.?\s*$", text):
        said = re.sub(r"\^.*", "", match[0]).strip().rstrip(".")
        power = match[1] or match[2] or ""
        before = text[: match.start()].rstrip()
        if before and re.search(r"[\d})a-zA-Z\u4e00-\u9fff%.]$", before) and _is_unit(said, bare=True):
            return Quantity(before, said + (f"^{power}" if power else ""))
        return None
    if match := re.search(r"\s*(?:\\?\$|[€£¥₹元])\s*$", text):
        return Quantity(text[: match.start()], _SYMBOLS.get(match[0].strip().lstrip("\\"), "yuan"))
    return None


def _is_unit(said: str, *, bare: bool) -> bool:
    words = re.findall(_WORD, said.lower())
    if re.search(r"[\d=<>+]", said) or any(word.strip(".") in _NOT_UNITS for word in words):
        return False
    if not words:
        return said.strip() in ("", "$", r"\$", "€", "£", "%") and said.strip() != "%"
    if all(_known(word) for word in words):
        # A bare letter behind a number is a factor.
        return not bare or len(said) > 1 or not said.isascii()
    if bare:
        return all(
            _known(word) or word.strip(".") in _SHORT or (len(word) >= 4 and re.search("[aeiouy]", word))
            for word in words
        )
    return all(len(word) > 1 or word == "a" for word in words)


def _known(word: str) -> bool:
    return word.strip(".") in _SAME or word.strip(".").rstrip("s") in _SAME or bool(re.search("[\u4e00-\u9fff]", word))


def _canonical(unit: str) -> str:
    """One name for each unit: singular, short, in small letters."""
    unit = re.sub(r"\s+", " ", unit.lower().replace(".", "")).strip()
    unit = re.sub(r"^(?:sq|square)\s+(.+)$", r"\1^2", unit) if not unit.endswith("unit") else unit
    unit = re.sub(r"^(?:cu|cubic)\s+(.+)$", r"\1^3", unit)
    name, hat, power = unit.partition("^")
    name = name.strip()
    for form in (name, name.removesuffix("s"), name.removesuffix("es")):
        if form in _SAME:
            return _SAME[form] + hat + power
    return name.removesuffix("s") + hat + power
