r"""Sets of solutions in one form: inequalities as intervals, ± as two answers, systems by their unknowns.

Pure functions over text that [`notation.spelled`][p2o.verifiers.notation.spelled] has gone over.

Source: #14, #25 and open-thoughts/OpenThoughts-Agent#129 (intervals), EleutherAI/lm-evaluation-harness#2212 ("or"),
#47 ("and"), NousResearch's open-r1 style wrappers (`cases`).
"""

import re

_NAME = r"(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?'?(?:\(\s*\\?[a-zA-Z]+\s*\))?)"
_SIGNS = {r"\leq": "≤", r"\geq": "≥", r"\neq": "≠"}
_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
_OR = re.compile(r",?\s*(?:\\text\s*\{\s*,?\s*or\s*\}|(?:\\(?:quad|;|,))*\s*\bor\b|\\lor\b|\\vee\b|;)\s*|\\cup")
_AND = re.compile(r",?\s*(?:\\text\s*\{\s*,?\s*and\s*\}|\band\b|\\land\b|\\wedge\b)\s*|,")
_LIST = re.compile(r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|\b(?:and|or)\b|\\lor\b|\\vee\b)\s*|[,;]")
_ALL = re.compile(
    r"(?:\\text\s*\{\s*(?:all\s+)?(?:real numbers?|reals)\s*\}|(?:all\s+)?(?:real numbers|reals)|\\mathbb\{R\})"
)
_SYSTEM = re.compile(
    r"(?:\\\{|\\left\\\{)?\s*\\begin\{(cases|array|aligned)\}(?:\{[lcr]*\})?(.*)\\end\{\1\}(?:\\right\.)?", re.DOTALL
)
_SUCH_THAT = re.compile(rf"\\\{{\s*({_NAME})\s*(?:\\in\s*\\mathbb\{{R\}}\s*)?(?:\\mid|\||:|\\vert)\s*(.+)\\\}}")
_REALS_BUT = re.compile(
    rf"(?:({_NAME})\s*\\in\s*)?(?:\\mathbb\{{R\}}|\(-\\infty\s*,\s*\+?\\infty\s*\))\s*(?:\\setminus|-)\s*\\\{{(.*)\\\}}|"
    r"(?:\\text\s*\{\s*)?[Aa]ll (?:real numbers|reals)[^{}\d]*? except (?:for )?(?:[a-z] = )?\}?\s*([^{}]+)\}?"
)
EVERYTHING = r"(-\infty,\infty)"


def intervals(text: str) -> tuple[str, str | None] | None:
    r"""Intervals joined by `\cup`, and the unknown if one is named: of `1 < x \leq 3` they are `(1,3]` and `x`.

    Inequalities, chains of them, unions with "or", `x \in …`, `\{x \mid …\}`, `]1,3[`, `x \neq 2`, "all real numbers".
    None of anything else.
    """
    for command, sign in _SIGNS.items():
        text = text.replace(command, sign)
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text).strip()
    text = re.sub(r"^([\[\](][^;,\[\]()]+);([^;,\[\]()]+[\[\])])$", r"\1,\2", text)
    if match := _SUCH_THAT.fullmatch(text):
        text = match[2].strip()
    if _ALL.fullmatch(text):
        return EVERYTHING, None
    if (excluded := _excluded(text)) is not None:
        return excluded
    found: list[str] = []
    unknowns: set[str] = set()
    for part in _OR.split(text):
        read = _conjunction(part.strip())
        if read is None:
            return None
        found.append(read[0])
        if read[1]:
            unknowns.add(read[1])
    if len(unknowns) > 1:
        return None
    return r"\cup".join(found), (unknowns.pop() if unknowns else None)


def _excluded(text: str) -> tuple[str, str | None] | None:
    r"""All real numbers but some: `x \\neq 1, 2`, `\\mathbb{R} \\setminus \\{1, 2\\}`, "all real numbers except 1"."""
    text = re.sub(rf"^(?:{_NAME}\s*\\in\s*)?\\mathbb\{{R\}}\s*,?\s*(?={_NAME}\s*≠)", "", text)
    if match := _REALS_BUT.fullmatch(text):
        name, points = match[1], split(match[2] or match[3])
    else:
        parts = [[piece.strip() for piece in part.split("≠")] for part in split(text)]
        if len(parts[0]) != 2 or any(len(part) > 2 for part in parts) or not re.fullmatch(_NAME, parts[0][0]):
            return None
        name, points = parts[0][0], [part[-1] for part in parts]
        if any(part[0] != name for part in parts if len(part) == 2):
            return None
    if not points or any(re.search(r"[<>≤≥=]", point) for point in points):
        return None
    if len(points) == 1:
        return _ray("≠", points[0]), name
    return rf"\mathbb{{R}}\setminus\{{{','.join(points)}\}}", name


def _conjunction(text: str) -> tuple[str, str | None] | None:
    if (one := _interval(text)) is not None:
        return one
    pieces = [piece for piece in (_interval(part.strip()) for part in _AND.split(text)) if piece]
    if len(pieces) != 2 or len(_AND.split(text)) != 2 or pieces[0][1] != pieces[1][1] or pieces[0][1] is None:
        return None
    first, second = (piece[0] for piece in pieces)
    if first.endswith(r"\infty)") and second.startswith(r"(-\infty"):  # x > 1 and x < 3
        return first.rpartition(",")[0] + "," + second.partition(",")[2], pieces[0][1]
    if first.startswith(r"(-\infty") and second.endswith(r"\infty)"):
        if re.search(r"and|land|wedge", text):
            return second.rpartition(",")[0] + "," + first.partition(",")[2], pieces[0][1]
        return rf"{first}\cup{second}", pieces[0][1]
    return None


