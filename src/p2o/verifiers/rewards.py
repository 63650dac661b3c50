"""Reward functions by TRL's convention, on the verifiers."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from p2o.verifiers.pool import shared_pool

EXPECTED = ("right", "wrong", "no answer")


def math_reward(
    completions: list[Any],
    solution: list[str],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where math-verify finds the answer equal to the solution, else 0; None where the solution cannot be read.

    Time-outs, crashes and the like are 0 and are counted in the metrics as `verifier/<reason>`.

    Args:
        completions: texts, or chats of which the last message counts.
        log_metric: TRL's.
    """
    return _rewards(completions, solution, "math", log_metric)


def exact_reward(
    completions: list[Any],
    solution: list[str],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where the last `\\boxed{…}`, or the whole completion where there is none, is the solution to the letter."""
    return _rewards(completions, solution, "exact", log_metric)


def _rewards(
    completions: list[Any],
    solutions: list[str],
    verifier: Literal["math", "exact"],
    log_metric: Callable[[str, float], None] | None,
) -> list[float | None]:
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    verdicts = shared_pool().verify(texts, solutions, verifier)
    if log_metric is not None:
        for reason, count in Counter(v.reason for v in verdicts if v.reason not in EXPECTED).items():
            log_metric(f"verifier/{reason}", float(count))
    return [verdict.reward for verdict in verdicts]
