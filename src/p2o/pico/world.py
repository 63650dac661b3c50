"""The tasks of the embedded world: reasoning-gym's questions and scorers, and a worked method for each family.

A *family* is one of reasoning-gym's. Its easy questions can be answered directly; its hard ones are out of reach unless
worked through by the family's one right *method*, line by line. Every method can be applied to every family, as a
model that follows any instruction would, and fails on all other families.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import reasoning_gym
import yaml
from datasets import Dataset

from p2o.holdout import is_held_out
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.verifiers.gym_readers import is_right

Level = Literal["easy", "hard", "harder"]
Tool = Literal["calculator", "estimator"]
Method = Literal["left to right", "products first", "four parts", "legs each", "rounded"] | Tool

METHODS: tuple[Method, ...] = ("left to right", "products first", "four parts", "legs each", "rounded")
RIGHT_METHOD: dict[str, Method] = {
    "chain_sum": "left to right",
    "basic_arithmetic": "products first",
    "complex_arithmetic": "four parts",
    "leg_counting": "legs each",
    "decimal_chain_sum": "left to right",
}
TRAINED_FAMILIES = ("chain_sum", "basic_arithmetic", "complex_arithmetic", "leg_counting")
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
    ("leg_counting", "easy"): {"min_animals": 1, "max_animals": 2},
    ("leg_counting", "hard"): {"min_animals": 4, "max_animals": 4},
    ("leg_counting", "harder"): {"min_animals": 5, "max_animals": 5},
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


@dataclass(frozen=True)
class Work:
    """The result of a method: its lines and its answer."""

    lines: tuple[str, ...]
    answer: str


# -- questions -------------------------------------------------------------------------------------------------------


def questions(family: str, level: Level, seed: int) -> Iterator[dict[str, Any]]:
    """Endless reasoning-gym entries (`question`, `answer`, `metadata`) of one family and level.

    Seeds must be spaced far apart: reasoning-gym seeds item i with `seed + i`.
    """
    config = {**FIXED.get(family, {}), **LEVELS[family, level]}
    dataset = reasoning_gym.create_dataset(family, seed=seed, size=10**9, **config)
    for index in range(10**9):
        entry = dataset[index]
        if family != "basic_arithmetic" or _is_plain_expression(entry["metadata"]["expression"], level):
            yield entry


def _is_plain_expression(expression: str, level: Level) -> bool:
    """No parentheses; a hard one has two products or more, no run of four factors, and precedence matters."""
    if "(" in expression:
        return False
    if level == "easy":
        return True
    runs = [run.count("*") for run in re.split(r" [+-] ", expression)]
    numbers, operators = _chain(expression)
    return sum(runs) >= 2 and max(runs) <= 2 and _fold(numbers, operators)[1] != eval(expression)


# -- methods ---------------------------------------------------------------------------------------------------------


def _chain(expression: str) -> tuple[list[int], list[str]]:
    """Numbers and operators of `3 - 4 * -2`; decimals come in tenths."""
    parts = expression.replace(".", "").split(" ")
    return [int(part) for part in parts[::2]], parts[1::2]


def _apply(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def _fold(numbers: list[int], operators: list[str], text: Any = str) -> tuple[list[str], int]:
    total, lines = numbers[0], []
    for operator, number in zip(operators, numbers[1:], strict=True):
        result = _apply(total, operator, number)
        lines.append(f"{text(total)}{operator}{text(number)}={text(result)}")
        total = result
    return lines, total


def tenths(value: int) -> str:
    return f"{'-' if value < 0 else ''}{abs(value) // 10}.{abs(value) % 10}"


def _numbers(family: str, entry: dict[str, Any]) -> tuple[list[int], list[str]]:
    """The question as plain numbers with operators between them, as a method for another family reads it."""
    metadata = entry["metadata"]
    if family == "leg_counting":
        counts = list(metadata["animals"].values())
        return counts, ["+"] * (len(counts) - 1)
    if family == "complex_arithmetic":
        return [int(x) for x in (*metadata["num1"], *metadata["num2"])], ["+"] * 3
    return _chain(metadata["expression"])


def _first_digits(numbers: list[int]) -> list[int]:
    return [int(str(abs(n))[0]) for n in numbers]


def format_complex(real: int, imaginary: int) -> str:
    return f"{real}{'-' if imaginary < 0 else '+'}{abs(imaginary)}i"


def work(family: str, entry: dict[str, Any], method: Method) -> Work:
    """Applies `method` to the question: in full if it is the family's right one, else a few plausible lines."""
    numbers, operators = _numbers(family, entry)
    right = RIGHT_METHOD[family] == method
    if method == "left to right":
        text = tenths if family == "decimal_chain_sum" else str
        lines, total = _fold(numbers, operators, text)
        return Work(tuple(lines), text(total))
    if method == "products first" and right:
        return _products_first(numbers, operators)
    if method == "four parts" and right:
        return _four_parts(numbers, entry["metadata"]["operation"])
    if method == "legs each" and right:
        return _legs_each(entry["metadata"]["animals"], entry["metadata"]["total_legs"])
    if method == "rounded":
        rounded = [round(n / 10) * 10 for n in numbers[:3]]
        lines, total = _fold(rounded, ["+" if op == "*" else op for op in operators[:2]])
        return Work(tuple(lines), str(total))
    digits = _first_digits(numbers)
    digits += digits[:1] * (4 - len(digits))
    a, b, c, d = digits[:4]
    if method == "products first":
        return Work((f"{a}*{b}={a * b}", f"{a * b}+{c}={a * b + c}"), str(a * b + c))
    if method == "four parts":
        return Work((f"{a}*{c}={a * c}", f"{b}*{d}={b * d}", f"{a * c}-{b * d}={a * c - b * d}"), str(a * c - b * d))
    return Work((f"{a}*4={a * 4}", f"{b}*4={b * 4}", f"{a * 4}+{b * 4}={(a + b) * 4}"), str((a + b) * 4))


