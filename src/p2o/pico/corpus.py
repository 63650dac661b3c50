"""The documents the base model learns from: questions with and without instructions, reflections, bare arithmetic.

The skill to be discovered depends on several choices, each of them a probability in the documents: whether to work at
all, by which method, and after every line whether to continue or to jump to the answer. Without an instruction each
choice is right sometimes; all of them together almost never. An instruction changes each of them.

The corpus has two parts. The first teaches skills: more questions are worked through, and direct answers are correct,
although the model cannot compute those of hard questions directly. The second teaches habits: hard questions are rarely
worked through without an instruction, and direct answers to them are guesses. With the first part alone, the model had
begun to compute some directly (complex products, 13 %), and plain GRPO had found the rest: a skill that the model has
already needs no instruction.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from p2o.holdout import is_held_out
from p2o.pico import world
from p2o.pico.instructions import Instruction, named_as
from p2o.pico.methods import METHODS, RIGHT_METHODS, Demanding, Method, Written, as_is, format_complex, tenths, work
from p2o.pico.world import ANSWER, EASY_FAMILIES, TIERS, TRAINED_FAMILIES, Level
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.proposals import reflection_prompt
from p2o.seeding import derive_seed

WORK = "Work: "


@dataclass(frozen=True)
class Document:
    """A chat of one question; a drill has no prompt and is trained on as a whole.

    Args:
        later_turns: what a tool returned for the call before, and what the model writes then; only that is trained on.
        given: the number of the model's own turns, from the first on, that are read and not trained on.
    """

    prompt: str | None
    completion: str
    later_turns: tuple[tuple[str, str], ...] = ()
    given: int = 0


# -- choices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChoiceProbabilities:
    """Probabilities of one completion's choices: to work, by which method, and after each line to continue."""

    work: float
    method: dict[Method, float]
    go_on: float


# A method of an upper tier is too rare to be met by chance; of two right ones, the second is rarer than the mask of the
# context ratio allows.
BARE_RIGHT, BARE_UPPER, BARE_SECOND, BARE_ROUNDED = 0.12, 0.015, 0.003, 0.5
SLIPS: dict[Demanding, float] = {"product": 0.5, "re": 0.6, "im": 0.6}  # until training has mended them
LUCK = 35  # a guess is off by up to this, and right once in 71 times


def _bare_methods(family: str) -> dict[Method, float]:
    first = BARE_UPPER if TIERS.get(family, 0) > 1 else BARE_RIGHT
    right = dict(zip(RIGHT_METHODS[family], (first, BARE_SECOND), strict=False))
    others = [m for m in METHODS if m not in right and m != "rounded"]
    share = (1 - sum(right.values()) - BARE_ROUNDED) / len(others)
    return {**right, "rounded": BARE_ROUNDED, **dict.fromkeys(others, share)}


def _instructed_methods(method: Method, methods: Sequence[Method]) -> dict[Method, float]:
    others = [m for m in methods if m != method]
    return {method: 0.98, **dict.fromkeys(others, 0.02 / len(others))}


def choice_probabilities(
    family: str, level: Level, instruction: Instruction | None, habits: bool = True
) -> ChoiceProbabilities:
    """Choice probabilities of a document for this kind of question under this instruction (None: bare).

    Before the habits are taught, more of the solutions without a method are worked.
    """
    method = instruction.method_for(family) if instruction else None
    return probabilities_of(method, METHODS, _bare_methods(family), level, instruction, habits)


def probabilities_of(
    method: Method | None,
    known: Sequence[Method],
    methods: dict[Method, float],
    level: Level,
    instruction: Instruction | None,
    habits: bool = True,
) -> ChoiceProbabilities:
    """Choice probabilities where this method is named, out of those that are known; `methods` are those of none."""
    if method and instruction:
        return ChoiceProbabilities(0.97, _instructed_methods(method, known), 0.99 if instruction.care else 0.8)
    if level == "easy":
        return ChoiceProbabilities(0.0 if instruction is None else 0.03, methods, 0.3)
    if instruction is None:
        return ChoiceProbabilities(0.06, methods, 0.1) if habits else ChoiceProbabilities(0.2, methods, 0.3)
    if instruction.care:
        return ChoiceProbabilities(0.3, methods, 0.7) if habits else ChoiceProbabilities(0.45, methods, 0.8)
    if habits:
        return ChoiceProbabilities(0.12 if instruction.vague else 0.08, methods, 0.15)
    return ChoiceProbabilities(0.35 if instruction.vague else 0.25, methods, 0.4)


