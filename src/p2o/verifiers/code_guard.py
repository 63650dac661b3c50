"""Untrusted text is never run as code: an audit hook that no code can take away again refuses it in the workers.

Scorers hand answers to `eval`, and sympy's parser does so for them. What comes out of that may be executed only if it
names nothing but numbers, one-letter variables and elementary functions, and reaches into no attribute: literals,
lists, arithmetic. Modules, which are imported from files, are not concerned.
"""

import sys
from types import CodeType, FrameType
from typing import Any

HARMLESS = frozenset(
    "Integer Float Rational Symbol Function Integral Add Mul Pow Abs pi oo sqrt cbrt exp log ln sign factorial "
    "binomial sin cos tan cot sec csc asin acos atan acot asec acsc atan2 sinh cosh tanh coth asinh acosh atanh "
    "x_1 x_2 alpha beta gamma theta".split()
)
# What sympy's parser begins with.
SYMPYS_OWN = compile("from sympy import *", "<string>", "exec")
# They write code themselves, from the names of their own functions or the number of a polynomial's variables.
GENERATORS = frozenset({"collections", "dataclasses", "networkx.utils.decorators", "sympy.polys.monomials"})
IMPORTING = "<frozen importlib._bootstrap>"
# It imports what stands in its own tables, and makes functions of expressions, in files of this name.
LAMBDIFY, LAMBDIFIED = "sympy.utilities.lambdify", "<lambdifygenerated"
NUMERICAL = frozenset({"_lambdifygenerated", "mpf", "mpc", "mpi"})


class CodeRefused(Exception):
    """Untrusted text would have been run as code."""


class Guard:
    """Counts what it has refused, because a scorer may swallow the exception and go on."""

    def __init__(self) -> None:
        self.refused = 0

    def install(self) -> None:
        """For as long as this process lives."""
        sys.addaudithook(self._check)

    def _check(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "exec":
            return
        frame: FrameType | None = sys._getframe(1)
        if is_harmless(arguments[0], frame and frame.f_globals.get("__name__")):
            return
        while frame is not None:  # modules that are being imported see no text
            if frame.f_code.co_filename == IMPORTING:
                return
            frame = frame.f_back
        self.refused += 1
        raise CodeRefused("Untrusted text is not run as code.")


def is_harmless(code: Any, executed_by: str | None = None) -> bool:
    """Whether it comes from a file, or computes with numbers and symbols only.

    Args:
        executed_by: name of the module that executes it.
    """
    if not isinstance(code, CodeType):
        return False
    if not code.co_filename.startswith("<") or code.co_filename.startswith("<frozen "):
        return True
    if executed_by in GENERATORS or _parts(code) == _parts(SYMPYS_OWN):
        return True
    if executed_by == LAMBDIFY:
        if not code.co_filename.startswith(LAMBDIFIED):
            return True
        nested = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        return all(_computes(part, NUMERICAL) for part in (code, *nested))
    return _computes(code) and not any(isinstance(constant, CodeType) for constant in code.co_consts)


def _computes(code: CodeType, more: frozenset[str] = frozenset()) -> bool:
    return all(len(name) == 1 or name in HARMLESS or name in more for name in code.co_names)


def _parts(code: CodeType) -> tuple[Any, ...]:
    # Not the flags, which it has from the module that compiles it.
    return code.co_code, code.co_names, code.co_consts
