"""Questions that take a calculator, and the tools: one that calculates, and one that only estimates.

Products of one-digit numbers are easy: the model knows them. The hard questions are out of its reach unless it calls
[`calculate`] for every operation, one after the other. It can call [`estimate`] in the same way, and fails.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset

from p2o.completions import final_text
from p2o.holdout import is_held_out
from p2o.pico.world import ANSWER_FORMAT, extract_answer
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.seeding import derive_seed

Family = Literal["small_product", "product", "sum_of_products", "word_problem"]

EASY_FAMILIES: tuple[Family, ...] = ("small_product",)
HARD_FAMILIES: tuple[Family, ...] = ("product", "sum_of_products")
HELD_OUT_FAMILIES: tuple[Family, ...] = ("word_problem",)

ASKED = ["What is {}?", "Compute {}.", "Work out {}.", "How much is {}?", "Find {}."]
STORIES = [
    "{} crates hold {} bottles each, and {} boxes hold {} each. How many bottles are there?",
    "{} rows have {} seats each, and {} rows have {} each. How many seats are there?",
    "{} shelves hold {} books each, and {} shelves hold {} each. How many books are there?",
    "{} bags weigh {} grams each, and {} bags weigh {} each. How many grams do they weigh?",
]


# -- tools -----------------------------------------------------------------------------------------------------------


def calculate(expression: str) -> str:
    """Calculates with two whole numbers.

    Args:
        expression: two whole numbers with +, - or * between them, such as 37*48.

    Returns:
        The result.

    Raises:
        ValueError: anything else.
    """
    left, operator, right = _operation(expression)
    return str(_applied(left, operator, right))


def estimate(expression: str) -> str:
    """Estimates a result from the first digits of two whole numbers.

    Args:
        expression: two whole numbers with +, - or * between them, such as 37*48.

    Returns:
        The result of both numbers rounded to their first digit.

    Raises:
        ValueError: anything else.
    """
    left, operator, right = _operation(expression)
    return str(_applied(_rounded(left), operator, _rounded(right)))


def _operation(expression: str) -> tuple[int, str, int]:
    found = re.fullmatch(r"\s*(-?\d{1,12})\s*([-+*])\s*(-?\d{1,12})\s*", str(expression))
    if found is None:
        raise ValueError(f"{expression!r} is not two whole numbers with +, - or * between them")
    return int(found[1]), found[2], int(found[3])


def _applied(left: int, operator: str, right: int) -> int:
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def _rounded(number: int) -> int:
    return round(number, 1 - len(str(abs(number))))


# -- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question and how it is worked out.

    Args:
        steps: expressions of one operation each, in which `{0}` stands for the result of the first, and so on.
    """

    family: Family
    text: str
    steps: tuple[str, ...]

    def calls(self, tool: Callable[[str], str]) -> list[tuple[str, str]]:
        """Each expression with what the tool returns for it."""
        results: list[str] = []
        called = []
        for step in self.steps:
            expression = step.format(*results)
            results.append(tool(expression))
            called.append((expression, results[-1]))
        return called

    @property
    def solution(self) -> str:
        return self.calls(calculate)[-1][1]


def questions(family: Family, seed: int) -> Iterator[Question]:
    """Endless questions of one family, held out ones among them."""
    rng = random.Random(derive_seed(seed, "tools", family))
    while True:
        if family == "small_product":
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            yield Question(family, rng.choice(ASKED).format(f"{a}*{b}"), (f"{a}*{b}",))
            continue
        a, b, c, d = (rng.randint(11, 99) for _ in range(4))
        if family == "product":
            steps = (f"{a}*{b}", f"{{0}}*{c}", f"{{1}}*{d}")
            yield Question(family, rng.choice(ASKED).format(f"{a}*{b}*{c}*{d}"), steps)
            continue
        told = rng.choice(ASKED).format(f"{a}*{b}+{c}*{d}")
        if family == "word_problem":
            told = rng.choice(STORIES).format(a, b, c, d)
        yield Question(family, told, (f"{a}*{b}", f"{c}*{d}", "{0}+{1}"))


def _rows(families: tuple[Family, ...], count: int, seed: int, held_out: bool) -> list[dict[str, Any]]:
    """`count` different questions, in equal parts of these families."""
    rows = []
    for family in families:
        seen: set[str] = set()
        for question in questions(family, seed):
            if len(seen) == count // len(families):
                break
            if is_held_out(question.text) is not held_out or question.text in seen:
                continue
            seen.add(question.text)
            prompt = [{"role": "user", "content": question.text}]
            rows.append({"prompt": prompt, "solution": question.solution, "family": family})
    return rows


def train_dataset(seed: int = 0, hard: int = 72, easy: int = 24) -> Dataset:
    """Questions for training; columns `prompt` (chat), `solution` and `family`."""
    start = derive_seed(seed, "train")
    rows = _rows(HARD_FAMILIES, hard, start, held_out=False) + _rows(EASY_FAMILIES, easy, start, held_out=False)
    return Dataset.from_list(rows)


def eval_dataset(seed: int = 0, per_split: int = 96) -> dict[str, Dataset]:
    """Questions that neither training nor the base model's corpus contains, by split.

    `easy` and `hard` are of the trained families, `unseen_families` are word problems. There are about forty held out
    products of one-digit numbers, so `easy` is shorter.
    """
    start = derive_seed(seed, "evaluation")
    families = {"easy": EASY_FAMILIES, "hard": HARD_FAMILIES, "unseen_families": HELD_OUT_FAMILIES}
    counts = {"easy": min(per_split, 32)}
    return {
        split: Dataset.from_list(_rows(of, counts.get(split, per_split), start, held_out=True))
        for split, of in families.items()
    }


def validation_dataset(per_split: int = 48) -> dict[str, Dataset]:
    """`validation_hard`: held out, disjoint from the evaluation sets; for curves and tuning."""
    evaluated = {row["prompt"][0]["content"] for row in eval_dataset()["hard"]}
    others = eval_dataset(seed=1, per_split=2 * per_split)["hard"]
    rows = [row for row in others if row["prompt"][0]["content"] not in evaluated]
    share = per_split // len(HARD_FAMILIES)
    by_family = [[row for row in rows if row["family"] == family][:share] for family in HARD_FAMILIES]
    return {"validation_hard": Dataset.from_list([row for family in by_family for row in family])}


# -- reward and feedback ---------------------------------------------------------------------------------------------


def accuracy_reward(completions: list[Any], solution: list[str], **kwargs: Any) -> list[float]:
    """1 if the last message ends with the right answer, else 0; a reward function by TRL's convention."""
    answers = [extract_answer(final_text(completion)) for completion in completions]
    return [float(answer == gold) for answer, gold in zip(answers, solution, strict=True)]


def feedback(completion: str, row: dict[str, Any]) -> str:
    """Feedback for the reflection model on one rollout of a `train_dataset` row."""
    extracted = extract_answer(completion)
    return rollout_feedback(
        reward=row["reward"], extracted=extracted, solution=row["solution"], answer_format=ANSWER_FORMAT
    )
