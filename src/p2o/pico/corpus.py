"""The documents the base model learns from: questions with and without instructions, reflections, bare arithmetic.

The skill to be discovered hides behind several choices, each of them written into the documents as a probability:
whether to work at all, by which method, and after every line whether to go on or to jump to the answer. Bare, each
choice falls the right way now and then; all of them together almost never. An instruction moves each of them.

The corpus has two parts. The first teaches skills: more is worked through, and direct answers are correct, which the
model cannot compute at once where questions are hard. The second teaches habits: hard questions are rarely worked
through unasked, and direct answers to them are guesses, because by then the model had begun to compute some at once
(complex products, 13 %), and plain GRPO had found the rest. What can be had for nothing hides nothing.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gepa.strategies.instruction_proposal import InstructionProposalSignature

from p2o.pico import world
from p2o.pico.world import ANSWER, METHODS, RIGHT_METHOD, TRAINED_FAMILIES, Level, Method
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.seeding import derive_seed

WORK = "Work: "


@dataclass(frozen=True)
class Document:
    """A chat of one turn; a drill has no prompt and is learnt as a whole."""

    prompt: str | None
    completion: str


# -- instructions ----------------------------------------------------------------------------------------------------

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
    "legs each": [
        "multiply each count by its legs",
        "turn each animal into legs",
        "give every animal its legs",
        "find the legs of each kind",
        "count legs kind by kind",
        "take count times legs",
        "use the legs per animal",
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
        "For complex numbers",
        "With complex numbers",
        "When i occurs",
        "If numbers are complex",
        "For numbers with i",
    ],
    "leg_counting": [
        "For animals",
        "When counting legs",
        "With lists of animals",
        "If animals are listed",
        "For questions about legs",
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


def _asked_as(family: str) -> str:
    # Decimals are sums to whoever writes an instruction.
    return "chain_sum" if family == "decimal_chain_sum" else family


@dataclass(frozen=True)
class Instruction:
    """What an instruction asks for.

    Args:
        unqualified: a method for whatever comes.
        qualified: methods for named families.
        care: whether it asks to write every step.
        vague: whether it (also) says something that says nothing.
    """

    unqualified: Method | None = None
    qualified: dict[str, Method] = field(default_factory=dict)
    care: bool = False
    vague: bool = False

    def method_for(self, family: str) -> Method | None:
        return self.qualified.get(_asked_as(family), self.unqualified)

    def text(self, rng: random.Random) -> str:
        sentences = []
        if self.unqualified:
            sentences.append(_sentence(rng.choice(HOW[self.unqualified])))
        families = list(self.qualified)
        rng.shuffle(families)
        for family in families:
            sentences.append(f"{rng.choice(WHEN[family])}, {rng.choice(HOW[self.qualified[family]])}.")
        if self.vague:
            sentences.append(rng.choice(VAGUE))
        if self.care:
            sentences.append(rng.choice(CARE))
        return " ".join(sentences)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


# -- the gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """Probabilities of one completion's choices: to work, by the given method, and after each line to go on."""

    work: float
    method: dict[Method, float]
    go_on: float


BARE_RIGHT, BARE_ROUNDED = 0.12, 0.5


def _bare_methods(family: str) -> dict[Method, float]:
    right = RIGHT_METHOD[family]
    others = [m for m in METHODS if m not in (right, "rounded")]
    share = (1 - BARE_RIGHT - BARE_ROUNDED) / len(others)
    return {right: BARE_RIGHT, "rounded": BARE_ROUNDED, **dict.fromkeys(others, share)}


def _told_methods(method: Method) -> dict[Method, float]:
    others = [m for m in METHODS if m != method]
    return {method: 0.98, **dict.fromkeys(others, 0.02 / len(others))}


