"""How questions of the embedded world are worked: the methods, line by line, right and wrong ones. Pure.

Every method can be applied to every family, as a model that follows any instruction would, and fails on families whose
method it is not. Some lines are *demanding*: products, and sums of the parts of complex numbers, marked `re:` and
`im:`. A model that has not learnt to take care in them slips, so that a method with many of them fails under the best
instruction until it has.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Tool = Literal["calculator", "estimator"]
Method = Literal["left to right", "signs apart", "products first", "four parts", "real and imaginary", "rounded"] | Tool
Demanding = Literal["product", "re", "im"]
Written = Callable[[Demanding | None, int], int]
"""What is written as the result of a line: of its kind, None for one that is not demanding, and of the right result."""

METHODS: tuple[Method, ...] = (
    "left to right",
    "signs apart",
    "products first",
    "four parts",
    "real and imaginary",
    "rounded",
)
RIGHT_METHODS: dict[str, tuple[Method, ...]] = {
    "chain_sum": ("left to right", "signs apart"),
    "basic_arithmetic": ("products first",),
    "complex_arithmetic": ("four parts",),
    "complex_sum": ("real and imaginary",),
    "decimal_chain_sum": ("left to right", "signs apart"),
    "products": (),
}


@dataclass(frozen=True)
class Work:
    """The result of a method: its lines and its answer."""

    lines: tuple[str, ...]
    answer: str


def as_is(kind: Demanding | None, result: int) -> int:
    return result


def chain(expression: str) -> tuple[list[int], list[str]]:
    """Numbers and operators of `3 - 4 * -2`; decimals come in tenths."""
    parts = expression.replace(".", "").split(" ")
    return [int(part) for part in parts[::2]], parts[1::2]


def is_plain_expression(expression: str, easy: bool) -> bool:
    """No parentheses; a hard one has two products or more, no run of four factors, and precedence matters."""
    if "(" in expression:
        return False
    if easy:
        return True
    runs = [run.count("*") for run in re.split(r" [+-] ", expression)]
    numbers, operators = chain(expression)
    left_to_right, right = _Lines().fold(numbers, operators), eval(expression)
    return sum(runs) >= 2 and max(runs) <= 2 and left_to_right != right


def tenths(value: int) -> str:
    return f"{'-' if value < 0 else ''}{abs(value) // 10}.{abs(value) % 10}"


def format_complex(real: int, imaginary: int) -> str:
    return f"{real}{'-' if imaginary < 0 else '+'}{abs(imaginary)}i"


class _Lines:
    """Lines of work as they are written down, one operation each."""

    def __init__(self, written: Written = as_is, text: Callable[[int], str] = str) -> None:
        self.lines: list[str] = []
        self.written, self.text = written, text

    def line(self, a: int, operator: str, b: int, kind: Demanding | None = None) -> int:
        result = self.written(kind, a + b if operator == "+" else a - b if operator == "-" else a * b)
        part = f"{kind}: " if kind in ("re", "im") else ""
        self.lines.append(f"{part}{self.text(a)}{operator}{self.text(b)}={self.text(result)}")
        return result

    def fold(self, numbers: Sequence[int], operators: Sequence[str], kind: Demanding | None = None) -> int:
        total = numbers[0]
        for operator, number in zip(operators, numbers[1:], strict=True):
            total = self.line(total, operator, number, kind)
        return total


def work(family: str, entry: dict[str, Any], method: Method, written: Written = as_is) -> Work:
    """Applies `method` to the question: in full if it is one of the family's right ones, else a few plausible lines.

    Args:
        written: what stands at the end of each line, on which later lines go on; for wrong methods the right result.
    """
    metadata = entry["metadata"]
    if method not in RIGHT_METHODS[family]:
        return _wrong(method, *_numbers(family, metadata))
    lines = _Lines(written, tenths if family == "decimal_chain_sum" else str)
    if method == "four parts":
        answer = _four_parts(lines, [int(x) for x in (*metadata["num1"], *metadata["num2"])], metadata["operation"])
    elif method == "real and imaginary":
        signs = metadata["signs"]
        real, imaginary = zip(*metadata["numbers"], strict=True)
        answer = format_complex(lines.fold(real, signs, "re"), lines.fold(imaginary, signs, "im"))
    else:
        numbers, operators = chain(metadata["expression"])
        by = {"left to right": lines.fold, "signs apart": _by_sign(lines), "products first": _products(lines)}
        answer = lines.text(by[method](numbers, operators))
    return Work(tuple(lines.lines), answer)


def _by_sign(lines: _Lines) -> Callable[[list[int], list[str]], int]:
    """What is added and what is taken away, each in one sum, and then the difference."""

    def total(numbers: list[int], operators: list[str]) -> int:
        signed = list(zip(["+", *operators], numbers, strict=True))
        plus, minus = ([n for sign, n in signed if sign == which] for which in "+-")
        added = lines.fold(plus, ["+"] * (len(plus) - 1))
        return lines.line(added, "-", lines.fold(minus, ["+"] * (len(minus) - 1))) if minus else added

    return total


def _products(lines: _Lines) -> Callable[[list[int], list[str]], int]:
    def total(numbers: list[int], operators: list[str]) -> int:
        terms, signs = [numbers[0]], []
        for operator, number in zip(operators, numbers[1:], strict=True):
            if operator == "*":
                terms[-1] = lines.line(terms[-1], "*", number, "product")
            else:
                terms.append(number)
                signs.append(operator)
        return lines.fold(terms, signs)

    return total


def _four_parts(lines: _Lines, parts: list[int], operation: str) -> str:
    a, b, c, d = parts
    if operation != "*":
        return format_complex(lines.line(a, operation, c), lines.line(b, operation, d))
    real = lines.line(lines.line(a, "*", c, "product"), "-", lines.line(b, "*", d, "product"), "re")
    imaginary = lines.line(lines.line(a, "*", d, "product"), "+", lines.line(b, "*", c, "product"), "im")
    return format_complex(real, imaginary)


# -- wrong methods ---------------------------------------------------------------------------------------------------


def _numbers(family: str, metadata: dict[str, Any]) -> tuple[list[int], list[str]]:
    """The question as plain numbers with operators between them, as a method for another family reads it."""
    if family == "complex_arithmetic":
        return [int(x) for x in (*metadata["num1"], *metadata["num2"])], ["+"] * 3
    if family == "complex_sum":
        return [number[0] for number in metadata["numbers"]], metadata["signs"]
    numbers, operators = chain(metadata["expression"])
    return numbers, ["+"] * len(operators) if family == "products" else operators


def _first_digits(numbers: list[int]) -> list[int]:
    return [int(str(abs(n))[0]) for n in numbers]


def _wrong(method: Method, numbers: list[int], operators: list[str]) -> Work:
    lines = _Lines()
    digits = _first_digits(numbers)
    a, b, c, d = (digits + digits[:1] * (4 - len(digits)))[:4]
    if method in ("left to right", "signs apart"):
        total = lines.fold(numbers[:4], operators[:3]) if method == "left to right" else lines.line(a + b, "-", c + d)
    elif method == "rounded":
        tens = [round(n / 10) * 10 for n in numbers[:3]]
        total = lines.fold(tens, ["+" if op == "*" else op for op in operators[: len(tens) - 1]])
    elif method == "products first":
        total = lines.line(lines.line(a, "*", b), "+", c)
    elif method == "four parts":
        total = lines.line(lines.line(a, "*", c), "-", lines.line(b, "*", d))
    else:
        total = lines.line(lines.line(a, "+", b), "+", c)
    return Work(tuple(lines.lines), str(total))
