"""Completions that no verifier may hang on, die of, or reward: the gold answer of all of them is `GOLD`."""

GOLD = "1729"
STUCK = r"\boxed{9^{9^{9^{9}}}}"  # computes for ever


def rows(*solutions):
    return [{"solution": solution} for solution in solutions]


def boxed(answer: str) -> str:
    return rf"So the answer is \boxed{{{answer}}}"


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def hostile_completions() -> list[str]:
    """At least 300, all different, the same on every call."""
    towers = ["^".join(["9"] * 1), *("9" + "".join("^{9" for _ in range(n)) + "}" * n for n in range(2, 12))]
    towers += [
        rf"{base}^{{{base}^{{{base}^{{{base}}}}}}}" for base in ("2", "10", "99", "x", r"\pi", "e", "-3", "0.1", "i")
    ]
    towers += [rf"10^{{{10**n}}}" for n in range(5, 15)]
    towers += [rf"\left({a}\right)^{{{10**9}}}" for a in ("x+1", "1+\\sqrt{2}", "2", "x+y+z", "1.0000001")]
    factorials = ["9" + "!" * n for n in range(2, 10)] + [f"{10**n}!" for n in range(4, 14)]
    factorials += [rf"\binom{{{10**n}}}{{{10**n // 2}}}" for n in range(5, 12)]
    series = [
        rf"\{kind}_{{n=1}}^{{{top}}} {term}"
        for kind in ("sum", "prod")
        for top in (10**8, 10**18, r"\infty")
        for term in ("n!", r"\sin(n^n)", "n^{n^n}")
    ]
    calculus = [
        rf"\int_0^{{\infty}} {f} dx" for f in (r"e^{-x^x}", r"\sin(x^x)", r"\frac{\ln(x+x^x)}{x!}", r"x^{x^{x^x}}")
    ]
    calculus += [r"\lim_{x \to 0} \frac{\sin(x^{x^x})}{x!}", r"\frac{d}{dx} x^{x^{x^{x^x}}}"]
    depth = [10, 100, 1000, 5000]
    nested = [opening * n + "1" + closing * n for n in depth for opening, closing in NESTINGS]
    unbalanced = ["{" * n for n in depth] + ["}" * n for n in depth] + [r"\frac{" * n for n in depth]
    unbalanced += [
        r"\frac{1}{",
        r"\sqrt[",
        r"\left(",
        r"\right)",
        r"\begin{matrix} 1 &",
        r"\end{matrix}",
        "$",
        "$$",
        "\\",
        "&",
    ]
    nothing = [
        "",
        " ",
        "\n",
        "{}",
        r"\text{}",
        "~",
        r"\,",
        r"\boxed{}",
        r"\boxed{\boxed{\boxed{}}}",
        "?",
        "%",
        "#",
        "_",
        "^",
    ]
    names = "nan NaN NAN inf -inf Infinity zoo oo I E S N pi Symbol Integer lambda None True False exit quit".split()
    names += [
        r"\infty",
        r"-\infty",
        r"\frac{0}{0}",
        r"\frac{1}{0}",
        r"0^0",
        r"\infty-\infty",
        r"\text{NaN}",
        "1e999",
        "0x6C1",
    ]
    code = [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "open('/etc/passwd').read()",
        "exec('while True: pass')",
        "[x for x in range(10**12)]",
        "lambda: 1729",
        "print(1729)",
        "raise SystemExit",
        "import os; os.kill(os.getpid(), 9)",
        "eval('1729')",
        "solve(x**1000 + x + 1, x)",
        "factor(2**4001 - 1)",
        "isprime(10**5000 + 7)",
        "Integer(10)**Integer(10)**Integer(10)",
        "%s" * 1000,
        "{0.__class__}",
        "'; DROP TABLE rewards; --",
        "<script>1729</script>",
    ]
    characters = [
        chr(n) for n in (*range(1, 9), 0x0B, 0x1B, 0x7F, 0x85, 0x200B, 0x200E, 0x2028, 0x2066, 0xFEFF, 0xFFFD)
    ]
    strange = [f"17{c}29{c}0" for c in characters]
    strange += [
        f"\u202e9271{GOLD[::-1]}\u202c",
        "１７２９０",
        "١٧٢٩٠",
        "\U0001d7cf" * 3,
        "\ud800",
        "\udfff17290",
        "0" * 50 + "1" * 50,
    ]
    strange += ["a\u0301" * 500, "👩‍👩‍👧‍👦" * 50, "1" + "\u0338" * 2000]
    inside = [
        *towers,
        *factorials,
        *series,
        *calculus,
        *nested,
        *unbalanced,
        *nothing,
        *names,
        *code,
        *strange,
        ",".join(map(str, range(5000))),
        "+".join(f"x_{{{n}}}" for n in range(2000)),
        "*".join(f"(x+{n})" for n in range(300)),
        "1" * 4000,
        "0." + "3" * 4000,
        r"\begin{pmatrix}" + r"\\".join("&".join("1" * 40) for _ in range(40)) + r"\end{pmatrix}",
    ]
    million = 1_000_000
    whole = [
        "",
        " " * million,
        "\n" * million,
        "x" * million,
        "$" * million,
        "9" * million,
        "\\" * million,
        "{" * million,
        r"\boxed{" * (million // 7),
        r"\boxed{1}" * (million // 9),
        r"\[ " * (million // 3),
        "answer is " * (million // 10),
        "answer: $" * (million // 9),
        "final answer is $1 and $2, " * (million // 27),
        boxed("9" * million),
        boxed("x" * million),
        boxed("1+" * (million // 2) + "1"),
        "a" * 10 * million,
        "\x00" * million,
        "\u202e" * million,
        boxed(GOLD) + " no " * (million // 4) + boxed("3"),
        "\n".join(boxed(str(n)) for n in range(3000)),
        " ".join(f"$\\boxed{{{n}}}$" for n in range(3000)),
        boxed(GOLD) + " wait, that is wrong, so we try it once more: " + boxed(""),
        boxed(GOLD) + "\nbut of course that is nonsense, and what it is instead is this:\n" + boxed("17"),
        r"\boxed",
        r"\boxed{",
        r"\boxed}1729{",
        r"\boxed 1729 is not it: \boxed{0}",
        "<answer>" * 10_000,
        "Answer:" * 10_000,
    ]
    return list(dict.fromkeys([*map(boxed, inside), *map(tagged, [*towers, *code, *nothing]), *whole]))


NESTINGS = (
    ("(", ")"),
    ("{", "}"),
    (r"\sqrt{", "}"),
    (r"\frac{1}{1+", "}"),
    (r"\left(", r"\right)"),
    ("-", ""),
    ("|", "|"),
    (r"\sin(", ")"),
    ("x^{", "}"),
    (r"\text{", "}"),
)
