r"""TeX as people write it, put into the TeX that math-verify reads. Pure functions from text to text.

Each rule names where it was met. `#n` without a repository is an issue of huggingface/Math-Verify. What a rule does not
know it leaves as it is, so that ordinary TeX comes out unchanged.
"""

import re
from collections.abc import Callable
from functools import lru_cache

_DASHES = dict.fromkeys("‐‑‒–—―−﹣", "-")
_BLANKS = dict.fromkeys("\u00a0\u2002\u2003\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000\t\n", " ")
_INVISIBLE = dict.fromkeys("\u200b\u200c\u200d\u2060\u2061\u2062\ufeff\u200e\u200f", "")
_SIGNS = {
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "∕": "/", "⁄": "/", "∗": "*",
    "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "≤": r"\leq ", "⩽": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ",
    "≠": r"\neq ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ",
    "∠": r"\angle ", "△": r"\triangle ", "°": r"^{\circ}", "º": r"^{\circ}", "˚": r"^{\circ}", "′": "'", "’": "'",
    "“": '"', "”": '"', "…": r"\ldots ", "⋯": r"\ldots ", "。": ".", "、": ",", "《": "<", "∶": ":",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "π": r"\pi ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ",
    "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ",
    "ϕ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "Ω": r"\Omega ", "ℓ": "l",
}  # fmt: skip
_FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_CHARACTERS = str.maketrans({**_FULL_WIDTH, **_DASHES, **_BLANKS, **_INVISIBLE, **_SIGNS})
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|max|min"
_TRIGONOMETRIC = "sin|cos|tan|cot|sec|csc"
_DEGREES = r"(\d{1,4}(?:\.\d{1,4})?)\s*\^\s*\{?\s*\\circ\s*\}?"
GREEK = "alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi|rho|tau|pi"


def characters(text: str) -> str:
    """Unicode signs, full-width digits and brackets, roots, powers and indices in TeX.

    Source: #29, huggingface/open-r1#503 (√), Khan/khan-exercises#75882 (°), allenai/open-instruct#1530 (dashes),
    josdejong/mathjs#3593 (full width).
    """
    if text.isascii():
        return text
    text = text.translate(_CHARACTERS)
    for sign, (above, below) in _FRACTIONS.items():
        text = text.replace(sign, rf"\frac{{{above}}}{{{below}}}")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_LOWERED)}}}", text)
    for sign, command in _ROOTS.items():
        text = text.replace(sign, command + " ")
    return text


def wrappers(text: str) -> str:
    r"""Without what only decorates: `$`, `\(`, `\color`, bold, markdown's stars, sizes, labels, blanks of TeX.

    Source: huggingface/trl#2644, #4563 (`\color`, `\displaystyle`), bojieli/ai-agent-book#713 (`\mathrm{1,000}`),
    MATH's golds (`32,\!348`). An escaped dollar is a currency, which `units` reads.
    """
    text = re.sub(r"^\s*(\*\*|__|\*|`)([^*`]*)\1\s*$", r"\2", text)
    text = re.sub(r"^\s*\\text(?:bf|rm|it)?\s*\{([^{}]*\d[^{}]*)\}\s*$", r"\1", text)
    text = re.sub(r",?\s*\\text\s*\{\s*,?\s*(?:where|such that|since|because)\b.*$", "", text)
    if "$" in text:
        text = re.sub(r"(?<!\\)\$(?!\s*[\d.])|(?<!\\)\$(?=[^$]*(?<!\\)\$)", "", text)
    if "\\" not in text:
        return text
    text = re.sub(r"(?<!\\)\\(?:[()\[\]]|left\.|right\.)", "", text)
    text = re.sub(
        r"\\(?:display|text|script)style\b|\\(?:bf|rm|it|sf|tt|cal|boldmath|limits|strut|hfill|tiny|small|large|Large|LARGE|huge|Huge)\b",
        " ",
        text,
    )
    text = re.sub(r"\\(?:label|tag|hspace\*?|vspace\*?|phantom|hphantom|vphantom)\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(?:textcolor|color|colorbox)\s*\{[^{}]*\}", " ", text)
    text = re.sub(r",\s*\\!\s*(?=\d)", "{,}", text)
    text = re.sub(r"\\(?:Big|big|Bigg|bigg)[lrm]?(?![a-zA-Z])", "", text)
    text = re.sub(r"\\math(?:rm|bf|it|sf|tt)\s*\{([\d.,\s]*)\}|\\text(?:bf|rm|it|tt)?\s*\{(\s*[-+]?[\d.,]*\s*)\}",
                  lambda m: m[1] if m[1] is not None else m[2], text)  # fmt: skip
    text = re.sub(r"\\mathbf\s*\{\s*([RZNQ])\s*\}", r"\\mathbb{\1}", text)
    text = re.sub(r"\\(?:boldsymbol|mathbf|bm|mathit|mathsf|underline|ensuremath)\s*\{([^{}]*)\}", r"{\1}", text)
    return re.sub(r"(?<!\\)\\(?:quad|qquad|[ ,;:>]|!\s*)|(?<!\\)~", lambda m: "" if m[0][1:2] == "!" else " ", text)


