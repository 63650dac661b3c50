"""The tasks of the embedded world: reasoning-gym's questions and scorers, in families that build on each other.

A *family* is one of reasoning-gym's, or a sum of its complex numbers. Easy questions can be answered directly; hard
ones are out of reach unless worked through by a right *method* of the family, line by line ([`p2o.pico.methods`]).
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import reasoning_gym
import yaml
from datasets import Dataset

from p2o.holdout import is_held_out
from p2o.pico.methods import RIGHT_METHODS, format_complex, is_plain_expression, work
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.seeding import derive_seed
from p2o.verifiers.gym_readers import is_right

Level = Literal["easy", "hard", "harder"]

TIERS: dict[str, int] = {
    "chain_sum": 0,
    "basic_arithmetic": 1,
    "complex_arithmetic": 2,
    "complex_sum": 3,
}
"""Families that are trained on, by the tier from which their right instruction works."""
TRAINED_FAMILIES = tuple(TIERS)
EASY_FAMILIES = ("chain_sum", "basic_arithmetic", "complex_arithmetic")
UNREACHABLE_FAMILIES = ("products",)
HELD_OUT_FAMILIES = ("decimal_chain_sum",)

LEVELS: dict[tuple[str, Level], dict[str, Any]] = {
    ("chain_sum", "easy"): {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ("chain_sum", "hard"): {"min_terms": 5, "max_terms": 5, "min_digits": 2, "max_digits": 2},
    ("chain_sum", "harder"): {"min_terms": 6, "max_terms": 7, "min_digits": 2, "max_digits": 2},
    ("basic_arithmetic", "easy"): {"min_terms": 2, "max_terms": 3},
    ("basic_arithmetic", "hard"): {"min_terms": 5, "max_terms": 5},
    ("basic_arithmetic", "harder"): {"min_terms": 6, "max_terms": 6},
    ("complex_arithmetic", "easy"): {"operations_weights": [0.5, 0.5, 0.0, 0.0]},
    ("complex_arithmetic", "hard"): {"operations_weights": [0.0, 0.0, 1.0, 0.0]},
    ("complex_sum", "hard"): {},
    ("products", "hard"): {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3},
    ("decimal_chain_sum", "easy"): {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ("decimal_chain_sum", "hard"): {"min_terms": 4, "max_terms": 5, "min_digits": 1, "max_digits": 2},
}
FIXED: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {
        "min_digits": 1,
        "max_digits": 1,
        "operators": ("+", "-", "*"),
        "allow_negation": False,
    },
    "decimal_chain_sum": {"min_decimal_places": 1, "max_decimal_places": 1},
}

ANSWER = "Answer: "
ANSWER_FORMAT = "End with a line `Answer: ...`."
RECIPE = Path(__file__).parent / "recipe.yaml"
# The wording that the base model was taught to answer is the one that training asks it with.
REFLECTION_PROMPT: str = yaml.safe_load(RECIPE.read_text())["reflection_prompt"]


# -- questions -------------------------------------------------------------------------------------------------------


def questions(family: str, level: Level, seed: int) -> Iterator[dict[str, Any]]:
    """Endless reasoning-gym entries (`question`, `answer`, `metadata`) of one family and level.

    Seeds must be spaced far apart: reasoning-gym seeds item i with `seed + i`.
    """
    if family == "complex_sum":
        yield from (_complex_sum(seed + index) for index in range(10**9))
    config = {**FIXED.get(family, {}), **LEVELS[family, level]}
    dataset = reasoning_gym.create_dataset(family, seed=seed, size=10**9, **config)
    for index in range(10**9):
        entry = dataset[index]
        if family != "basic_arithmetic" or is_plain_expression(entry["metadata"]["expression"], level == "easy"):
            yield entry


def _complex_sum(seed: int) -> dict[str, Any]:
    """Four complex numbers with + and - between them, written and scored as reasoning-gym does with two."""
    rng = random.Random(derive_seed(seed, "complex sum"))
    numbers = [(rng.randint(-30, 30), rng.randint(-30, 30)) for _ in range(4)]
    signs = [rng.choice("+-") for _ in range(3)]
    told = [f"({a}.0 {'-' if b < 0 else '+'} {abs(b)}.0i)" for a, b in numbers]
    question = told[0] + "".join(f" {sign} {number}" for sign, number in zip(signs, told[1:], strict=True))
    factors = [1, *(1 if sign == "+" else -1 for sign in signs)]
    result = tuple(sum(f * n for f, n in zip(factors, part, strict=True)) for part in zip(*numbers, strict=True))
    return {
        "question": f"Simplify {question}",
        "answer": format_complex(*result),
        "metadata": {"numbers": numbers, "signs": signs, "result": result},
    }


def direct_answer(family: str, entry: dict[str, Any]) -> str:
    """The right answer, formatted as in the worked solution."""
    methods = RIGHT_METHODS[family]
    return work(family, entry, methods[0]).answer if methods else str(entry["answer"])


def worked_solution(family: str, entry: str) -> str:
    """The lines of the family's first right method for this entry, as JSON; "" where no method is right."""
    methods = RIGHT_METHODS[family]
    return "\n".join(work(family, json.loads(entry), methods[0]).lines) if methods else ""


# -- data sets -------------------------------------------------------------------------------------------------------

