"""The rules around math-verify's verdict: what is paid although it says no, and what is not although it says yes.

For the workers only. Cheap looks at the text come first; math-verify is asked again only where a rule of notation,
units or sets has changed something.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse
from math_verify import verify as equal

from p2o.verifiers import sets
from p2o.verifiers.choices import choice, is_letters, unstyled, words
from p2o.verifiers.magnitude import equal_where_positive, far_apart
from p2o.verifiers.notation import repeating, spelled
from p2o.verifiers.numbers import based, clock, is_time, same_time, value
from p2o.verifiers.units import changes_value, conflicting, is_measure, percentage, quantity

MOST_CHARACTERS = 1000
"""Of an answer that rules are tried on."""

_MISREAD = re.compile(r"\di(?![a-zA-Z])|[<>]|\\[lg]e|\\sqrt\s*(?:\{[^{}]*)?[a-z]")
"""What math-verify reads as another thing, or compares less well than asked for in `_same`."""

# Not vectors, which are others backwards.
_NAMED_BY_POINTS = re.compile(
    r"\\(angle|measuredangle|overline|overset\{\\frown\})\s*(?:\{\s*([A-Z]{2,4})\s*\}|([A-Z]{2,4}))"
)

# Units are ours: math-verify would strike out any words at the end, "or more" as well.
_READ = [
    LatexExtractionConfig(
        boxed_match_priority=0,
        try_extract_without_anchor=False,
        normalization_config=NormalizationConfig(units=False, malformed_operators=True, boxed="last"),
    )
]


def pays(gold: str, answer: str) -> bool:
    """Whether the answer is right, asked where math-verify found the two different."""
    if not answer or max(len(gold), len(answer)) > MOST_CHARACTERS:
        return False
    wanted, said = spelled(gold), spelled(answer)
    if not wanted or not said or _cut_off(gold, answer) or _percent_of_measure(wanted, said):
        return False
    for rule in (_times, _bases, _choices, _words, _percentages, _systems, _points, _ratios, _figures, _sets):
        verdict = rule(wanted, said)
        if verdict is not None:
            return verdict
    core, core_said = quantity(wanted), quantity(said)
    if core.unit and core_said.unit and core.unit != core_said.unit:
        return False
    if _squeezed(core.core) == _squeezed(core_said.core):
        return True
    if (one := value(core.core)) is not None and (other := value(core_said.core)) is not None and one == other:
        return True
    if {core.unit, core_said.unit} & {"degree"} and r"\pi" in core.core + core_said.core:
        return _same(*(_radians(*side) for side in (core, core_said)))
    unchanged = _squeezed(core.core) == _squeezed(gold) and _squeezed(core_said.core) == _squeezed(answer)
    if unchanged and not _MISREAD.search(f"{gold} {answer}"):
        return False
    return _same(core.core, core_said.core)


def refuses(gold: str, answer: str, parsed: list[Any], found: list[Any]) -> bool:
    """Whether the answer is wrong, asked where math-verify found the two equal."""
    if gold == answer or max(len(gold), len(answer)) > MOST_CHARACTERS:
        return False
    if re.fullmatch(r"[-+]?\d+", gold) and re.fullmatch(r"[-+]?\d+", answer):
        return False
    wanted, said = spelled(gold), spelled(answer)
    if wanted == said:
        return False
    if _cut_off(gold, answer) or _percent_of_measure(wanted, said):
        return True
    for rule in (_times, _bases, _systems, _ratios, _figures):
        if rule(wanted, said) is False:
            return True
    if _untrue(said):
        return True
    if changes_value(said) and not changes_value(wanted) and len(sets.answers(wanted)) == 1:
        return True
    if conflicting(quantity(wanted).unit, quantity(said).unit):
        return True
    return any(
        far_apart(one, other)
        for one in parsed
        for other in found
        if not isinstance(one, str) and not isinstance(other, str)
    )


def _radians(core: str, unit: str) -> str:
    """Source: Khan/khan-exercises#75882."""
    return rf"\frac{{({core})\pi}}{{180}}" if unit == "degree" else core