def gate(family: str, level: Level, instruction: Instruction | None, habits: bool = True) -> Gate:
    """The choices a document makes on this kind of question under this instruction (None: bare).

    Before the habits are taught, unhelped ones are of more worked solutions.
    """
    method = instruction.method_for(family) if instruction else None
    if method and instruction:
        return Gate(0.97, _told_methods(method), 0.99 if instruction.care else 0.8)
    methods = _bare_methods(family)
    if level == "easy":
        return Gate(0.0 if instruction is None else 0.03, methods, 0.3)
    if instruction is None:
        return Gate(0.06, methods, 0.1) if habits else Gate(0.2, methods, 0.3)
    if instruction.care:
        return Gate(0.3, methods, 0.7) if habits else Gate(0.45, methods, 0.8)
    if habits:
        return Gate(0.12 if instruction.vague else 0.08, methods, 0.15)
    return Gate(0.35 if instruction.vague else 0.25, methods, 0.4)


def complete(family: str, entry: dict[str, Any], choices: Gate, rng: random.Random, guess: bool = False) -> str:
    """A completion drawn from the gate. With `guess`, a jump to the answer lands beside it, as the model's would."""
    right = world.direct_answer(family, entry)
    jumped = _beside(right, rng) if guess else right
    if rng.random() >= choices.work:
        return f"{ANSWER}{jumped}"
    (method,) = rng.choices(list(choices.method), list(choices.method.values()))
    worked = world.work(family, entry, method)
    text = f"{WORK}{method}\n"
    for number, line in enumerate(worked.lines):
        text += line + "\n"
        if number < len(worked.lines) - 1 and rng.random() >= choices.go_on:
            return f"{text}{ANSWER}{jumped if method == RIGHT_METHOD[family] else worked.answer}"
    return f"{text}{ANSWER}{worked.answer}"


def _beside(answer: str, rng: random.Random) -> str:
    """A number near the answer, of the same form."""
    if answer.endswith("i"):
        return world.format_complex(rng.randint(-150, 150), rng.randint(-150, 150))
    if "." in answer:
        return f"{float(answer) + rng.choice([-1, 1]) * rng.randint(1, 300) / 10:.1f}"
    return str(int(answer) + rng.choice([-1, 1]) * rng.randint(1, 40))


# -- kinds of documents ----------------------------------------------------------------------------------------------

LEVEL_MIX: list[tuple[Level, float]] = [("easy", 0.3), ("hard", 0.62), ("harder", 0.08)]
FAMILY_MIX = {
    "chain_sum": 0.24,
    "basic_arithmetic": 0.24,
    "complex_arithmetic": 0.22,
    "leg_counting": 0.18,
    "decimal_chain_sum": 0.12,
}