def constants(text: str) -> str:
    r"""Upright `e`, `i` and `\pi`, which would otherwise pass for units.

    Source: #14 (`\mathrm{e}`), huggingface/trl#2644 (`\mathrm{i}`).
    """
    text = re.sub(
        r"\\(?:mathrm|text|textrm|operatorname|rm)\s*(?:\{\s*([ei]|\\pi)\s*\}|(?<!text)\s([ei])(?![a-zA-Z]))",
        lambda match: f" {match[1] or match[2]} ",
        text,
    )
    text = re.sub(r"(?<=\d)\s+([ei])(?![a-zA-Z])\s*", r"\1", text)
    return text.replace(r"\uppi", r"\pi").replace(r"\imath", "i")


def commands(text: str) -> str:
    r"""Other names of the same command: `\varnothing`, `\geqslant`, `\lbrace`, `\R`, `>=`, `{n \choose k}`.

    Source: huggingface/trl#2644, #4563; open-thoughts/OpenThoughts-Agent#129 (sets).
    """
    text = re.sub(r"<=|=<|&le;", r"\\leq ", text)
    text = re.sub(r">=|&ge;", r"\\geq ", text)
    # "5!=120" is a factorial.
    text = re.sub(r"(?<=\s)!=|<>", r"\\neq ", text)
    for other, usual in (("&lt;", "<"), ("&gt;", ">"), ("**", "^"), ("{:}", ":")):
        text = text.replace(other, usual)
    if "\\" not in text:
        return text
    text = re.sub(r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset ", text)
    text = re.sub(r"\\(?:leqslant|leqq|le)(?![a-zA-Z])", r"\\leq", text)
    text = re.sub(r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])", r"\\geq", text)
    text = re.sub(r"\\lt(?![a-zA-Z])", "<", re.sub(r"\\gt(?![a-zA-Z])", ">", text))
    text = re.sub(r"\\ne(?![a-zA-Z])", r"\\neq", text)
    text = re.sub(r"\\lbrace(?![a-zA-Z])", r"\\{", re.sub(r"\\rbrace(?![a-zA-Z])", r"\\}", text))
    text = re.sub(r"\\(?:mathbb|Bbb|mathbf)\s*\{?\s*([RZNQC])(?![a-zA-Z])\s*\}?", r"\\mathbb{\1}", text)
    text = re.sub(r"\\(?:R|reals|Reals)(?![a-zA-Z])", r"\\mathbb{R}", text)
    text = re.sub(r"\\(?:nicefrac|sfrac)(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\langle(?![a-zA-Z])", "(", re.sub(r"\\rangle(?![a-zA-Z])", ")", text))
    text = re.sub(r"\\text\s*\{\s*(?:positive )?infinity\s*\}", r"\\infty ", text, flags=re.IGNORECASE)
    text = re.sub(r"\\backslash(?![a-zA-Z])", r"\\setminus ", text)
    text = re.sub(r"\{\s*([^{}]+?)\s*\\choose\s+([^{}]+?)\s*\}", r"\\binom{\1}{\2}", text)
    text = re.sub(r"\{\s*([^{}]+?)\s*\\over\s+([^{}]+?)\s*\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\(?:degree|textdegree)(?![a-zA-Z])", r"^{\\circ}", text)
    text = re.sub(r"\\colon(?![a-zA-Z])", ":", text)
    return re.sub(r"\\[mh]box\s*\{", r"\\text{", text)