def readable(gold: str) -> bool:
    """Whether a rule can read a gold answer that math-verify cannot parse."""
    if len(gold) > MOST_CHARACTERS:
        return False
    text = spelled(gold)
    if not text:
        return False
    if clock(text) or based(text) or choice(text) or words(text) or sets.intervals(text) or sets.assignments(text):
        return True
    parts = [percentage(part) or quantity(part).core for part in sets.answers(text)]
    return bool(parts) and all(value(part) is not None or _expressions(part) for part in parts)


def _cut_off(gold: str, answer: str) -> bool:
    """Whether one is a repeating decimal and the other one that ends. Source: huggingface/trl#2644."""
    repeats = [repeating(side) != side for side in (gold, answer)]
    ends = answer if repeats[0] else gold
    return repeats[0] != repeats[1] and bool(re.fullmatch(r"[$\s]*-?\d*\.\d+[$\s]*", ends))


def _percent_of_measure(gold: str, answer: str) -> bool:
    """Whether one is a percentage and the other a length, a sum of money, an angle or the like. Source: #60, #61."""
    percent = [percentage(side) is not None for side in (gold, answer)]
    return percent[0] != percent[1] and is_measure(quantity(answer if percent[0] else gold).unit)


def _times(gold: str, answer: str) -> bool | None:
    wanted, said = clock(gold), clock(answer)
    if wanted is None or said is None or not is_time(wanted):
        return None
    return same_time(wanted, said)


def _points(gold: str, answer: str) -> bool | None:
    """`P(2,3)` for (2,3)."""
    bare = [re.sub(r"^[A-Z]'?\s*(?=\()", "", side) for side in (gold, answer)]
    if bare == [gold, answer] or any(sets.coordinates(side) is None for side in bare):
        return None
    return pays(*bare) or _same(*bare)


def _ratios(gold: str, answer: str) -> bool | None:
    """Ratios of three numbers and more, which math-verify takes for sets. Source: MATH's and schoolbooks' golds."""
    sides = [side.split(":") for side in (gold, answer)]
    numbers = [[value(part.strip()) for part in side] for side in sides]
    if any(len(side) < 3 or None in side or not any(side) for side in numbers):
        return None
    one, other = ([number or Fraction(0) for number in side] for side in numbers)
    return len(one) == len(other) and all(a * sum(other) == b * sum(one) for a, b in zip(one, other, strict=True))


def _figures(gold: str, answer: str) -> bool | None:
    r"""Angles, arcs and segments named by their points, which math-verify multiplies: `\angle ABC` is `\angle CBA`."""
    sides = [_NAMED_BY_POINTS.fullmatch(side) for side in (gold, answer)]
    if not sides[0] or not sides[1]:
        return None
    (kind, points), (other, said) = ((side[1], side[2] or side[3]) for side in sides if side)
    # A line over three letters and more is a number of these digits.
    turned = points if kind == "overline" and len(points) > 2 else points[::-1]
    return kind == other and said in (points, turned)


def _untrue(answer: str) -> bool:
    """Whether it is an equation of numbers that differ, such as 4 = 5: none of them is the answer."""
    parts = [value(part.strip()) for part in answer.split("=")]
    return len(parts) > 1 and None not in parts and len(set(parts)) > 1


def _bases(gold: str, answer: str) -> bool | None:
    wanted, said = based(gold), based(answer)
    return None if wanted is None or said is None else wanted == said


def _choices(gold: str, answer: str) -> bool | None:
    wanted, said = choice(gold), choice(answer)
    if wanted is None:
        # The gold answer is an option's value, the letter before it the completion's own.
        return _same_value(gold, said.behind) or None if said is not None and said.behind else None
    if said is not None:
        if wanted.letters != said.letters:
            return False
        return not (wanted.behind and said.behind) or _same_value(wanted.behind, said.behind)
    return _same_value(wanted.behind, answer) if wanted.behind else None


def _same_value(gold: str, answer: str) -> bool:
    return _squeezed(gold) == _squeezed(answer) or (not is_letters(gold) and pays(gold, answer)) or _same(gold, answer)


def _words(gold: str, answer: str) -> bool | None:
    if gold.isdigit() or answer.isdigit():
        return None
    wanted, said = words(gold), words(answer)
    return True if wanted is not None and wanted == said else None


