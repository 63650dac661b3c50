"""What groups of rollouts to expect in training: how many collapse, how many questions are hard. Pure.

A group of K rollouts collapses if all of them succeed or all fail: its advantages are zero, and GRPO learns nothing
from it. With s successes in n rollouts of a question, the chance that a group of K ≤ n has j of them is estimated
without bias by drawing K of the n: C(s, j) C(n − s, K − j) / C(n, K). (For j = 0 this is 1 − pass@k of Chen et al.
2021, arXiv 2107.03374.) For K > n there is no unbiased estimate. There we fit the distribution of
pass rates over the questions, without assuming its form (a mixture over a grid of rates, by expectation maximisation),
and take each question's posterior under it: a set of hopeless questions is expected to stay hopeless. It is a model's
estimate, and reported as one. A beta distribution in its place is better where rates are beta distributed, and much
worse where many questions are hopeless and others are not.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from p2o.prompt_phase.hard_samples import Outcome

SIZES = (4, 8, 16, 32)
"""`num_generations` that a profile reports."""
WORTH = 0.1
"""Twice the rollouts have to save this share of all groups from collapse, or they are not recommended."""
# Pass rates of the fitted distribution: 0, 1, and towards both as close as a thousandth.
_LOW = np.geomspace(1e-3, 0.5, 60)
GRID: Float[np.ndarray, " rates"] = np.concatenate([[0.0], _LOW, 1 - _LOW[-2::-1], [1.0]])
ROUNDS_PER_QUESTION, MOST_ROUNDS = 3, 300
"""Of the fit. It begins with all rates of the grid alike, and sharpens with every round: few questions prove little."""


@dataclass(frozen=True)
class GroupForecast:
    """Expected shares of the groups of a training batch, each in [0, 1].

    Args:
        size: rollouts in a group, K.
        none, one, every: share of groups with no, exactly one, K successes.
        collapsed: share of groups without variance, at most that of smaller groups.
        is_unbiased: whether all questions have K scored rollouts; otherwise a distribution of pass rates was fitted.
    """

    size: int
    none: float
    one: float
    every: float
    collapsed: float
    is_unbiased: bool

    def hard(self, *, near_hard: bool) -> float:
        """Share of questions that P²O counts as hard: without success and, with `near_hard`, with exactly one."""
        return self.none + self.one if near_hard else self.none


def forecast(outcomes: Sequence[Outcome], sizes: Sequence[int]) -> dict[int, GroupForecast]:
    """What groups of each of these sizes to expect.

    Args:
        outcomes: of all questions; those without scored rollouts are left out.
        sizes: at least 2 each.

    Returns:
        By size, ascending; empty where no question has been scored.

    Raises:
        ValueError: a group of fewer than two.
    """
    if any(size < 2 for size in sizes):
        raise ValueError(f"A group has at least two rollouts; asked for {min(sizes)}.")
    counts = Counter(outcome for outcome in outcomes if outcome.rollouts)
    if not counts or not sizes:
        return {}
    total, shortest = sum(counts.values()), min(outcome.rollouts for outcome in counts)
    weights = fitted_rates(counts) if max(sizes) > shortest else None
    found, least = {}, 1.0
    for size in range(2, max(sizes) + 1):
        weighted = [(count, _chances(outcome, size, weights)) for outcome, count in counts.items()]
        none, one, every = (math.fsum(count * chances[i] for count, chances in weighted) / total for i in range(3))
        # Larger groups never collapse more often; where a model takes over from counting, the estimate could.
        least = min(least, none + every)
        if size in sizes:
            found[size] = GroupForecast(size, none, one, every, least, size <= shortest)
    return found


def _chances(outcome: Outcome, size: int, weights: Float[np.ndarray, " rates"] | None) -> tuple[float, float, float]:
    """Of no, exactly one, and only successes in a group of this size.

    Args:
        weights: of the rates in [`GRID`]; None where the group is no larger than the scored rollouts.
    """
    right, scored = outcome.successes, outcome.rollouts
    wrong = scored - right
    if size <= scored:
        ways = math.comb(scored, size)
        return math.comb(wrong, size) / ways, right * math.comb(wrong, size - 1) / ways, math.comb(right, size) / ways
    assert weights is not None
    posterior = weights * stats.binom.pmf(right, scored, GRID)
    posterior /= posterior.sum()
    none, one, every = (float(posterior @ stats.binom.pmf(j, size, GRID)) for j in (0, 1, size))
    return none, one, every


def fitted_rates(counts: Mapping[Outcome, int]) -> Float[np.ndarray, " rates"]:
    """The distribution of pass rates under which these outcomes are likely.

    Args:
        counts: questions by outcome, each with scored rollouts.

    Returns:
        Weights of the rates in [`GRID`], with the sum 1.
    """
    questions = sum(counts.values())
    shares = np.array(list(counts.values())) / questions
    right, scored = (np.array([getattr(o, name) for o in counts])[:, None] for name in ("successes", "rollouts"))
    likelihood: Float[np.ndarray, "outcomes rates"] = stats.binom.pmf(right, scored, GRID)
    weights = np.full(len(GRID), 1 / len(GRID))
    for _ in range(min(ROUNDS_PER_QUESTION * questions, MOST_ROUNDS)):
        posterior = weights * likelihood
        weights = shares @ (posterior / posterior.sum(axis=1, keepdims=True))
    return weights / weights.sum()


def recommended_size(outcomes: Sequence[Outcome]) -> int | None:
    """A `num_generations`: the smallest of [`SIZES`] that is not worth doubling, the largest where all are.

    Doubling is worth it where it saves at least [`WORTH`] of all groups from collapse. None where nothing was scored.
    """
    found = forecast(outcomes, [*SIZES, 2 * SIZES[-1]])
    if not found:
        return None
    saved = {size: found[size].collapsed - found[2 * size].collapsed for size in SIZES}
    return next((size for size in SIZES if saved[size] < WORTH), SIZES[-1])