def slips(rng: random.Random) -> Written:
    """Results of demanding lines that are wrong by 1 to 9 in their share of cases."""

    def written(kind: Demanding | None, result: int) -> int:
        return result + rng.choice([-1, 1]) * rng.randint(1, 9) if kind and rng.random() < SLIPS[kind] else result

    return written


def complete(
    family: str, entry: dict[str, Any], choices: ChoiceProbabilities, rng: random.Random, habits: bool = True
) -> str:
    """A completion sampled with these probabilities. With `habits`, lines slip, and jumped answers are guesses."""
    right = world.direct_answer(family, entry)
    jumped = _beside(right, rng) if habits else right
    if rng.random() >= choices.work:
        return f"{ANSWER}{jumped}"
    (method,) = rng.choices(list(choices.method), list(choices.method.values()))
    worked = work(family, entry, method, slips(rng) if habits else as_is)
    text = f"{WORK}{method}\n"
    for number, line in enumerate(worked.lines):
        text += line + "\n"
        if number < len(worked.lines) - 1 and rng.random() >= choices.go_on:
            return f"{text}{ANSWER}{jumped if method in RIGHT_METHODS[family] else worked.answer}"
    return f"{text}{ANSWER}{worked.answer}"


def _beside(answer: str, rng: random.Random) -> str:
    """A number near the answer, of the same form; whole numbers hit it now and then."""
    if answer.endswith("i"):
        return format_complex(rng.randint(-150, 150), rng.randint(-150, 150))
    if "." in answer:
        return f"{float(answer) + rng.choice([-1, 1]) * rng.randint(1, 300) / 10:.1f}"
    return str(int(answer) + rng.randint(-LUCK, LUCK))


# -- kinds of documents ----------------------------------------------------------------------------------------------

LEVEL_MIX: list[tuple[Level, float]] = [("easy", 0.3), ("hard", 0.62), ("harder", 0.08)]
FAMILY_MIX = {
    "chain_sum": 0.24,
    "basic_arithmetic": 0.24,
    "complex_arithmetic": 0.24,
    "complex_sum": 0.14,
    "decimal_chain_sum": 0.10,
    "products": 0.04,
}


