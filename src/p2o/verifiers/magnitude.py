"""Numbers that math-verify takes for equal because both are small, or differ by little, compared relatively.

It rounds decimals to six places and takes a difference below about 1e-15 for none, so that 1.6e-19 is 9.1e-31 and
1/2004! is 1/2006!. Source: #14. For the workers only.
"""

from decimal import Decimal
from typing import Any

from sympy import (
    Basic,
    Dummy,
    Eq,
    Expr,
    FiniteSet,
    Float,
    Interval,
    MatrixBase,
    Pow,
    Rational,
    Tuple,
    UnevaluatedExpr,
    simplify,
)

DIGITS = 60
CLOSE = 1e-3
"""Decimals below this are compared relatively; above it six places are as good."""

_PER_CENT = UnevaluatedExpr(Rational(1, 100))


def far_apart(gold: Any, answer: Any) -> bool:
    """Whether two values that math-verify found equal are numbers, or tuples of them, that are not."""
    if isinstance(gold, Eq) and isinstance(answer, Eq) and gold.lhs != answer.lhs:
        return False  # one equation in two forms
    gold, answer = (side.rhs if isinstance(side, Eq) else side for side in (gold, answer))
    pairs = _members(gold, answer)
    if pairs is not None:
        return any(far_apart(one, other) for one, other in pairs)
    if not isinstance(gold, Expr) or not isinstance(answer, Expr) or gold == answer:
        return False
    if gold.has(_PER_CENT) or answer.has(_PER_CENT):
        return False
    try:
        one, other = gold.doit(), answer.doit()
        if one == other:
            return False
        if not (one.is_number and other.is_number):
            return _far_apart_somewhere(one, other)
        if one.has(Float) or other.has(Float):
            return _decimals_differ(one, other)
        return _values_differ(one, other)
    except MemoryError:
        raise
    except Exception:  # whatever sympy raises over an untrusted expression: the first verdict stands
        return False


def _members(gold: Any, answer: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(gold, Interval) and isinstance(answer, Interval):
        return [(gold.start, answer.start), (gold.end, answer.end)]
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return list(zip(gold.flat(), answer.flat(), strict=False))
    if isinstance(gold, Tuple) and isinstance(answer, Tuple):
        return list(zip(gold.args, answer.args, strict=False))
    if isinstance(gold, FiniteSet) and isinstance(answer, FiniteSet):
        one, other = (sorted(side.args, key=_size) for side in (gold, answer))
        return list(zip(one, other, strict=False))
    return None


def _size(member: Basic) -> float:
    try:
        return float(member.evalf(15))
    except Exception:
        return 0.0


def _values_differ(one: Expr, other: Expr) -> bool:
    """Exact values, to sixty digits. Zeros that sympy does not recognise have no digits to compare."""
    first, second = one.evalf(DIGITS), other.evalf(DIGITS)
    if not all(part.is_Float or part.is_zero for side in (first, second) for part in side.as_real_imag()):
        return False
    if any(part.is_Float and part._prec < DIGITS for side in (first, second) for part in side.as_real_imag()):
        return False
    return bool(abs(first - second) > Float(10) ** (-DIGITS // 2) * max(abs(first), abs(second)))


def _decimals_differ(one: Expr, other: Expr) -> bool:
    first, second = one.evalf(30), other.evalf(30)
    largest = max(abs(first), abs(second))
    if not largest < CLOSE or abs(first - second) <= CLOSE * largest:
        return False
    # Three digits or more that are those of the other one, rounded, are as good.
    digits = min((_digits(side) for side in (one, other) if isinstance(side, Float)), default=0)
    return digits < 3 or _rounded(first, digits) != _rounded(second, digits)


def _digits(number: Float) -> int:
    return len(Decimal(str(number)).normalize().as_tuple().digits)


def _rounded(number: Expr, digits: int) -> str:
    return f"{Decimal(str(number)):.{digits - 1}e}"


def _far_apart_somewhere(one: Expr, other: Expr) -> bool:
    """With unknowns: their values where those are small fractions. Only for exact expressions in the same unknowns."""
    unknowns = sorted(one.free_symbols, key=str)
    if one.has(Float) or other.has(Float) or one.free_symbols != other.free_symbols or not 0 < len(unknowns) <= 4:
        return False
    if max(one.count_ops(), other.count_ops()) > 60:
        return False
    place = {unknown: Rational(7 + 2 * index, 5 + index) for index, unknown in enumerate(unknowns)}
    first, second = one.subs(place).doit(), other.subs(place).doit()
    return bool(first.is_number and second.is_number and first != second and _values_differ(first, second))


def equal_where_positive(gold: Any, answer: Any) -> bool:
    """Whether two formulas with roots of their unknowns agree for positive ones: of sqrt(1/n), n is. Source: #64."""
    if not isinstance(gold, Expr) or not isinstance(answer, Expr) or gold.free_symbols != answer.free_symbols:
        return False
    if max(gold.count_ops(), answer.count_ops()) > 40 or not all(_has_root(side) for side in (gold, answer)):
        return False
    positive = {unknown: Dummy(str(unknown), positive=True) for unknown in gold.free_symbols}
    try:
        return bool(simplify(gold.doit().subs(positive) - answer.doit().subs(positive)) == 0)
    except MemoryError:
        raise
    except Exception:  # as above
        return False


def _has_root(formula: Expr) -> bool:
    return any(
        power.free_symbols and power.exp.is_Rational and not power.exp.is_Integer for power in formula.atoms(Pow)
    )
