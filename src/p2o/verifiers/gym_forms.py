r"""Other ways of writing the same answer to a reasoning-gym question, tried where an answer as it stands is not right.

Models write `**13754**`, `$13,754$`, `x = 61`, `\frac{1}{2}`; most scorers of reasoning-gym compare texts. Every
rule here keeps the meaning. What kind of rules applies depends on the gold answer: wrappers come off any answer, commas
between thousands only where the gold is a number, and where the exact characters are the question there is no more than
wrappers.
"""

import ast
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

from p2o.verifiers.gym_expressions import UnreadableError, arithmetic
from p2o.verifiers.gym_tex import plain, plain_formula, unwrapped

MOST_CHARACTERS = 4_096
MOST_CHARACTERS_OF_A_NUMBER = 256

_CLOSED_VOCABULARY = frozenset(
    "acre calendar_arithmetic color_cube_rotation course_schedule family_relationships game_of_life_halting "
    "isomorphic_strings mahjong_puzzle needle_haystack ransom_note syllogism tsumego zebra_puzzles".split()
)
_DIGITS_AS_TEXT = frozenset("base_conversion bf codeio path_star spiral_matrix string_insertion".split())
_FORMULAS = frozenset("intermediate_integration polynomial_multiplication simple_integration".split())
_FRACTIONS = frozenset("coin_flip dice fraction_simplification".split())
_JSON = frozenset(
    "boxnet codeio game_of_life graph_color group_anagrams jugs knight_swap number_sorting "
    "palindrome_partitioning".split()
)
_LISTS = frozenset("list_functions number_filtering".split())
_MADE_NUMBERS = frozenset("countdown puzzle24".split())
_QUOTED = frozenset(
    "caesar_cipher emoji_mystery figlet_font letter_jumble palindrome_generation polynomial_equations "
    "sentence_reordering spell_backward string_manipulation".split()
)
_TEX_SIGNS = frozenset(
    "advanced_geometry complex_arithmetic cryptarithm polynomial_equations propositional_logic quantum_lock".split()
)
_MATRICES = frozenset(
    "arc_1d arc_agi binary_matrix kakurasu manipulate_matrix mini_sudoku pool_matrix rearc rotate_matrix sudoku "
    "survo".split()
)

_BLANKS = re.compile(r"\s{64}")  # no answer has so many, and looking for where they end takes their number squared
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_POWER_OF_TEN = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*[×·*x]\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,3})\s*\}?")
_WITH_UNIT = re.compile(r"(\S*\d)\s*([^\W\d_]+(?:[ -][^\W\d_]+)*)")
# Words after a number that change it or what is said of it; no unit, even if the question has them.
_NO_UNITS = frozenset(
    "hundred thousand thousands million millions billion billions trillion dozen half third quarter percent tenths "
    "squared cubed factorial and or to by of in at than more less fewer least most over under above below not no mod "
    "modulo remainder base plus minus divided multiplied negative each per about only exactly e i j k m b x "
    "first second th st nd rd".split()
)
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}


def other_forms(answer: str, family: str, entry: dict[str, Any]) -> Iterator[str]:
    """The same answer in the forms that the family's scorer may know; never the text itself, none twice."""
    if len(answer) > MOST_CHARACTERS or _BLANKS.search(answer):
        return
    seen = {answer}
    for form in _forms(answer, family, entry):
        if form and form not in seen:
            seen.add(form)
            yield form