TRAIN_SEED, EVAL_SEED, CORPUS_SEED = 10**12, 2 * 10**12, 3 * 10**12
SEED_SPACING = 10**8


def _rows(cells: list[tuple[str, Level, int]], seed: int, held_out: bool, **extra: str) -> list[dict[str, Any]]:
    rows = []
    for number, (family, level, count) in enumerate(cells):
        seen: set[str] = set()
        for entry in questions(family, level, seed + number * SEED_SPACING):
            question = entry["question"].strip()
            if is_held_out(question) is not held_out or question in seen:
                continue
            if len(seen) == count:
                break
            seen.add(question)
            rows.append(
                {
                    "prompt": [{"role": "user", "content": question}],
                    "solution": direct_answer(family, entry),
                    "family": family,
                    "level": level,
                    "entry": json.dumps(entry),
                    **extra,
                }
            )
    return rows


def _shares(count: int, families: Sequence[str]) -> dict[str, int]:
    """So many questions, divided evenly."""
    return {family: (count + number) // len(families) for number, family in enumerate(families)}


def _spread(count: int, families: Sequence[str], level: Level) -> list[tuple[str, Level, int]]:
    return [(family, level, share) for family, share in _shares(count, families).items()]


def train_dataset(seed: int = 0, hard: int = 72, easy: int = 24) -> Dataset:
    """Questions for training, spread evenly over the trained families; of the hard ones a twelfth are out of reach.

    Columns: `prompt` (chat), `solution`, `family`, `level`, `entry` (reasoning-gym's own, as JSON, for its scorer),
    `worked_solution` (the lines of the right method, for hints).
    """
    beyond = hard // 12
    cells = _spread(hard - beyond, TRAINED_FAMILIES, "hard")
    cells += _spread(beyond, UNREACHABLE_FAMILIES, "hard") + _spread(easy, EASY_FAMILIES, "easy")
    rows = _rows(cells, TRAIN_SEED + seed * 10**9, held_out=False)
    return Dataset.from_list([{**row, "worked_solution": worked_solution(row["family"], row["entry"])} for row in rows])


def eval_dataset(seed: int = 0, per_split: int = 96) -> dict[str, Dataset]:
    """Questions that neither training nor the base model's corpus contains, by split.

    `easy` and `hard` are of the trained families and levels, `upper_tiers` other hard ones of tiers 2 and 3;
    `unseen_levels` are harder ones, `unseen_families` hard questions of a family that is never trained on.
    """
    start = EVAL_SEED + seed * 10**9
    upper = [family for family, tier in TIERS.items() if tier > 1]
    harder = [family for family in TRAINED_FAMILIES if (family, "harder") in LEVELS]
    splits: dict[str, tuple[Sequence[str], Level]] = {
        "easy": (EASY_FAMILIES, "easy"),
        "hard": (TRAINED_FAMILIES, "hard"),
        "upper_tiers": (upper, "hard"),
        "unseen_levels": (harder, "harder"),
        "unseen_families": (HELD_OUT_FAMILIES, "hard"),
    }
    return {
        split: Dataset.from_list(_rows(_spread(per_split, *part), start + number * 10**10, held_out=True))
        for number, (split, part) in enumerate(splits.items())
    }


def validation_dataset(per_split: int = 48) -> dict[str, Dataset]:
    """`validation_easy` and `validation_hard`: held out, disjoint from the evaluation sets; for curves and tuning."""
    evaluated = {row["prompt"][0]["content"] for rows in eval_dataset().values() for row in rows}
    others = eval_dataset(seed=1, per_split=2 * per_split)
    validation = {}
    for split, families in (("easy", EASY_FAMILIES), ("hard", TRAINED_FAMILIES)):
        rows = [row for row in others[split] if row["prompt"][0]["content"] not in evaluated]
        shares = _shares(per_split, families).items()
        by_family = [[row for row in rows if row["family"] == family][:share] for family, share in shares]
        validation[f"validation_{split}"] = Dataset.from_list([row for family in by_family for row in family])
    return validation


# -- rewards and feedback --------------------------------------------------------------------------------------------


def extract_answer(text: str) -> str | None:
    """The text after the last `Answer:`, on its line; None if absent."""
    found = re.findall(r"^Answer:[ \t]*(\S.*?)[ \t]*$", text, flags=re.MULTILINE)
    return found[-1] if found else None


def is_correct(completion: str, family: str, entry: str) -> bool:
    """Whether reasoning-gym's own scorer gives the completion's answer full marks."""
    answer = extract_answer(completion)
    scorer = "complex_arithmetic" if family == "complex_sum" else family
    return answer is not None and is_right(answer, scorer, json.loads(entry))


def accuracy_reward(completions: list[Any], family: list[str], entry: list[str], **kwargs: Any) -> list[float]:
    """1 for a right answer, else 0; a reward function by TRL's convention."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(is_correct(*item)) for item in zip(texts, family, entry, strict=True)]


def feedback(completion: str, row: dict[str, Any]) -> str:
    """Feedback for the reflection model on one rollout of a `train_dataset` row."""
    return rollout_feedback(
        reward=row["reward"],
        extracted=extract_answer(completion),
        solution=row["solution"],
        answer_format=ANSWER_FORMAT,
    )