def functions(text: str) -> str:
    r"""Functions and Greek letters in plain letters: `sqrt(17)`, `2*pi`, `exp(3)`, `\operatorname{ln} 2`.

    Source: #29 (`sqrt(17)`), #69 (`pi/2`, `exp(16)`); schoolbooks (`\lg 100`, `\sin 30^\circ`).
    """
    text = re.sub(rf"\\(?:operatorname\*?|mathrm|text|rm)\s*\{{\s*({FUNCTIONS})\s*\}}", r"\\\1 ", text)
    text = re.sub(rf"(?<![\\a-zA-Z])({FUNCTIONS}|{GREEK})(?![a-zA-Z])(?=\s*[\\({{\d*/+^)=-]|\s*$|\s+[a-z0-9]\b)",
                  r"\\\1 ", text)  # fmt: skip
    text = re.sub(r"\\lg(?![a-zA-Z])", r"\\log_{10}", text)
    text = re.sub(
        rf"\\({_TRIGONOMETRIC})\s*(?:\(\s*{_DEGREES}\s*\)|\{{\s*{_DEGREES}\s*\}}|{_DEGREES})", _in_radians, text
    )
    text = re.sub(r"(?<![a-zA-Z])\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-zA-Z])sqrt\s*(?=[\d{])", r"\\sqrt ", text)
    text = re.sub(r"^\s*(?:\\text\s*\{\s*)?(?:negative|minus)\s*\}?\s*(?=[\d\\])", "-", text)
    return re.sub(r"\\exp\s*(?:\(([^()]*)\)|\{([^{}]*)\})", lambda m: f"e^{{{m[1] or m[2]}}}", text)


def _in_radians(match: re.Match[str]) -> str:
    degrees = match[2] or match[3] or match[4]
    return rf"\{match[1]}(\frac{{{degrees}\pi}}{{180}})"


