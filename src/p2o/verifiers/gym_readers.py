"""Whether an answer to a reasoning-gym question is right; text is read here and never evaluated.

Scorers of reasoning-gym that hand the text (or a field of the entry) to `eval` or to sympy's parser are not called:
[`EVALUATING`] lists them, and a reader below decides by their rule. Others look for the answer inside the text, or give
full marks to something else than the answer; they have a reader, or see only text of the form in [`GRAMMARS`].
"""

import ast
import json
import math
import re
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from reasoning_gym.factory import create_dataset

from p2o.verifiers.answers import GoldError
from p2o.verifiers.gym_audit import evaluating_calls
from p2o.verifiers.gym_expressions import arithmetic, bitwise, formula, is_antiderivative

Entry = dict[str, Any]

EVALUATING = {
    "binary_matrix": "eval of the answer",
    "n_queens": "eval of the answer",
    "spiral_matrix": "eval of the answer",
    "string_insertion": "eval of the answer",
    "countdown": "sympy's parse_expr of the answer",
    "puzzle24": "sympy's parse_expr of the answer",
    "simple_integration": "sympy's parse_expr of the answer and of the entry's integrand",
    "intermediate_integration": "sympy's parse_expr of the answer and of the entry's integrand",
    "polynomial_multiplication": "sympy's parse_expr of the answer and of the entry's answer",
    "bitwise_arithmetic": "eval of the entry's problem",
    "number_sorting": "eval of the entry's answer",
}
"""By family, what reasoning-gym's scorer evaluates. Every one has a reader in [`READERS`]."""

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
_GROUPED = r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?"
_WORDS = r"[^\W\d_]+(?:[ \t'’-]+[^\W\d_]+)*"

# What an answer looks like where their scorer would overlook the rest of it, or take what is long for a loop.
GRAMMARS = {
    "advanced_geometry": rf"\(?\s*{_NUMBER}\s*(?:,\s*{_NUMBER}\s*\)?|°)?",
    "arc_agi": r"[\d\s]+",
    "chain_sum": rf"\s*(?:{_NUMBER}|{_GROUPED})\s*",
    "coin_flip": rf"\s*(?:{_NUMBER}|[+-]?\d+\s*/\s*\d+)\s*",
    "cryptarithm": r"\s*[A-Za-z]\s*=\s*\d\s*(?:,\s*[A-Za-z]\s*=\s*\d\s*)*",
    "kakurasu": r"[01\s|,\[\]]+",
    "knights_knaves": r"[^\W\d_](?:[^\W\d_]|[\s.,;:'’-])*",
    "number_format": rf"\s*(?:{_NUMBER}|{_GROUPED})\s*",
    "pool_matrix": rf"\s*{_NUMBER}(?:\s+{_NUMBER})*\s*",
    "power_function": rf"\s*{_NUMBER}\s*",
    "products": rf"\s*(?:{_NUMBER}|{_GROUPED})\s*",
    "propositional_logic": r"[A-Z()\s¬∧∨→↔]{1,1000}",
    "quantum_lock": r"\s*[A-Ca-c](?:[\s,→>-]*[A-Ca-c])*\s*",
    "rearc": r"[\d\s]+",
    "rubiks_cube": r"\s*(?:\d?[LRDUBFXYZMES]w?'?\d?(?:\s+|\Z)){1,2000}",
    "rush_hour": r"\s*[A-Z][+-]\d{1,2}(?:[\s,]+[A-Z][+-]\d{1,2}){0,999}\s*",
    "sokoban": r"[LDRU\s,]{1,5000}",
    "survo": r"[\d\s|,+-]+",
    "tower_of_hanoi": r"(?:\s*Move disk \d{1,4} from Peg \d{1,4} to Peg \d{1,4}[ \t.]*(?:\n|\Z)){1,5000}",
}


# Questions of every level are scored with one set of settings; this family knows no words of other lengths.
_SETTINGS: dict[str, dict[str, int]] = {"word_ladder": {"min_word_length": 3, "max_word_length": 5}}


@cache
def scorer(family: str) -> Callable[[str, Entry], float]:
    """reasoning-gym's own, with settings that fit questions of any level.

    Raises:
        GoldError: it evaluates text, and there is no reader of ours.
    """
    if calls := evaluating_calls(family):
        raise GoldError(_refusal(family, calls))
    return create_dataset(family, **_SETTINGS.get(family, {})).score_answer


def why_refused(family: str) -> str | None:
    """Why answers to a family cannot be scored, None where they can: its scorer evaluates text, and has no reader."""
    calls = set() if family in READERS else evaluating_calls(family)
    return _refusal(family, calls) if calls else None


def _refusal(family: str, calls: set[str]) -> str:
    return f"reasoning-gym's scorer of {family} runs text as code ({', '.join(sorted(calls))}), and p2o has none for it"


@cache
def _grammar(family: str) -> re.Pattern[str] | None:
    return re.compile(GRAMMARS[family]) if family in GRAMMARS else None


