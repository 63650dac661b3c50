"""The budget of a prompt phase, and the split of the hard set. Pure."""

import math
import random
from collections.abc import Sequence

# Candidates that each preset allows for: DSPy's auto budgets, and the setting of the paper's main experiments.
PRESET_CANDIDATES = {"light": 6, "medium": 12, "heavy": 18, "heavy_4": 72}


def parse_budget(option: str, value: str | int) -> str | int:
    """A budget as [`metric_call_budget`] takes it, from what a user wrote.

    Raises:
        ValueError: neither a number of rollouts nor a preset; `option` is the name in the message.
    """
    text = str(value)
    if text in PRESET_CANDIDATES:
        return text
    if text.isdecimal():
        return int(text)
    presets = ", ".join(PRESET_CANDIDATES)
    raise ValueError(f"{option}={text!r} is neither a number of rollouts nor one of {presets}.")


def metric_call_budget(budget: str | int, dev_questions: int) -> int:
    """Rollouts a prompt phase may spend, with `dev_questions` questions to score candidates on.

    A number is taken as it is. A preset with n candidates follows DSPy's formula: N = max(4·log2 n, 1.5·n) trials and
    V + 5n + 35N + ((N + 1)//5 + 1)·V rollouts, V the number of dev questions.

    Raises:
        ValueError: an unknown preset.
    """
    if isinstance(budget, int):
        return budget
    if budget not in PRESET_CANDIDATES:
        raise ValueError(f"Unknown budget {budget!r}; choose a number or one of {', '.join(PRESET_CANDIDATES)}.")
    n, v = PRESET_CANDIDATES[budget], dev_questions
    trials = int(max(4 * math.log2(n), 1.5 * n))
    return v + 5 * n + 35 * trials + ((trials + 1) // 5 + 1) * v


def dev_size(hard: int, max_dev: int) -> int:
    """Dev questions of a hard set of this size: `max_dev`, or half when there are under 1.5 × that."""
    return max_dev if hard >= 1.5 * max_dev else hard // 2


def split_hard_set(questions: Sequence[int], *, max_dev: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Splits at random into feedback and dev questions, [`dev_size`] of them for dev.

    Both in ascending order. With two questions or more neither is empty.
    """
    shuffled = sorted(questions)
    rng.shuffle(shuffled)
    dev = dev_size(len(shuffled), max_dev)
    return sorted(shuffled[dev:]), sorted(shuffled[:dev])