def _forms(answer: str, family: str, entry: dict[str, Any]) -> Iterator[str]:
    bare = unwrapped(answer)
    yield bare
    if "\\" in bare:
        yield plain(bare).strip()
    # Below, each kind of answer is read for what it says; a full stop behind says nothing.
    bare = unwrapped(bare.removesuffix("."))
    gold = entry.get("answer")
    if isinstance(gold, str) and _NUMBER.fullmatch(gold.strip()) and family not in _DIGITS_AS_TEXT:
        yield from _as_number(bare, gold, str(entry.get("question", "")))
    if family in _CLOSED_VOCABULARY and isinstance(gold, str):
        word = plain(bare).strip(" .\"'")
        yield gold if word.lower() == gold.lower() else word
    if family in _FRACTIONS:
        yield from _as_fraction(bare)
    if family in _LISTS and isinstance(gold, str):
        yield from _as_list(bare, gold)
    if family in _JSON:
        yield from _as_json(bare)
    if family in _MATRICES:
        yield _rows(bare)
    if family in _TEX_SIGNS:
        yield from _without_signs(bare)
    if family in _FORMULAS | _MADE_NUMBERS:
        emphasised = re.fullmatch(r"(\*{1,2})([^*].*[^*])\1", bare)  # with products in it
        bare = unwrapped(emphasised[2]) if emphasised else bare
    if family in _FORMULAS:
        yield from _as_formula(bare)
    if family in _MADE_NUMBERS:
        yield from _as_expression(bare, entry["metadata"].get("target", 24))
    if family in _QUOTED and len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "\"'":
        yield bare[1:-1]
    if family == "prime_factorization":
        yield from _as_factors(bare, entry["metadata"].get("number"))
    if family == "base_conversion":
        yield re.sub(rf"_\{{?\(?{entry['metadata'].get('target_base')}\)?\}}?$", "", plain(bare)).strip()
    if family in ("knights_knaves", "tower_of_hanoi"):
        yield bare.replace("**", "")
    if family == "rubiks_cube":
        yield re.sub(r"[’′]|\^\{?\\prime\}?", "'", bare)


# -- numbers ---------------------------------------------------------------------------------------------------------


def _as_number(text: str, gold: str, question: str) -> Iterator[str]:
    found = read_number(text, question)
    if found is None:
        return
    yield gold if Decimal(found) == Decimal(gold.strip()) else found


def read_number(text: str, question: str = "") -> str | None:
    """The one number that the text is, as digits that `Decimal` reads; None where it is anything else.

    Known are thousands separators, a power of ten, a name or an equal expression before `=`, a currency and a unit that
    the question has as well, degrees and a full stop at the end.
    """
    if len(text) > MOST_CHARACTERS_OF_A_NUMBER:
        return None
    text = plain(text).strip()
    *before, value = text.removeprefix("≈").replace("≈", "=").split("=")
    value = value.strip()
    if value.endswith(".") and value[-2:-1].isalnum():
        value = value[:-1]
    number = _bare_number(value, question.lower())
    return number if number is not None and all(_names(left.strip(), number) for left in before) else None


def _bare_number(value: str, question: str) -> str | None:
    for sign, word in _CURRENCIES.items():
        if sign in value and (sign in question or word in question):
            value = re.sub(rf"^([+-]?)\s*{re.escape(sign)}\s*|\s*{re.escape(sign)}$", r"\1", value)
    if "degree" in question or "°" in question:
        value = re.sub(r"\s*(?:°|\bdegrees?)$", "", value)
    unit = _WITH_UNIT.fullmatch(value)
    if unit and not _NUMBER.fullmatch(value):
        words = unit[2].lower().replace("-", " ").split()
        known = re.findall(r"[^\W\d_]+", question)
        if not all(word in known and word not in _NO_UNITS for word in words):
            return None
        value = unit[1]
    if _GROUPED.fullmatch(value):
        return value.replace(",", "").replace(" ", "")
    power = _POWER_OF_TEN.fullmatch(value)
    if power:
        return f"{power[1]}e{power[2]}"
    return value if _NUMBER.fullmatch(value) else None


def _names(left: str, number: str) -> bool:
    """Whether the left side of an equation names its right side: `x`, `f(3)`, `the total`, or a sum with that value."""
    if re.fullmatch(r"[^\W\d_]\w*(?:\([\w\s,]*\))?", left):
        return True
    if re.fullmatch(r"[^\W\d_]{2,}(?:\s+(?:[^\W\d_]{2,}|a))*", left):
        return True
    try:
        value, numbers = arithmetic(re.sub(r"[×·]", "*", left).replace("÷", "/"))
        return len(numbers) > 1 and value == Fraction(number)
    except (UnreadableError, ValueError):
        return False


def _as_fraction(text: str) -> Iterator[str]:
    *before, value = plain(text).strip().rstrip(".").split("=")
    value = value.strip().replace("(", "").replace(")", "")
    if not re.fullmatch(r"\d+\s*/\s*\d+", value):
        return
    for left in before:
        if not _names(left.strip(), value.replace(" ", "")) and not _is_same_fraction(left, value):
            return
    yield value.replace(" ", "")
    yield f"${value.replace(' ', '')}$"


