"""Whether the number that a backward rewrite asks for is determined by the rest, by solving the question again. Pure.

A solver reads the text of a question of one of reasoning-gym's families, and computes the answer. It is put to use on a
question only where its answer is the gold one. Then other values are tried in place of the number: where one of them
has the same answer, z is not determined, and neither is it where the number plays no part.
"""

import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Any

from p2o.difficulty.rewrites import Number
from p2o.verifiers.gym import own_answer
from p2o.verifiers.gym_expressions import UnreadableError, arithmetic
from p2o.verifiers.gym_readers import is_right

NEAR = 50
"""Values tried: 0 to 50, and up to 50 units of the number's last digit above and below it."""

Solver = Callable[[str], str | None]

_EXPRESSION = re.compile(r"[\d.()+*/-][\d.()+*/ -]*")
_DECIMAL = re.compile(r"(\d+)\.(\d+)")
_COMPLEX = re.compile(r"\(([^()]+)\)\s*([-+×÷])\s*\(([^()]+)\)")
_OPERATORS: dict[str, Callable[[complex, complex], complex]] = {"+": add, "-": sub, "×": mul, "÷": truediv}


def _value_of_expression(question: str) -> str | None:
    """Of the longest arithmetic expression in the text, exactly."""
    found = max(_EXPRESSION.findall(question), key=len, default="")
    text = _DECIMAL.sub(lambda m: f"({int(m[1] + m[2])}/{10 ** len(m[2])})", found.strip(" ."))
    try:
        return _decimal(arithmetic(text)[0])
    except UnreadableError:
        return None


def _decimal(value: Fraction) -> str:
    return format(Decimal(value.numerator) / Decimal(value.denominator), "f")


def _complex_result(question: str) -> str | None:
    found = _COMPLEX.search(question)
    if found is None:
        return None
    try:
        first, second = (complex(re.sub(r"\s", "", part).replace("i", "j")) for part in (found[1], found[3]))
        result = _OPERATORS[found[2]](first, second)
    except (ValueError, ZeroDivisionError):
        return None
    return f"{result.real:.6f}{result.imag:+.6f}i"


def _legs(question: str) -> str | None:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    counted = re.findall(r"(\d+) ([a-z]+(?: [a-z]+)*)(?=[,?])", question)
    animals = [(int(count), name if name in ANIMALS else name.removesuffix("s")) for count, name in counted]
    if not animals or any(name not in ANIMALS for _, name in animals):
        return None
    return str(sum(count * ANIMALS[name] for count, name in animals))


def _of_numbers(function: Callable[..., int]) -> Solver:
    def solve(question: str) -> str | None:
        found = re.search(r"numbers: (\d+(?:, \d+)*)", question)
        return str(function(*map(int, found[1].split(", ")))) if found else None

    return solve


SOLVERS: dict[str, Solver] = {
    **dict.fromkeys(("chain_sum", "basic_arithmetic", "products", "decimal_chain_sum"), _value_of_expression),
    "complex_arithmetic": _complex_result,
    "leg_counting": _legs,
    "gcd": _of_numbers(math.gcd),
    "lcm": _of_numbers(math.lcm),
}
"""By family of reasoning-gym, what reads its questions."""


def solver_of(question: str, family: str, entry: dict[str, Any]) -> Solver | None:
    """What solves this question, and finds its gold answer; None where there is nothing that does.

    Args:
        entry: reasoning-gym's own.
    """
    solve = SOLVERS.get(family)
    answer = None if solve is None or own_answer(entry) is None else solve(question)
    return solve if answer is not None and is_right(answer, family, entry) else None


def other_value(question: str, number: Number, solve: Solver) -> str | None:
    """A value in place of the number under which the question has the same answer; None where none was found."""
    answer = solve(question)
    before, after = question[: number.start], question[number.end :]
    return next((value for value in other_values(number.value) if solve(f"{before}{value}{after}") == answer), None)


def other_values(value: str) -> Iterator[str]:
    """Other values than this one, each once, with as many decimals; none in place of a fraction."""
    whole, _, decimals = value.partition(".")
    if "/" in value:
        return
    unit, own = 10 ** len(decimals), int(whole + decimals)
    tried = {own}
    for units in (*range(own - NEAR, own + NEAR + 1), *range(0, (NEAR + 1) * unit, unit)):
        if units >= 0 and units not in tried:
            tried.add(units)
            yield f"{units // unit}.{units % unit:0{len(decimals)}}" if decimals else str(units)