def is_right(answer: str, family: str, entry: Entry) -> bool:
    """Whether the answer, as it stands, earns full marks. The entry may be changed by the scorer.

    Raises:
        Exception: of any kind, what a scorer of reasoning-gym or a reader stumbles over, in the answer or in the entry.
    """
    if family in READERS:
        return READERS[family](answer, entry)
    grammar = _grammar(family)
    if grammar and not grammar.fullmatch(answer):
        return False
    if family in ("arc_agi", "rearc"):  # JSON has no tuples, and these two compare grids with `==`
        entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    return scorer(family)(answer, entry) >= 1.0


# -- texts that must be equal ----------------------------------------------------------------------------------------


def _equal(answer: str, entry: Entry) -> bool:
    return answer == entry["answer"]


def _equal_stripped(answer: str, entry: Entry) -> bool:
    return answer.strip() == entry["answer"].strip()


def _equal_in_any_case(answer: str, entry: Entry) -> bool:
    return answer.strip().lower() == entry["answer"].strip().lower()


def _equal_without_spaces(answer: str, entry: Entry) -> bool:
    return answer.replace(" ", "").strip().lower() == entry["answer"].strip().lower()


def _n_queens(answer: str, entry: Entry) -> bool:
    return answer in entry["metadata"]["valid_answers"]


def _words_in_order(answer: str, entry: Entry) -> bool:
    return [word.strip() for word in re.split(r",\s*", answer)] == entry["metadata"]["sorted_words"]


# -- numbers ---------------------------------------------------------------------------------------------------------


def _all_numbers(numbers: list[int], value: Any, entry: Entry, target: int) -> bool:
    return value == target and sorted(numbers) == sorted(entry["metadata"]["numbers"])


def _countdown(answer: str, entry: Entry) -> bool:
    value, numbers = arithmetic(answer)
    return _all_numbers(numbers, value, entry, entry["metadata"]["target"])


def _puzzle24(answer: str, entry: Entry) -> bool:
    # Theirs takes any four numbers, so that one expression would answer every question.
    value, numbers = arithmetic(answer)
    return _all_numbers(numbers, value, entry, 24)


def _bitwise_arithmetic(answer: str, entry: Entry) -> bool:
    return int(answer, 0) == bitwise(entry["metadata"]["problem"])


def _complex_arithmetic(answer: str, entry: Entry) -> bool:
    # Golds are rounded to two decimals, the result in the metadata is not. Theirs pays "nan".
    text = answer.replace(" ", "").lower()
    while len(text) > 1 and text[0] == "(" and text[-1] == ")":
        text = text[1:-1]
    text = re.sub(r"(?<![\d.])[ij]$", "1j", text.replace("i", "j"))
    if not re.fullmatch(rf"{_NUMBER}j?|{_NUMBER}[+-](?:\d+(?:\.\d*)?|\.\d+)j", text):
        return False
    return abs(complex(text) - complex(*entry["metadata"]["result"])) <= 0.01


def _polynomial_equations(answer: str, entry: Entry) -> bool:
    # Theirs drops what is no number, and then anything answers an equation without solutions.
    parts = answer.strip().strip("\"'").split(",")
    if not any(part.strip() for part in parts):
        return entry["answer"] == ""
    if not all(re.fullmatch(rf"\s*{_NUMBER}\s*", part) for part in parts):
        return False
    return scorer("polynomial_equations")(answer.strip().strip("\"'"), entry) >= 0.99  # they are rounded


def _gsm_symbolic(answer: str, entry: Entry) -> bool:
    # Theirs takes the first number of any text; here there is one, with words or a currency around it.
    if len(answer) > 200:
        return False
    around = rf"(?:{_WORDS}|[$€£:=])?"
    found = re.fullmatch(rf"\s*{around}\s*{around}\s*(-?\d+(?:\.\d+)?)\s*(?:{_WORDS}|[%°€£])?\s*\.?\s*", answer)
    return found is not None and float(found[1]) == float(entry["answer"])


def _fraction_simplification(answer: str, entry: Entry) -> bool:
    text = answer.strip().strip("$").strip()
    found = re.fullmatch(r"\\d?frac\s*{\s*(\d+)\s*}\s*{\s*(\d+)\s*}|(\d+)\s*/\s*(\d+)", text)
    wanted = [entry["metadata"]["simplified_numerator"], entry["metadata"]["simplified_denominator"]]
    return found is not None and [int(number) for number in found.groups() if number] == wanted


def _calendar_arithmetic(answer: str, entry: Entry) -> bool:
    if re.fullmatch(r"[+-]?\d{1,9}", entry["answer"].strip()):
        return re.fullmatch(r"[+-]?\d{1,9}", answer.strip()) is not None and int(answer) == int(entry["answer"])
    return _equal_stripped(answer, entry) or (
        entry["metadata"]["task"] == "is_leap_year" and _equal_in_any_case(answer, entry)
    )


