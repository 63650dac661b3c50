"""Curves from a run's metric stream. Pure."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from statistics import mean
from typing import Any

Record = Mapping[str, Any]

WITH_PROMPTS = "with_prompts/"
"""How the name of an evaluation set begins whose questions stand behind the best template."""


def accuracy_curves(records: Iterable[Record]) -> dict[str, list[tuple[int, float]]]:
    """By evaluation set: rollouts spent so far, prompt phases included, and bare accuracy in [0, 1].

    What was measured with prompts, once, is on none of them.
    """
    total, curves = 0, defaultdict(list)
    for record in records:
        total = record.get("p2o/rollouts/total", total)
        for name, value in record.items():
            split = name.removeprefix("eval_").removesuffix("_accuracy")
            is_accuracy = name.startswith("eval_") and name.endswith("_accuracy")
            if is_accuracy and value is not None and not split.startswith(WITH_PROMPTS):
                curves[split].append((total, value))
    return dict(curves)


def prompt_phases(records: Iterable[Record]) -> list[tuple[int, int]]:
    """The prompt phases of a run: rollouts spent in all when each began and when it ended, reflections included."""
    total = spent = 0
    phases = []
    for record in records:
        if "p2o/rollouts/total" not in record:
            continue
        in_all = record["p2o/rollouts/total"]
        in_phases = in_all - record.get("p2o/rollouts/policy", in_all)
        if in_phases > spent:
            phases.append((total, total + in_phases - spent))
        total, spent = in_all, in_phases
    return phases


def by_epoch(
    records: Iterable[Record], name: str, parts: int = 1, of: Callable[[list[float]], float] = mean
) -> list[tuple[float, float]]:
    """Epoch, from 1 on, and the mean (or what else `of`) of a training metric over those of its steps that logged it.

    With several `parts` of an epoch, each by its end: 0.25, 0.5, ….
    """
    values = defaultdict(list)
    for record in records:
        # Steps that reuse the rollouts of an earlier step log none.
        if "loss" in record and record.get(name) is not None and not math.isnan(record[name]):
            values[math.ceil(round(record["epoch"] * parts, 6))].append(record[name])
    return [(part / parts, of(found)) for part, found in sorted(values.items())]


def headline(splits: Iterable[str]) -> str | None:
    """The evaluation set for figures with one curve: the hard one if present, else the first."""
    names = list(splits)
    return next((name for name in names if name.endswith("hard")), names[0] if names else None)
