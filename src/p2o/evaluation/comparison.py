"""Two evaluations of the same questions compared. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from p2o.continuation import differences
from p2o.evaluation.statistics import mcnemar, paired_bootstrap
from p2o.seeding import derive_seed


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, seed: int = 0, resamples: int = 10_000) -> Any:
    """The second evaluation against the first, question by question.

    The difference of avg@n has a paired bootstrap over questions; with n = 1 there is an exact McNemar test as well.

    Args:
        first, second: results as `p2o eval` writes them.
        seed: of the bootstrap.

    Returns:
        By task: `first` and `second` avg@n, `difference`, `low`, `high` (95 %), `p_value`, with n = 1 `mcnemar` with
        `gained`, `lost` and `p_value`, `unscored` questions, left out because one of the two has no scored answer, and
        `questions` with their difference, largest first.

    Raises:
        ValueError: evaluations of different questions, or under settings that make their numbers differ.
    """
    changed = differences(first["settings"]["sampling"], second["settings"]["sampling"])
    if changed:
        raise ValueError(f"The two were sampled differently: {changed}. Evaluate both in the same way.")
    tasks = (first["tasks"], second["tasks"])
    if set(tasks[0]) != set(tasks[1]):
        only = [", ".join(sorted(set(one) - set(other))) or "nothing" for one, other in (tasks, tasks[::-1])]
        raise ValueError(f"They are of different tasks: only the first has {only[0]}, only the second {only[1]}.")
    compared = {}
    for name in tasks[0]:
        every = _paired(name, tasks[0][name]["by_question"], tasks[1][name]["by_question"])
        pairs = [pair for pair in every if all(any(r is not None for r in q["rewards"]) for q in pair)]
        if not pairs:
            raise ValueError(f"{name}: there is no question of which both have a scored answer.")
        means = [tuple(_scored_mean(q["rewards"]) for q in pair) for pair in pairs]
        changes = [b - a for a, b in means]
        found = paired_bootstrap(changes, seed=derive_seed(seed, "comparison", name), resamples=resamples)
        entry: dict[str, Any] = {
            "first": math.fsum(a for a, _ in means) / len(means),
            "second": math.fsum(b for _, b in means) / len(means),
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "unscored": len(every) - len(pairs),
            "questions": sorted(
                (
                    {"question": a["question"], "text": a["text"], "first": before, "second": after}
                    for (a, _), (before, after) in zip(pairs, means, strict=True)
                    if before != after
                ),
                key=lambda q: -abs(q["second"] - q["first"]),
            ),
        }
        if len(pairs[0][0]["rewards"]) == 1:
            gained, lost = (sum(pair[i]["right"] > pair[1 - i]["right"] for pair in pairs) for i in (1, 0))
            entry["mcnemar"] = {"gained": gained, "lost": lost, "p_value": mcnemar(gained, lost)}
        compared[name] = entry
    return compared


def _scored_mean(rewards: Sequence[float | None]) -> float:
    scored = [reward for reward in rewards if reward is not None]
    return math.fsum(scored) / len(scored)


def _paired(name: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[Any]:
    if len(first) != len(second):
        raise ValueError(f"{name}: the first has {len(first)} questions, the second {len(second)}.")
    pairs = list(zip(first, second, strict=True))
    other = [a["question"] for a, b in pairs if a["key"] != b["key"]]
    if other:
        raise ValueError(
            f"{name}: {len(other)} of {len(pairs)} questions are not the same, question {other[0]} the first of them. "
            "The task was loaded with other options or from another version."
        )
    uneven = [a["question"] for a, b in pairs if len(a["rewards"]) != len(b["rewards"])]
    if uneven:
        a, b = pairs[uneven[0]]
        raise ValueError(
            f"{name}: n = {len(a['rewards'])} in the first and {len(b['rewards'])} in the second. Evaluate both with "
            "the same --n."
        )
    return pairs