def _time_intervals(answer: str, entry: Entry) -> bool:
    # Theirs gives 0.99 and more for what is minutes or days off.
    task, texts = entry["metadata"]["task_type"], (answer, entry["answer"])
    if task == "date":
        days = [re.fullmatch(r"\s*(-?\d{1,9})(?:\s+days?)?\s*", text) for text in texts]
        return all(days) and len({int(found[1]) for found in days if found}) == 1
    before = "" if task.startswith("time") else r"(-?\d{1,9})\s*days?,\s*"
    pattern = re.compile(rf"\s*{before}(\d{{1,4}}):(\d{{1,2}})(?::(\d{{1,2}})(?:\.(\d{{1,9}}))?)?\s*")
    spans = [pattern.fullmatch(text) for text in texts]
    return all(spans) and len({_span(found, bool(before)) for found in spans if found}) == 1


def _span(found: re.Match[str], with_days: bool) -> timedelta:
    days, (hours, minutes, seconds, fraction) = (found[1], found.groups()[1:]) if with_days else (0, found.groups())
    return timedelta(
        days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(f"{seconds or 0}.{fraction or 0}")
    )


# -- formulas --------------------------------------------------------------------------------------------------------


def _integration(answer: str, entry: Entry) -> bool:
    # Quoted, it is a formula to sympy, which reads texts in sums.
    return is_antiderivative(answer.strip().strip("\"'"), entry["metadata"]["integrand"], entry["metadata"]["variable"])


def _polynomial_multiplication(answer: str, entry: Entry) -> bool:
    return bool(formula(answer) == formula(entry["answer"]))


# -- lists and maps --------------------------------------------------------------------------------------------------


def _game_of_life(answer: str, entry: Entry) -> bool:
    # Theirs does not see rows or cells beyond the board's.
    return bool(json.loads(answer) == json.loads(entry["answer"]))


def _number_sorting(answer: str, entry: Entry) -> bool:
    found, wanted = json.loads(answer.replace("'", '"')), ast.literal_eval(entry["answer"])
    if not isinstance(found, list) or len(found) != len(wanted):
        return False
    numbers, gold = [float(item) for item in found], [float(item) for item in wanted]
    if not all(map(math.isfinite, numbers)):  # NaN is in order everywhere, and equal to all within a tolerance
        return False
    in_order = numbers == sorted(numbers, reverse=entry["metadata"]["direction"] != "ascending")
    return in_order and all(abs(a - b) <= 1 for a, b in zip(numbers, gold, strict=True))


def _graph_color(answer: str, entry: Entry) -> bool:
    coloring = json.loads(answer)
    vertices = {str(vertex) for vertex in entry["metadata"]["puzzle"]["vertices"]}
    return set(coloring) == vertices and scorer("graph_color")(answer, entry) >= 1.0


def _jugs(answer: str, entry: Entry) -> bool:
    moves = json.loads(answer)
    if not all(re.fullmatch(r"(?:fill|empty) [A-Z]|pour [A-Z]->[A-Z]", move) for move in moves):
        return False
    return scorer("jugs")(answer, entry) >= 1.0


def _boxnet(answer: str, entry: Entry) -> bool:
    plan = json.loads(answer)
    square = r"square\[\s*[\d.]{1,6},\s*[\d.]{1,6}\s*\]"
    move, agent = (
        rf"move\(box_\w{{1,20}},\s(?:{square}|target_\w{{1,20}})\)",
        r"Agent\[\s*[\d.]{1,6},\s*[\d.]{1,6}\s*\]",
    )
    for step in plan:
        if not all(re.fullmatch(agent, name) and re.fullmatch(move, action) for name, action in step.items()):
            return False
    return scorer("boxnet")(answer, entry) >= 1.0


READERS: dict[str, Callable[[str, Entry], bool]] = {
    "binary_matrix": _equal,
    "bitwise_arithmetic": _bitwise_arithmetic,
    "boxnet": _boxnet,
    "calendar_arithmetic": _calendar_arithmetic,
    "complex_arithmetic": _complex_arithmetic,
    "countdown": _countdown,
    # Theirs gives full marks for ten matching letters.
    "figlet_font": _equal_without_spaces,
    "fraction_simplification": _fraction_simplification,
    "game_of_life": _game_of_life,
    # Theirs compares `bool("False")` with `bool("True")`: any text would be right.
    "game_of_life_halting": _equal_in_any_case,
    "graph_color": _graph_color,
    "gsm_symbolic": _gsm_symbolic,
    "intermediate_integration": _integration,
    "jugs": _jugs,
    # Theirs overlooks what comes after the right words or letters.
    "letter_jumble": _equal_in_any_case,
    "n_queens": _n_queens,
    "number_sorting": _number_sorting,
    "polynomial_equations": _polynomial_equations,
    "polynomial_multiplication": _polynomial_multiplication,
    "puzzle24": _puzzle24,
    "simple_integration": _integration,
    "spell_backward": _equal_in_any_case,
    "spiral_matrix": _equal_stripped,
    "string_insertion": _equal,
    "time_intervals": _time_intervals,
    "word_sorting": _words_in_order,
}