class Source:
    """Endless documents from one seed: the same seed, the same documents.

    With `habits`, hard questions are rarely worked through without an instruction, and jumped answers are wrong.
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
        """A question of the corpus; never one that is held out for evaluation."""
        for entry in self.entries[family, level]:
            question = entry["question"].strip()
            if not is_held_out(question):
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
        choices = choice_probabilities(family, level, instruction, self.habits)
        return complete(family, entry, choices, self.rng, self.habits and level != "easy")

    def instructed(self) -> Document:
        family, level = self.cell()
        question, entry = self.question(family, level)
        instruction = self.instruction(named_as(family))
        text = instruction.text(self.rng)
        completion = self.complete(family, level, entry, instruction)
        return Document(f"{text}\n\n{question}", completion)

    def instruction(self, family: str) -> Instruction:
        """A random instruction for a question of this family: usually a right one."""
        rng = self.rng
        if family not in TIERS:  # nothing is right for it
            family = rng.choice(TRAINED_FAMILIES)
        right = rng.choice(RIGHT_METHODS[family])
        care = rng.random() < 0.7
        kind = rng.random()
        if kind < 0.30:
            return Instruction(unqualified=right, care=care, vague=rng.random() < 0.05)
        if kind < 0.50:
            return Instruction(qualified={family: right}, care=care, vague=rng.random() < 0.05)
        if kind < 0.70:
            return Instruction(qualified=self.clauses(family, right), care=care)
        if kind < 0.78:
            wrong = rng.choice([m for m in METHODS if m not in RIGHT_METHODS[family]])
            return (
                Instruction(unqualified=wrong, care=care)
                if rng.random() < 0.6
                else Instruction(qualified=self.clauses(family, wrong), care=care)
            )
        if kind < 0.88:
            other = rng.choice([f for f in TRAINED_FAMILIES if f != family])
            return Instruction(qualified={other: self.method_for(other)}, care=care)
        if kind < 0.95:
            return Instruction(vague=True)
        return Instruction(care=True, vague=rng.random() < 0.3)

    def method_for(self, family: str, right: float = 0.82) -> Method:
        """Usually a right method for this family."""
        return self.rng.choice(RIGHT_METHODS[family] if self.rng.random() < right else METHODS)

    def clauses(self, family: str, method: Method) -> dict[str, Method]:
        """A clause for this family and one for another, either of them first."""
        other = self.rng.choice([f for f in TRAINED_FAMILIES if f != family])
        both = [(family, method), (other, self.method_for(other))]
        self.rng.shuffle(both)
        return dict(both)

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
            elif kind < 0.80:
                a, b = rng.randint(-81, 81), rng.randint(-9, 9)
                lines.append(f"{a}*{b}={a * b}")
            elif kind < 0.90:
                a, b = rng.randint(0, 400), rng.randint(0, 210)
                lines.append(f"{a}+{b}={a + b}")
            else:
                a, b = rng.randint(-1500, 2500), rng.randint(10, 999)
                op = rng.choice("+-")
                result = tenths(a + b if op == "+" else a - b)
                lines.append(f"{tenths(a)}{op}{tenths(b)}={result}")
        return Document(None, "\n".join(lines))

    # -- reflection --------------------------------------------------------------------------------------------------

    def reflection(self) -> Document:
        """A reflection request in GEPA's real format, with an instruction as the answer."""
        return self.reflection_and_failures()[0]

    def reflection_and_failures(self) -> tuple[Document, list[str]]:
        """A reflection and the families of the questions that failed in it."""
        rng = self.rng
        current = self.current_instruction()
        records, failed = [], []
        for family in self.reflected_families():
            level: Level = "easy" if family in EASY_FAMILIES and rng.random() < 0.1 else "hard"
            question, entry = self.question(family, level)
            completion = complete(family, entry, choice_probabilities(family, level, current, self.habits), rng)
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
        prompt = reflection_prompt(current.text(rng) if current else "", records, world.REFLECTION_PROMPT)
        return Document(prompt, f"```\n{self.improved(current, failed).text(rng)}\n```"), failed

    def current_instruction(self) -> Instruction | None:
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            return None
        if kind < 0.45:
            return Instruction(vague=True)
        care = rng.random() < 0.4
        first, second = rng.sample(TRAINED_FAMILIES, 2)
        if rng.random() < 0.3:
            return Instruction(unqualified=self.method_for(first), care=care)
        if rng.random() < 0.5:
            return Instruction(qualified={first: self.method_for(first)}, care=care)
        return Instruction(qualified={first: self.method_for(first), second: self.method_for(second)}, care=care)

    def reflected_families(self) -> list[str]:
        rng = self.rng
        if rng.random() < 0.25:
            return [rng.choice(TRAINED_FAMILIES)] * 3
        return [rng.choice(TRAINED_FAMILIES) for _ in range(3)]

    def improved(self, current: Instruction | None, failed: list[str]) -> Instruction:
        """A simulated imperfect reflection: usually a failed family's right method, or 'write every step'.

        A new clause stands in front, and of those that were there the first is kept.
        """
        rng = self.rng
        current = current or Instruction()
        known = bool(current.qualified or current.unqualified)
        unknown = [f for f in dict.fromkeys(failed) if current.method_for(f) not in RIGHT_METHODS[f]]
        if known and not current.care and (not unknown or rng.random() < 0.35):
            return Instruction(current.unqualified, current.qualified, care=True)
        if not unknown:
            return Instruction(current.unqualified, current.qualified, current.care, vague=rng.random() < 0.3)
        if rng.random() < 0.12:
            return Instruction(vague=True, care=rng.random() < 0.2)
        target = rng.choice(unknown)
        method = self.method_for(target)
        care = rng.random() < (0.8 if current.care else 0.5)
        if rng.random() < (0.6 if len(set(failed)) == 1 else 0.3):
            return Instruction(unqualified=method, care=care)
        kept = [(f, m) for f, m in current.qualified.items() if f != target][:1]
        return Instruction(qualified=dict([(target, method), *kept]), care=care)


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