def _is_same_fraction(left: str, right: str) -> bool:
    try:
        return arithmetic(left)[0] == arithmetic(right)[0]
    except UnreadableError:
        return False


def _as_factors(text: str, number: int | None) -> Iterator[str]:
    *before, value = re.split(r"=", plain(text).strip().rstrip("."))
    if any(left.strip() != str(number) for left in before):
        return
    factors: list[str] = []
    for factor in re.split(r"\s*(?:×|·|\*(?!\*)(?<!\*\*)|\bx\b)\s*", value.strip()):
        found = re.fullmatch(r"(\d+)(?:\s*(?:\^|\*\*)\s*\{?(\d{1,2})\}?)?", factor)
        if found is None:
            return
        factors += [found[1]] * int(found[2] or 1)
    yield " × ".join(factors)


# -- lists, maps and matrices ----------------------------------------------------------------------------------------


def _literal(text: str) -> Any:
    """What a literal of Python or JSON stands for; None where it is none."""
    readers = (json.loads, ast.literal_eval) if "#" not in text else (json.loads,)  # no comments
    for read in readers:
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _as_list(text: str, gold: str) -> Iterator[str]:
    """The gold where the list has the same items in the same order, quoted or not, in brackets or without."""
    text = plain(text).strip().rstrip(".")
    wanted = _literal(gold)
    found = _literal(text if text.startswith("[") else f"[{text}]")
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = zip(found, wanted, strict=True)
        if all(_item(a) == _item(b) for a, b in pairs):
            yield gold


def _item(item: Any) -> Any:
    text = str(item).strip()
    return Decimal(text) if _NUMBER.fullmatch(text) else text


def _as_json(text: str) -> Iterator[str]:
    found = _literal(plain(text))
    if isinstance(found, list | tuple | dict):
        try:
            yield json.dumps(found)
        except (TypeError, ValueError):
            return


def _rows(text: str) -> str:
    """A matrix as lines of items with one blank between them; TeX's `bmatrix` and the like, a table, or plain."""
    inner = re.fullmatch(r"\\begin\{(\w*matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text.strip(), re.DOTALL)
    rows = re.split(r"\\\\(?:\[[^\]]*\])?|\\hline|\\cr", inner[2]) if inner else text.strip().split("\n")
    lines = [" ".join(row.replace("&", " ").split()) for row in rows]
    lines = [re.sub(r"^\|\s*|\s*\|$", "", line).replace(" | ", " ") for line in lines]
    return "\n".join(line for line in lines if line and not re.fullmatch(r"[-:| ]+", line))


# -- formulas --------------------------------------------------------------------------------------------------------


def _as_formula(text: str) -> Iterator[str]:
    formula = plain_formula(re.sub(r"^\s*(?:[A-Za-z]\w?\s*(?:\([A-Za-z]\)\s*)?|\\int[^=]*|∫[^=]*)=", "", text))
    if formula is not None:
        yield formula


def _as_expression(text: str, target: int) -> Iterator[str]:
    left, equals, right = plain(text).partition("=")
    if equals and right.strip().rstrip(".") != str(target):
        return
    expression = plain_formula(left.strip().rstrip(".").replace("[", "(").replace("]", ")"))
    if expression is not None:
        yield expression


def _without_signs(text: str) -> Iterator[str]:
    text = plain(text).strip()
    yield text
    text = re.sub(r"^(?:z|[∠]?\s*[A-Z]{1,3}|r|[a-z])\s*=(?!.*=)\s*", "", text).rstrip(".").rstrip()
    yield text
    yield re.sub(r"\s*(?:degrees?)$", "°", text)
    text = re.sub(r"^([+-]?[\d.]+\s*\*?\s*[ij])\s*([+-])\s*([\d.]+)$", r"\2\3+\1", text).replace("+-", "-")
    yield text.replace("*", "").replace("·", "")
    yield text.replace("->", "→")
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        yield text.rstrip("0").rstrip(".") if "." in text else text