def numerals(text: str) -> str:
    r"""One way of writing a number: thousands, `3{,}14`, `1.5E-4`, `0.\overline{3}`, `2^10`.

    Source: EleutherAI/lm-evaluation-harness#4039 (`115 000`), rasbt/reasoning-from-scratch#133 (MATH's `11,\! 111`),
    Minerva's golds (`4.5e33`), huggingface/trl#2644 (`0.\overline{3}`, `10^22`).
    """
    text = re.sub(r"(?<=\d)\s*\{,\}\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)
    # In brackets a comma separates coordinates.
    if not re.search(r"[(\[]|\\\{", text):
        text = re.sub(r"(?<![\d.,_^])([1-9]\d{0,2})((?:,\d{3})+)(?![\d,])", _together, text)
    text = re.sub(r"(?<![\d.,_^])([1-9]\d{0,2})((?: \d{3})+)(?![\d,/])", _together, text)
    text = scientific(text)
    text = repeating(text)
    text = re.sub(r"\^\s*(-\d+|\d{2,})", r"^{\1}", text)
    text = re.sub(r"^(\d+)\s+(?:to|\\text\s*\{\s*to\s*\})\s+(\d+)$", r"\1:\2", text.strip())
    return re.sub(r"(\d)\.(?=\s*(?:$|[,;)\]}]))", r"\1", text)


def scientific(text: str) -> str:
    r"""`4.5e33` as `4.5 \times 10^{33}`; math-verify reads a multiple of the number e.

    Source: Minerva's golds, and golds that were numbers in JSON (1e-07).
    """
    if not re.search(r"\d\.?[eE][-+]?\d", text):
        return text
    return re.sub(
        r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([-+]?)0*(\d+)(?![\w.]\d|\w)",
        lambda m: rf"{m[1].rstrip('.')} \times 10^{{{m[2].replace('+', '')}{m[3]}}}",
        text,
    )


def repeating(text: str) -> str:
    r"""`0.1\overline{6}`, `0.\dot{3}`, `0.(3)` and `0.333\ldots` as fractions.

    Source: huggingface/trl#2644.
    """
    if "." not in text:
        return text
    text = re.sub(r"(\d*)\.(\d*)(?:\\overline|\\bar|\\dot)\s*(?:\{\s*(\d+)\s*\}|(\d))(?!\d*\\dot)",
                  lambda m: _period(m[1], m[2], m[3] or m[4]), text)  # fmt: skip
    text = re.sub(r"(\d*)\.(\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?",
                  lambda m: _period(m[1], m[2], m[3] + m[4] + m[5]), text)  # fmt: skip
    text = re.sub(r"(\d+)\.(\d*)\((\d+)\)", lambda m: _period(m[1], m[2], m[3]), text)
    return re.sub(r"(\d*)\.(\d*?)(\d{1,6}?)\3{2,}(?:\\[lc]?dots|\.\.\.)", lambda m: _period(m[1], m[2], m[3]), text)


def _period(whole: str, before: str, period: str) -> str:
    below = 10 ** len(before) * (10 ** len(period) - 1)
    above = int((whole + before + period) or "0") - int((whole + before) or "0")
    return rf"\frac{{{above}}}{{{below}}}"


def combinations(text: str) -> str:
    r"""`C_{10}^{3}`, `C^3_{10}`, `{}_{10}C_3`, `C(10, 3)` as binomials, `A_5^2` and `P_5^2` as numbers of arrangements.

    Source: huggingface/trl#2644 (Chinese and Russian schoolbooks). The larger number is what is chosen from.
    """
    if not re.search(r"[CAP]", text):
        return text
    letter = r"(?:\\(?:mathrm|text|rm)\s*\{\s*([CAP])\s*\}|([CAP]))"
    number = r"\s*(?:\{\s*(\d+)\s*\}|(\d))"
    text = re.sub(rf"(?<![a-zA-Z\\]){letter}\s*_{number}\s*\^{number}", _chosen, text)
    text = re.sub(rf"(?<![a-zA-Z\\]){letter}\s*\^{number}\s*_{number}", _chosen, text)
    text = re.sub(rf"(?:\{{\s*\}})?\s*(?:_|\^){number}\s*C\s*_{number}", lambda m: _chosen(m, "C"), text)
    return re.sub(r"(?<![a-zA-Z\\])C\(\s*(\d+)\s*,\s*(\d+)\s*\)", r"\\binom{\1}{\2}", text)


def _chosen(match: re.Match[str], letter: str = "") -> str:
    first, *rest = [group for group in match.groups() if group is not None]
    numbers = [int(number) for number in ([first, *rest] if letter else rest)]
    below, above = min(numbers), max(numbers)
    if (letter or first) == "C":
        return rf"\binom{{{above}}}{{{below}}}"
    return rf"\frac{{{above}!}}{{{above - below}!}}"


_TAKES_ARGUMENTS = re.compile(r"\\([dtc]?frac|[dt]?binom|sqrt)(?![a-zA-Z])")
_ARGUMENT = re.compile(r"\s*(\\[a-zA-Z]+|\d|[a-zA-Z])")
_RADICAND = re.compile(r"\s*(\\(?!frac|sqrt|left)[a-zA-Z]+|\d+(?:\.\d+)?|[a-zA-Z])")


def arguments(text: str) -> str:
    r"""Braces around the arguments of `\frac12`, `\frac{10}3`, `\frac\pi2`, `\binom52`, `\sqrt3`, `\sqrt[3]2`.

    Source: #41, #29, #35. Read as TeX does, except that all digits behind `\sqrt` are meant: `\sqrt10` is √10.
    """
    for match in reversed(list(_TAKES_ARGUMENTS.finditer(text))):
        name, start = match[1], match.end()
        if name == "sqrt":
            optional = re.compile(r"\s*\[[^\[\]]*\]").match(text, start)
            done = _with_arguments(text, optional.end() if optional else start, 1, _RADICAND)
        else:
            done = _with_arguments(text, start, 2, _ARGUMENT)
        text = text if done is None else done
    return re.sub(r"\\log_(\d)(\d+)", r"\\log_{\1}\2", text)


def _with_arguments(text: str, start: int, count: int, single: re.Pattern[str]) -> str | None:
    pieces, at = [], start
    for _ in range(count):
        opened = re.compile(r"\s*\{").match(text, at)
        if opened:
            end = closing_brace(text, opened.end())
            if end is None:
                return None
            pieces.append(text[opened.end() : end])
            at = end + 1
            continue
        found = single.match(text, at)
        if found is None:
            return None
        at = found.end()
        argument = found[1]
        if argument in (r"\sqrt", r"\frac", r"\text", r"\mathrm"):  # its own arguments have braces by now
            while opened := re.compile(r"(?:\[[^\[\]]*\])?\{").match(text, at):
                end = closing_brace(text, opened.end())
                if end is None:
                    return None
                argument, at = argument + text[at : end + 1], end + 1
        pieces.append(argument)
    return text[:start] + "".join(f"{{{piece}}}" for piece in pieces) + text[at:]


def closing_brace(text: str, start: int) -> int | None:
    """Where the brace closes that was opened before `start`; None when it does not."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def ends(text: str) -> str:
    """Without blanks and full stops around it, a sign of approximation before it and braces around all of it.

    Source: huggingface/trl#2644 (`5.`, `{5}`).
    """
    before = None
    while before != text:
        before, text = text, text.strip().rstrip(".;。").rstrip()
        text = re.sub(r"^(?:\\approx|\\sim|\\therefore|[=:])\s*|\s*(?:,|\\|\\checkmark)$", "", text)
        if text.startswith("{") and closing_brace(text, 1) == len(text) - 1:
            text = text[1:-1]
    return text


_RULES: tuple[Callable[[str], str], ...] = (
    characters,
    wrappers,
    constants,
    commands,
    functions,
    combinations,
    arguments,
    numerals,
    ends,
)


@lru_cache(maxsize=4096)
def spelled(text: str) -> str:
    """The text after all rules of this module."""
    for rule in _RULES:
        text = rule(text)
    return text


def _together(match: re.Match[str]) -> str:
    return match[1] + re.sub(r"[,\s]", "", match[2])