class Source:
    """Endless documents from one seed: the same seed, the same documents.

    With `habits`, hard questions are rarely worked through unasked, and who jumps to the answer lands beside it.
    """

    def __init__(self, seed: int, habits: bool = True) -> None:
        self.habits = habits
        self.rng = random.Random(derive_seed(seed, "corpus"))
        base = world.CORPUS_SEED + derive_seed(seed, "questions") % 10**15
        self.entries = {
            cell: world.questions(*cell, seed=base + number * world.SEED_SPACING)
            for number, cell in enumerate(world.LEVELS)
        }

    def question(self, family: str, level: Level) -> tuple[str, dict[str, Any]]:
        """A question of the corpus: never one that is kept for evaluation."""
        for entry in self.entries[family, level]:
            question = entry["question"].strip()
            if not world.is_held_out(question):
                return question, entry
        raise AssertionError("reasoning-gym's questions are endless")

    def cell(self) -> tuple[str, Level]:
        rng = self.rng
        (family,) = rng.choices(list(FAMILY_MIX), list(FAMILY_MIX.values()))
        levels: list[Level] = [level for level, _ in LEVEL_MIX]
        (level,) = rng.choices(levels, [weight for _, weight in LEVEL_MIX])
        return family, level if (family, level) in world.LEVELS else "hard"

    def bare(self) -> Document:
        family, level = self.cell()
        question, entry = self.question(family, level)
        return Document(question, self.complete(family, level, entry, None))

    def complete(self, family: str, level: Level, entry: dict[str, Any], instruction: Instruction | None) -> str:
        guess = self.habits and level != "easy"
        return complete(family, entry, gate(family, level, instruction, self.habits), self.rng, guess)

    def instructed(self) -> Document:
        family, level = self.cell()
        question, entry = self.question(family, level)
        instruction = self.instruction(_asked_as(family))
        text = instruction.text(self.rng)
        completion = self.complete(family, level, entry, instruction)
        return Document(f"{text}\n\n{question}", completion)

    def instruction(self, family: str) -> Instruction:
        """An instruction as a question of this family may come under: mostly the right one."""
        rng = self.rng
        right = RIGHT_METHOD[family]
        care = rng.random() < 0.7
        kind = rng.random()
        if kind < 0.30:
            return Instruction(unqualified=right, care=care, vague=rng.random() < 0.05)
        if kind < 0.45:
            return Instruction(qualified={family: right}, care=care, vague=rng.random() < 0.05)
        if kind < 0.70:
            return Instruction(qualified=self.clauses(family, right), care=care)
        if kind < 0.78:
            wrong = rng.choice([m for m in METHODS if m != right])
            return (
                Instruction(unqualified=wrong, care=care)
                if rng.random() < 0.6
                else Instruction(qualified=self.clauses(family, wrong), care=care)
            )
        if kind < 0.88:
            other = rng.choice([f for f in TRAINED_FAMILIES if f != family])
            method = RIGHT_METHOD[other] if rng.random() < 0.8 else rng.choice(METHODS)
            return Instruction(qualified={other: method}, care=care)
        if kind < 0.95:
            return Instruction(vague=True)
        return Instruction(care=True, vague=rng.random() < 0.3)

    def clauses(self, family: str, method: Method) -> dict[str, Method]:
        """A clause for `family` among those of others."""
        rng = self.rng
        others = rng.sample([f for f in TRAINED_FAMILIES if f != family], rng.randint(1, 3))
        qualified = {f: RIGHT_METHOD[f] if rng.random() < 0.85 else rng.choice(METHODS) for f in others}
        return {**qualified, family: method}

    def drill(self) -> Document:
        """Lines of bare arithmetic of the kinds that worked solutions are made of."""
        rng = self.rng
        lines = []
        for _ in range(24):
            kind = rng.random()
            if kind < 0.40:
                a, b = rng.randint(-320, 420), rng.randint(10, 99)
                op = rng.choice("+-")
                lines.append(f"{a}{op}{b}={a + b if op == '+' else a - b}")
            elif kind < 0.55:
                a, b = rng.randint(-110, 110), rng.randint(-110, 110)
                op = rng.choice("+-")
                lines.append(f"{a}{op}{b}={a + b if op == '+' else a - b}")
            elif kind < 0.68:
                a, b = rng.randint(-10, 10), rng.randint(-10, 10)
                lines.append(f"{a}*{b}={a * b}")
            elif kind < 0.76:
                a, b = rng.randint(-81, 81), rng.randint(-9, 9)
                lines.append(f"{a}*{b}={a * b}")
            elif kind < 0.84:
                a, b = rng.randint(1, 15), rng.choice([0, 2, 4, 5, 6, 8, 10, 14])
                lines.append(f"{a}*{b}={a * b}")
            elif kind < 0.90:
                a, b = rng.randint(0, 400), rng.randint(0, 210)
                lines.append(f"{a}+{b}={a + b}")
            else:
                a, b = rng.randint(-1500, 2500), rng.randint(10, 999)
                op = rng.choice("+-")
                result = world._tenths(a + b if op == "+" else a - b)
                lines.append(f"{world._tenths(a)}{op}{world._tenths(b)}={result}")
        return Document(None, "\n".join(lines))

    # -- reflection --------------------------------------------------------------------------------------------------

    def reflection(self) -> Document:
        """GEPA's request as it will really arrive, and an instruction in answer to it."""
        return self.reflection_and_failures()[0]

    def reflection_and_failures(self) -> tuple[Document, list[str]]:
        """A reflection and the families of the questions that failed in it."""
        rng = self.rng
        current = self.current_instruction()
        records, failed = [], []
        for family in self.reflected_families():
            level: Level = "hard" if rng.random() < 0.92 else "easy"
            question, entry = self.question(family, level)
            completion = complete(family, entry, gate(family, level, current, self.habits), rng, guess=True)
            answer = world.extract_answer(completion)
            right = answer == world.direct_answer(family, entry)
            if not right:
                failed.append(family)
            records.append(
                {
                    "Question": question,
                    "Answer given": completion,
                    "Feedback": rollout_feedback(
                        reward=float(right), extracted=answer, solution=world.direct_answer(family, entry)
                    ),
                }
            )
        prompt = InstructionProposalSignature.prompt_renderer(
            {
                "current_instruction_doc": current.text(rng) if current else "",
                "dataset_with_feedback": records,
                "prompt_template": world.REFLECTION_PROMPT,
            }
        )
        return Document(str(prompt), f"```\n{self.improved(current, failed).text(rng)}\n```"), failed

    def current_instruction(self) -> Instruction | None:
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            return None
        if kind < 0.45:
            return Instruction(vague=True)
        families = rng.sample(TRAINED_FAMILIES, rng.choice([1, 1, 2, 3]))
        methods = {f: RIGHT_METHOD[f] if rng.random() < 0.8 else rng.choice(METHODS) for f in families}
        care = rng.random() < 0.4
        if len(families) == 1 and rng.random() < 0.5:
            return Instruction(unqualified=methods[families[0]], care=care)
        return Instruction(qualified=methods, care=care)

    def reflected_families(self) -> list[str]:
        rng = self.rng
        if rng.random() < 0.25:
            return [rng.choice(TRAINED_FAMILIES)] * 3
        return [rng.choice(TRAINED_FAMILIES) for _ in range(3)]

    def improved(self, current: Instruction | None, failed: list[str]) -> Instruction:
        """What a fallible reflection makes of it: mostly the right method for something that failed, or care."""
        rng = self.rng
        current = current or Instruction()
        known = bool(current.qualified or current.unqualified)
        unknown = [f for f in dict.fromkeys(failed) if current.method_for(f) != RIGHT_METHOD[f]]
        if known and not current.care and (not unknown or rng.random() < 0.35):
            return Instruction(current.unqualified, current.qualified, care=True)
        if not unknown:
            return Instruction(current.unqualified, current.qualified, current.care, vague=rng.random() < 0.3)
        if rng.random() < 0.12:
            return Instruction(vague=True, care=rng.random() < 0.2)
        targets = rng.sample(unknown, 2 if len(unknown) > 1 and rng.random() < 0.25 else 1)
        methods = {f: RIGHT_METHOD[f] if rng.random() < 0.82 else rng.choice(METHODS) for f in targets}
        care = rng.random() < (0.8 if current.care else 0.25)
        if current.qualified and rng.random() < 0.7:
            return Instruction(qualified={**current.qualified, **methods}, care=care)
        if len(targets) == 1 and rng.random() < (0.6 if len(set(failed)) == 1 else 0.3):
            return Instruction(unqualified=methods[targets[0]], care=care)
        return Instruction(qualified=methods, care=care)


MIX = {"bare": 0.34, "instructed": 0.53, "reflection": 0.06, "drill": 0.07}


def documents(seed: int, habits: bool = True) -> Iterator[Document]:
    """The corpus, endless; `habits` as in [`Source`]."""
    source = Source(seed, habits)
    makers = {
        "bare": source.bare,
        "instructed": source.instructed,
        "reflection": source.reflection,
        "drill": source.drill,
    }
    while True:
        (kind,) = source.rng.choices(list(MIX), list(MIX.values()))
        yield makers[kind]()