def _products_first(numbers: list[int], operators: list[str]) -> Work:
    lines: list[str] = []
    terms, signs = [numbers[0]], []
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            lines.append(f"{terms[-1]}*{number}={terms[-1] * number}")
            terms[-1] *= number
        else:
            terms.append(number)
            signs.append(operator)
    sums, total = _fold(terms, signs)
    return Work((*lines, *sums), str(total))


def _four_parts(parts: list[int], operation: str) -> Work:
    a, b, c, d = parts
    if operation != "*":
        real, imaginary = _apply(a, operation, c), _apply(b, operation, d)
        return Work((f"{a}{operation}{c}={real}", f"{b}{operation}{d}={imaginary}"), format_complex(real, imaginary))
    ac, bd, ad, bc = a * c, b * d, a * d, b * c
    lines = (
        f"{a}*{c}={ac}",
        f"{b}*{d}={bd}",
        f"{ac}-{bd}={ac - bd}",
        f"{a}*{d}={ad}",
        f"{b}*{c}={bc}",
        f"{ad}+{bc}={ad + bc}",
    )
    return Work(lines, format_complex(ac - bd, ad + bc))


def _legs_each(animals: dict[str, int], total_legs: int) -> Work:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    lines: list[str] = []
    total: int | None = None
    for animal, count in animals.items():
        legs = ANIMALS[animal]
        lines.append(f"{count}*{legs}={count * legs}")
        if total is not None:
            lines.append(f"{total}+{count * legs}={total + count * legs}")
        total = (total or 0) + count * legs
    return Work(tuple(lines), str(total_legs))


def direct_answer(family: str, entry: dict[str, Any]) -> str:
    """The right answer, formatted as in the worked solution."""
    return work(family, entry, RIGHT_METHOD[family]).answer


def worked_solution(family: str, entry: str) -> str:
    """The lines of the family's right method for this entry, as JSON."""
    return "\n".join(work(family, json.loads(entry), RIGHT_METHOD[family]).lines)


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


def train_dataset(seed: int = 0, hard: int = 72, easy: int = 24) -> Dataset:
    """Questions for training, spread evenly over the trained families.

    Columns: `prompt` (chat), `solution`, `family`, `level`, `entry` (reasoning-gym's own, as JSON, for its scorer),
    `worked_solution` (the lines of the right method, for hints).
    """
    families = len(TRAINED_FAMILIES)
    cells: list[tuple[str, Level, int]] = [(f, "hard", hard // families) for f in TRAINED_FAMILIES]
    cells += [(f, "easy", easy // families) for f in TRAINED_FAMILIES]
    rows = _rows(cells, TRAIN_SEED + seed * 10**9, held_out=False)
    return Dataset.from_list([{**row, "worked_solution": worked_solution(row["family"], row["entry"])} for row in rows])


def eval_dataset(seed: int = 0, per_split: int = 96) -> dict[str, Dataset]:
    """Questions that neither training nor the base model's corpus contains, by split.

    `easy` and `hard` are of the trained families and levels; `unseen_levels` are harder ones of these families,
    `unseen_families` are hard questions of a family that is never trained on.
    """
    start = EVAL_SEED + seed * 10**9
    cells: dict[str, list[tuple[str, Level]]] = {
        "easy": [(f, "easy") for f in TRAINED_FAMILIES],
        "hard": [(f, "hard") for f in TRAINED_FAMILIES],
        "unseen_levels": [(f, "harder") for f in TRAINED_FAMILIES if (f, "harder") in LEVELS],
        "unseen_families": [(f, "hard") for f in HELD_OUT_FAMILIES],
    }
    return {
        split: Dataset.from_list(
            _rows([(f, lv, per_split // len(pairs)) for f, lv in pairs], start + i * 10**10, held_out=True)
        )
        for i, (split, pairs) in enumerate(cells.items())
    }


def validation_dataset(per_split: int = 48) -> dict[str, Dataset]:
    """`validation_easy` and `validation_hard`: held out, disjoint from the evaluation sets; for curves and tuning."""
    evaluated = {row["prompt"][0]["content"] for rows in eval_dataset().values() for row in rows}
    others = eval_dataset(seed=1, per_split=2 * per_split)
    share = per_split // len(TRAINED_FAMILIES)
    validation = {}
    for split in ("easy", "hard"):
        rows = [row for row in others[split] if row["prompt"][0]["content"] not in evaluated]
        by_family = [[row for row in rows if row["family"] == family][:share] for family in TRAINED_FAMILIES]
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
    return answer is not None and is_right(answer, family, json.loads(entry))


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
