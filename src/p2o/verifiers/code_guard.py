"""Untrusted text is never run as code: an audit hook that no code can take away again refuses it in the workers.

Scorers hand answers to `eval`, and sympy's parser does so for them. What comes out of that may be executed only if it
names nothing but numbers, one-letter variables and elementary functions, and reaches into no attribute: literals,
lists, arithmetic. Code of modules, which are imported from files, is not concerned.
"""

import collections
import dataclasses
import sys
from types import CodeType
from typing import Any

HARMLESS = frozenset(
    "Integer Float Rational Symbol Function Add Mul Pow Abs pi oo sqrt cbrt exp log ln sign factorial binomial "
    "sin cos tan cot sec csc asin acos atan acot asec acsc atan2 sinh cosh tanh coth asinh acosh atanh "
    "True False None x_1 x_2 alpha beta gamma theta".split()
)
# What sympy's parser begins with.
SYMPYS_OWN = compile("from sympy import *", "<string>", "exec")
# They make classes from names that they check.
GENERATORS = frozenset({collections.__file__, dataclasses.__file__})


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
        if event == "exec" and not is_harmless(arguments[0]):
            if sys._getframe(1).f_code.co_filename in GENERATORS:
                return
            self.refused += 1
            raise CodeRefused("Untrusted text is not run as code.")


def is_harmless(code: Any) -> bool:
    """Whether it comes from a file, or computes with numbers and symbols only."""
    if not isinstance(code, CodeType):
        return False
    if not code.co_filename.startswith("<") or code.co_filename.startswith("<frozen "):
        return True
    if (code.co_code, code.co_names, code.co_consts) == (SYMPYS_OWN.co_code, SYMPYS_OWN.co_names, SYMPYS_OWN.co_consts):
        return True
    return all(len(name) == 1 or name in HARMLESS for name in code.co_names) and not any(
        isinstance(constant, CodeType) for constant in code.co_consts
    )
