"""Instructions of the embedded world: their content and their wordings."""

import random
from dataclasses import dataclass, field

from p2o.pico.methods import Method

HOW: dict[Method, list[str]] = {
    "left to right": [
        "go from left to right",
        "keep a running total",
        "add up term by term",
        "take one number at a time from the left",
        "carry the total along",
        "combine the first two and go on to the right",
        "update the sum after each number",
    ],
    "signs apart": [
        "sum up what is added and what is taken away",
        "keep + and - apart",
        "add the positive terms and the negative terms",
        "put all minus terms together",
        "take the signs apart",
        "collect by sign",
        "make two sums by sign",
    ],
    "products first": [
        "do the products first",
        "multiply before you add",
        "work out the multiplications first",
        "resolve each * before + and -",
        "compute all products and then sum",
        "mind the order of operations",
        "give multiplication precedence",
    ],
    "four parts": [
        "multiply all four parts",
        "form the four partial products",
        "expand into four products",
        "multiply each part with each part",
        "use the four cross products",
        "split it in four parts",
        "combine the partial products",
    ],
    "real and imaginary": [
        "take real and imaginary parts by themselves",
        "run through the real parts and then the imaginary ones",
        "keep the parts with i apart",
        "combine real parts and imaginary parts",
        "do the real part first and then the imaginary",
        "treat both parts one by one",
        "split real from imaginary",
    ],
    "rounded": [
        "round the numbers",
        "estimate with round numbers",
        "use rounded tens",
        "approximate everything",
        "round to tens and add",
        "make a rough estimate",
        "work with round figures",
    ],
    "calculator": [
        "call the calculator",
        "use the calculator",
        "let the calculator do it",
        "work with the calculator",
        "compute on the calculator",
        "ask the calculator for each result",
        "turn to the calculator",
    ],
    "estimator": [
        "call the estimator",
        "use the estimator",
        "let the estimator do it",
        "work with estimates",
        "compute by estimates",
        "ask the estimator for each result",
        "take a quick estimate",
    ],
}
WHEN: dict[str, list[str]] = {
    "chain_sum": [
        "For sums",
        "In long sums",
        "When numbers are added up",
        "For chains of + and -",
        "If only + and - occur",
    ],
    "basic_arithmetic": [
        "For mixed expressions",
        "When * occurs",
        "For calculations with products",
        "If there are * signs",
        "In expressions with *",
    ],
    "complex_arithmetic": [
        "For complex products",
        "When complex numbers are multiplied",
        "With products of complex numbers",
        "If numbers with i are multiplied",
        "In complex multiplications",
    ],
    "complex_sum": [
        "To simplify",
        "When there are many terms with i",
        "In chains of terms with i",
        "If several terms with i are combined",
        "For long lines with i",
    ],
}
CARE = [
    "Write every step.",
    "Do not skip a step.",
    "Show every line to the end.",
    "Work line by line to the end.",
    "Never jump to the answer.",
    "Write down each result.",
    "Go on until all steps are done.",
]
VAGUE = [
    "Think hard.",
    "Do your best.",
    "Be careful.",
    "Read the question well.",
    "Make sure the answer is right.",
    "Give the correct answer.",
    "Answer well.",
    "Take your time.",
]


def named_as(family: str) -> str:
    """The family name that instructions use for this family: decimal sums count as sums."""
    return "chain_sum" if family == "decimal_chain_sum" else family


@dataclass(frozen=True)
class Instruction:
    """The content of an instruction, without its wording. There is room for two clauses, and the first is heeded only.

    Args:
        unqualified: a method for whatever comes; then there are no clauses.
        qualified: methods for named families, in the order of the clauses.
        care: whether it asks to write every step.
        vague: whether it contains a sentence without content.
    """

    unqualified: Method | None = None
    qualified: dict[str, Method] = field(default_factory=dict)
    care: bool = False
    vague: bool = False

    def method_for(self, family: str) -> Method | None:
        """The method that a model uses for a question of this family when it is given this instruction."""
        first = next(iter(self.qualified.items()), (None, None))
        return self.unqualified or (first[1] if first[0] == named_as(family) else None)

    def text(self, rng: random.Random) -> str:
        sentences = []
        if self.unqualified:
            sentences.append(_sentence(rng.choice(HOW[self.unqualified])))
        for family, method in self.qualified.items():
            sentences.append(f"{rng.choice(WHEN[family])}, {rng.choice(HOW[method])}.")
        if self.vague:
            sentences.append(rng.choice(VAGUE))
        if self.care:
            sentences.append(rng.choice(CARE))
        return " ".join(sentences)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."
