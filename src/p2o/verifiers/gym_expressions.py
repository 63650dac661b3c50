"""Arithmetic and formulas read from untrusted text without evaluating it: small syntax trees of a few kinds of nodes.

Python's own parser makes the tree; what is not listed here (names, calls, attributes, strings, …) is refused, and so is
what would take long: nothing here can run code, and no number grows beyond a few thousand digits.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

MOST_CHARACTERS = 16_000
MOST_DEPTH = 400  # a sum is as deep as it has terms
MOST_BITS = 4_096
MOST_EXPONENT = 100

_ARITHMETIC: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_BITWISE: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_FUNCTIONS = frozenset(
    "sqrt exp log ln sin cos tan cot sec csc asin acos atan acot sinh cosh tanh coth asinh acosh atanh Abs".split()
)
_SYMBOL = re.compile(r"[A-Za-z](?:_?[0-9A-Za-z])?")


class UnreadableError(ValueError):
    """The text is no expression of the kind that is expected, or too large a one."""


def syntax_tree(text: str) -> ast.expr:
    """The expression's syntax tree; nothing is evaluated.

    Raises:
        UnreadableError: no expression, longer than 16,000 characters or nested deeper than 400.
    """
    if len(text) > MOST_CHARACTERS:
        raise UnreadableError(f"longer than {MOST_CHARACTERS} characters")
    if "#" in text:  # what follows would be a comment, and overlooked
        raise UnreadableError("a comment in it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "invalid decimal literal" and the like
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadableError(f"no expression ({type(error).__name__})") from None
    level = [tree]
    for _ in range(MOST_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if not level:
            return tree
    raise UnreadableError(f"nested deeper than {MOST_DEPTH}")


def arithmetic(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of whole numbers joined by + - * / and parentheses, and the numbers in the order of the text.

    Raises:
        UnreadableError: anything else in it, a division by zero, numbers above 4,096 bits.
    """
    used: list[int] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return _bounded(Fraction(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            return value(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Div) and right == 0:
                raise UnreadableError("a division by zero")
            return _bounded(_ARITHMETIC[type(node.op)](left, right))
        raise UnreadableError(f"{type(node).__name__} in it")

    return value(syntax_tree(text)), used


def bitwise(text: str) -> int:
    """The value of whole numbers in any base joined by + - * << >> & | ^ ~.

    Raises:
        UnreadableError: anything else in it, or numbers above 4,096 bits.
    """

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub | ast.Invert):
            operand = value(node.operand)
            return {ast.UAdd: operand, ast.USub: -operand, ast.Invert: ~operand}[type(node.op)]
        if isinstance(node, ast.BinOp) and type(node.op) in _BITWISE:
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.LShift | ast.RShift) and not 0 <= right <= MOST_BITS:
                raise UnreadableError("a shift that is negative or too large")
            return int(_bounded(Fraction(_BITWISE[type(node.op)](left, right))))
        raise UnreadableError(f"{type(node).__name__} in it")

    return value(syntax_tree(text))


def formula(text: str, variable: str | None = None) -> Any:
    """The sympy expression of a formula, built node by node: numbers, symbols, + - * / **, elementary functions.

    What sympy simplifies by itself (2*x + 3*x) it does here as well; nothing is expanded. `E`, `pi` and `I` are the
    constants, every other name of one letter or two is a symbol.

    Raises:
        UnreadableError: anything else in it, or powers that would grow beyond measure.
    """
    import sympy

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            written = ast.get_source_segment(text.strip(), node)
            _bounded(Fraction(node.value) if isinstance(node.value, int) else Fraction(1))
            return sympy.Integer(node.value) if isinstance(node.value, int) else sympy.Float(written)
        if isinstance(node, ast.Name):
            if node.id != variable and node.id in ("E", "pi", "I"):
                return getattr(sympy, node.id)
            if not _SYMBOL.fullmatch(node.id):
                raise UnreadableError(f"the name {node.id!r} in it")
            return sympy.Symbol(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
            return -value(node.operand) if isinstance(node.op, ast.USub) else value(node.operand)
        if isinstance(node, ast.BinOp):
            return _combine(node.op, value(node.left), value(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            if len(node.args) != 1 or node.keywords:
                raise UnreadableError(f"{node.func.id} of other than one argument")
            return getattr(sympy, node.func.id)(value(node.args[0]))
        raise UnreadableError(f"{type(node).__name__} in it")

    return value(syntax_tree(text))


def _combine(kind: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(kind, ast.Add):
        return left + right
    if isinstance(kind, ast.Sub):
        return left - right
    if isinstance(kind, ast.Mult):
        return left * right
    if isinstance(kind, ast.Div):
        return left / right
    if not isinstance(kind, ast.Pow):
        raise UnreadableError(f"{type(kind).__name__} in it")
    if not right.free_symbols and not (right.is_real and abs(right) <= MOST_EXPONENT):
        raise UnreadableError(f"an exponent above {MOST_EXPONENT}")
    if not left.free_symbols and not left.is_zero and not abs(_logarithm(left) * right) <= MOST_BITS:
        raise UnreadableError(f"a number of more than {MOST_BITS} bits")
    if left.is_Rational and right.is_Rational:
        _bounded(Fraction(2) ** (int(max(abs(left.p), left.q)).bit_length() * (int(abs(right)) + 1)))
    return left**right


def _logarithm(number: Any) -> Any:
    import sympy

    return sympy.log(number).evalf(5)


def _bounded(number: Fraction) -> Fraction:
    if max(abs(number.numerator), number.denominator).bit_length() > MOST_BITS:
        raise UnreadableError(f"a number of more than {MOST_BITS} bits")
    return number


@cache
def integrand(text: str, variable: str) -> Any:
    """The formula that an antiderivative must have for its derivative; cached, as every rollout asks for it."""
    return formula(text, variable)


def is_antiderivative(answer: str, of: str, variable: str) -> bool:
    """Whether the derivative of one formula by the variable is the other.

    Raises:
        UnreadableError: either is no formula of the kind that [`formula`] reads.
    """
    import sympy

    difference = sympy.diff(formula(answer, variable), sympy.Symbol(variable)) - integrand(of, variable)
    # Most right answers need no more than the first, which takes a tenth of the time.
    return bool(sympy.expand(difference) == 0 or sympy.simplify(difference) == 0)
