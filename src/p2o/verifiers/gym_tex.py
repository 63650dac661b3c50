r"""TeX and Markdown of short answers as plain text: string work only, in time linear in the text for each pass."""

import re

MOST_PASSES = 8

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)\n?[ \t]*```", re.DOTALL)
_ENCLOSED = re.compile(
    r"(?:\*\*([^*]+)\*\*|\*([^*]+)\*|`([^`]+)`|\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:(?!\\\)).)+)\\\)|"
    r"\\\[((?:(?!\\\]).)+)\\\]|<answer>(.+)</answer>)",
    re.DOTALL | re.IGNORECASE,
)
_COMMAND = r"\\(?:boxed|fbox|text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|mathtt|emph|operatorname)"
_WHOLE_GROUP = re.compile(rf"{_COMMAND}\s*\{{(.*)\}}", re.DOTALL)
_GROUP = re.compile(rf"{_COMMAND}\s*\{{([^{{}}]*)\}}")
_INTRODUCTION = re.compile(
    r"(?:(?:the|my) )?(?:final )?answer(?: is)?\s*:?\s+(?=\S)|(?:final )?answer:\s*", re.IGNORECASE
)

_SIGNS = {
    "times": "×",
    "cdot": "·",
    "ast": "*",
    "div": "÷",
    "to": "→",
    "rightarrow": "→",
    "Rightarrow": "→",
    "longrightarrow": "→",
    "implies": "→",
    "leftrightarrow": "↔",
    "Leftrightarrow": "↔",
    "iff": "↔",
    "land": "∧",
    "wedge": "∧",
    "lor": "∨",
    "vee": "∨",
    "neg": "¬",
    "lnot": "¬",
    "approx": "≈",
    "circ": "°",
    "angle": "∠",
    "pi": "pi",
    "quad": " ",
    "qquad": " ",
}
_DROPPED = r"\\(?:left|right|displaystyle|[bB]igg?[lr]?|limits)(?![A-Za-z])|\\!"
_FUNCTIONS = "arcsin arccos arctan asin acos atan sinh cosh tanh sqrt sin cos tan cot sec csc exp log ln".split()
_TOKEN = re.compile(rf"\s*(?:(\d+(?:\.\d+)?|\.\d+)|({'|'.join(_FUNCTIONS)}|pi|[A-Za-z])|(\*\*|[-+*/()]))")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def unwrapped(text: str) -> str:
    r"""The answer without what encloses all of it: emphasis, code, `$…$`, `\boxed{…}`, `\text{…}`, "The answer is"."""
    text = text.strip()
    for _ in range(MOST_PASSES):
        found = _FENCE.fullmatch(text) or _ENCLOSED.fullmatch(text)
        inner = next((group for group in found.groups() if group is not None), None) if found else None
        if inner is None:
            group = _WHOLE_GROUP.fullmatch(text)
            inner = group[1] if group and _is_balanced(group[1]) else _INTRODUCTION.sub("", text, count=1)
            if group is None and not _INTRODUCTION.match(text):
                inner = text
        inner = inner.strip() if found is None or "\n" not in inner else inner.strip("\n")
        if inner == text:
            break
        text = inner
    return text


def _is_balanced(text: str) -> bool:
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0


def plain(text: str) -> str:
    """The text with TeX's spaces, signs, fractions and escapes written out; other commands stay as they are."""
    text = re.sub(_DROPPED, "", text.replace("−", "-").replace("–", "-").replace("∗", "*"))
    for _ in range(MOST_PASSES):
        before = text
        text = _GROUP.sub(r"\1", text)
        text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", _quotient, text)
        if text == before:
            break
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2", text).replace("{,}", ",")
    text = re.sub(r"\\([A-Za-z]+)", lambda found: _SIGNS.get(found[1], found[0]), text)
    text = re.sub(r"\^\s*(?:\{\s*°\s*\}|°)", "°", text)
    text = re.sub(r"\\[,;:> ]|[\u00a0\u2009\u202f~]", " ", text)
    return re.sub(r"\\([_{}%#&$])", r"\1", text)


def _quotient(found: re.Match[str]) -> str:
    above, below = (
        part if re.fullmatch(r"\d+|[A-Za-z]", part) else f"({part})" for part in map(str.strip, found.groups())
    )
    return f"{above}/{below}" if f"{above}{below}".isdigit() else f"({above}/{below})"


def plain_formula(text: str) -> str | None:
    """A formula as Python writes it, from TeX or handwriting such as `2x^2 sin(x)`; None where it is no formula.

    Products without a sign get one. A number after a letter (`x2`) is ambiguous, and none.
    """
    text = plain(text)
    for _ in range(MOST_PASSES):
        before = text
        text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", text)
        text = re.sub(r"(?:\^|\*\*)\s*\{([^{}]*)\}", r"**(\1)", text)
        text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        if text == before:
            break
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"**({found[0].translate(_SUPERSCRIPTS)})", text)
    text = re.sub(rf"\\({'|'.join(_FUNCTIONS)})(?![A-Za-z])", r" \1", text)
    text = re.sub(r"[×·]", "*", text.replace("÷", "/").replace("^", "**")).replace("{", "(").replace("}", ")")
    return _with_signs(text.strip().rstrip("."))


def _with_signs(text: str) -> str | None:
    # "2xy" is a product, a word is none; and two lines are not one formula.
    if "\n" in text or re.search(r"[A-Za-z]{3,}", re.sub("|".join((*_FUNCTIONS, "pi")), " ", text)):
        return None
    written: list[str] = []
    position, before = 0, ""
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        number, name, sign = token.groups()
        is_function = name in _FUNCTIONS
        starts = number or name or sign == "("
        if starts and before in ("number", "name", ")"):
            if number and before != ")":
                return None
            written.append("*")
        if is_function:
            written.append({"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log"}.get(name, name))
        else:
            written.append({"e": "E"}.get(name, name) if name else number or sign)
        before = "function" if is_function else "number" if number else "name" if name else sign
        position = token.end()
        position += len(text[position:]) - len(text[position:].lstrip())
    return "".join(written)