def _interval(text: str) -> tuple[str, str | None] | None:
    if match := re.fullmatch(rf"({_NAME})\s*\\in\s*(.+)", text):
        inner = intervals(match[2])
        return inner and (inner[0], match[1])
    if _ALL.fullmatch(text):
        return EVERYTHING, None
    if match := re.fullmatch(r"\\mathbb\{R\}(?:\^\{?\s*([+-])\s*\}?|_\{?\s*([<>≤≥])\s*0\s*\}?)", text):
        return _ray({"+": ">", "-": "<"}.get(match[1], match[2]), "0"), None
    if match := re.fullmatch(rf"\\?\|\s*({_NAME})\s*\\?\|\s*([<>≤≥])\s*(\S.*)", text):
        name, sign, bound = match.groups()
        if sign in "<≤":
            return ("(-{0},{0})" if sign == "<" else "[-{0},{0}]").format(bound), name
        return (r"(-\infty,-{0})\cup({0},\infty)" if sign == ">" else r"(-\infty,-{0}]\cup[{0},\infty)").format(
            bound
        ), name
    if match := re.fullmatch(r"([\[\](])\s*([^,;\[\]<>≤≥≠=]+)[,;]\s*([^,;\[\]<>≤≥≠=]+?)\s*([\[\])])", text):
        opened = "[" if match[1] == "[" else "("
        closed = "]" if match[4] == "]" else ")"
        return f"{opened}{match[2].strip()},{match[3].strip()}{closed}", None
    parts = [part.strip() for part in re.split(r"([<>≤≥≠])", text)]
    if "," in text or "=" in text or any(not part for part in parts):
        return None
    if len(parts) == 3:
        left, sign, right = parts
        if re.fullmatch(_NAME, right) and not re.fullmatch(_NAME, left):
            left, sign, right = right, _TURNED.get(sign, sign), left
        if not re.fullmatch(_NAME, left) or left.lstrip("\\") in ("infty", "pi", "e"):
            return None
        return _ray(sign, right), left
    if len(parts) == 5:
        low, sign, name, other, high = parts
        if {sign, other} <= {">", "≥"}:
            low, sign, other, high = high, _TURNED[other], _TURNED[sign], low
        if {sign, other} <= {"<", "≤"} and re.fullmatch(_NAME, name):
            opened, closed = ("(" if sign == "<" else "["), (")" if other == "<" else "]")
            opened = "(" if r"\infty" in low else opened
            return f"{opened}{low},{high}{')' if chr(92) + 'infty' in high else closed}", name
    return None


def _ray(sign: str, bound: str) -> str:
    return {
        "<": rf"(-\infty,{bound})",
        "≤": rf"(-\infty,{bound}]",
        ">": rf"({bound},\infty)",
        "≥": rf"[{bound},\infty)",
        "≠": rf"(-\infty,{bound})\cup({bound},\infty)",
    }[sign]


def split(text: str) -> list[str]:
    """The parts of a list between commas, semicolons, "and" and "or" that stand in no bracket."""
    parts, start, depth, at = [], 0, 0, 0
    while at < len(text):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        elif depth == 0 and (match := _LIST.match(text, at)):
            parts.append(text[start:at])
            start = at = match.end()
            continue
        # "\text{ and }" begins with a backslash and must be tried before its brace is counted.
        at += 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def answers(text: str) -> list[str]:
    r"""The answers of a list or finite set, each `a \pm b` as two, without `x =` before them."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text).strip()
    if match := re.fullmatch(r"\\\{(.*)\\\}", text):
        text = match[1]
    found = []
    for part in split(text):
        part = re.sub(rf"^{_NAME}\s*(?:=|\\in\s*\\\{{)\s*", "", part)
        if r"\pm" in part or r"\mp" in part:
            found += [part.replace(r"\pm", "+").replace(r"\mp", "-"), part.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            found.append(part)
    return [re.sub(r"^\+\s*", "", part) for part in found]


def assignments(text: str) -> dict[str, str] | None:
    r"""The values of at least two unknowns: `x=1, y=2`, `\begin{cases}x=1\\y=2\end{cases}`, `(x,y)=(1,2)`."""
    if match := _SYSTEM.fullmatch(text.strip()):
        text = re.sub(r"\\\\(?:\[[^\]]*\])?", ",", match[2]).replace("&", "")
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text).strip()
    if match := re.fullmatch(r"\(([^()]*)\)\s*=\s*(\(.*\))", text):
        names, values = [name.strip() for name in match[1].split(",")], coordinates(match[2])
        return dict(zip(names, values, strict=True)) if values and 1 < len(names) == len(values) else None
    found: dict[str, str] = {}
    parts = split(text)
    for part in parts:
        name, equals, said = (piece.strip() for piece in part.partition("="))
        if not equals or not said or "=" in said or not re.fullmatch(_NAME, name) or name in found:
            return None
        found[name] = said
    return found if len(found) > 1 else None


def coordinates(text: str) -> list[str] | None:
    """The coordinates of a tuple such as `(1, 2)`; None of anything else."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text).strip()
    if not (text.startswith("(") and text.endswith(")")):
        return None
    parts = split(text[1:-1])
    return parts if len(parts) > 1 and not re.search(r"\band\b|\bor\b|;", text) else None