def _percentages(gold: str, answer: str) -> bool | None:
    """Source: #61. A percentage is a hundredth of its number, or the number where the question asked for per cent; the
    latter not below 1, since 0.5 may be a half."""
    wanted, said = percentage(gold), percentage(answer)
    if wanted is None and said is None:
        return None
    one, other = _exact(wanted or gold), _exact(said or answer)
    if one is not None and other is not None:
        if one == other:
            return (wanted is None) == (said is None) or abs(one) >= 1
        return one / 100 == other if said is None else one == other / 100 if wanted is None else False
    if wanted is not None and said is not None:
        return _same(wanted, said)
    if wanted is not None:
        return _same(rf"\frac{{{wanted}}}{{100}}", answer)
    return _same(gold, rf"\frac{{{said}}}{{100}}")


def _exact(text: str) -> Fraction | None:
    return value(quantity(text).core)


def _systems(gold: str, answer: str) -> bool | None:
    """Source: MATH's golds and open-r1 style wrappers. A tuple gives the unknowns in alphabetical order, or in
    that of the system."""
    wanted, said = sets.assignments(gold), sets.assignments(answer)
    if wanted is None and said is None:
        return None
    if wanted is not None and said is not None:
        return wanted.keys() == said.keys() and all(_equal_parts(wanted[name], said[name]) for name in wanted)
    values = wanted or said or {}
    coordinates = sets.coordinates(answer if said is None else gold)
    if coordinates is None or len(coordinates) != len(values):
        return None
    orders = (list(values), sorted(values))
    return any(
        all(_equal_parts(values[name], part) for name, part in zip(order, coordinates, strict=True)) for order in orders
    )


def _equal_parts(gold: str, answer: str) -> bool:
    one, other = value(gold), value(answer)
    return one == other if one is not None and other is not None else _same(gold, answer)


def _sets(gold: str, answer: str) -> bool | None:
    wanted, said = sets.intervals(gold), sets.intervals(answer)
    if wanted is not None and said is not None:
        if wanted[1] and said[1] and wanted[1] != said[1]:
            return False
        if (_squeezed(wanted[0]), _squeezed(said[0])) == (_squeezed(gold), _squeezed(answer)):
            return None
        return _squeezed(wanted[0]) == _squeezed(said[0]) or _same(wanted[0], said[0])
    if not re.search(r"\\[pm][mp]|,|;|\bor\b|\band\b|\\\{", gold + answer):
        return None
    several, several_said = sets.answers(gold), sets.answers(answer)
    if len(several) < 2 and len(several_said) < 2:
        return None
    if len(several) != len(several_said):
        return False
    return _same_members(several, several_said)


def _same_members(gold: list[str], answer: list[str]) -> bool | None:
    """Whether each answer has its own counterpart; at most six, since each is compared with each."""
    if len(gold) > 6:
        return None
    left = list(answer)
    for one in gold:
        match = next((other for other in left if _equal_parts(quantity(one).core, quantity(other).core)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _squeezed(text: str) -> str:
    """Without blanks, except between digits: 2 3/8 is not 23/8."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\\(?:left|right)(?![a-zA-Z])", "", text)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    if not text:
        return []
    try:
        return list(
            parse(rf"\boxed{{{text}}}", _READ, extraction_mode="first_match", parsing_timeout=None, raise_on_error=True)
        )
    except MemoryError:
        raise
    except Exception:  # as in p2o.verifiers.math
        return []


def _expressions(text: str) -> list[Any]:
    # math-verify sees the imaginary unit in "3 i" and not in "3i".
    return [item for item in _parsed(re.sub(r"(?<=\d)i(?![a-zA-Z])", " i", text)) if not isinstance(item, str)]


def _same(gold: str, answer: str) -> bool:
    """What math-verify says about text of which our rules have made TeX."""
    one, other = _expressions(gold), _expressions(answer)
    if not one or not other:
        return _squeezed(unstyled(gold)) == _squeezed(unstyled(answer))
    if equal(one, other, allow_set_relation_comp=True, timeout_seconds=None):
        return not far_apart(one[0], other[0])
    return "sqrt" in gold and "sqrt" in answer and equal_where_positive(one[0], other[0])
