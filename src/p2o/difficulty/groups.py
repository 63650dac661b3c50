"""What groups of rollouts to expect in training: how many collapse, how many questions are hard. Pure.

A group of K rollouts collapses if all of them succeed or all fail: its advantages are zero, and GRPO learns nothing
from it. With s successes in n rollouts of a question, the chance that a group of K ≤ n has j of them is estimated
without bias by drawing K of the n: C(s, j) C(n − s, K − j) / C(n, K). (For j = 0 this is 1 − pass@k of Chen et al.
2021, arXiv 2107.03374.) For K > n there is no unbiased estimate; we use the posterior predictive distribution of a
beta-binomial model: pass rates are Beta(α, β) over the questions, with α and β fitted to all of them, so that a set of
hopeless questions is expected to stay hopeless. It is a model's estimate, and reported as one.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from p2o.prompt_phase.hard_samples import Outcome

SIZES = (4, 8, 16, 32)
"""`num_generations` that a profile reports."""
WORTH = 0.1
"""Twice the rollouts have to save this share of all groups from collapse, or they are not recommended."""
# α and β of the fitted distribution lie between these.
LEAST, MOST = 0.01, 100.0


@dataclass(frozen=True)
class Prior:
    """A beta distribution of pass rates over questions."""

    alpha: float
    beta: float


@dataclass(frozen=True)
class GroupForecast:
    """Expected shares of the groups of a training batch, each in [0, 1].

    Args:
        size: rollouts in a group, K.
        none, one, every: share of groups with no, exactly one, K successes.
        collapsed: share of groups without variance, at most that of smaller groups.
        is_unbiased: whether all questions have K scored rollouts; otherwise a model was fitted.
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
    prior = fitted_prior(counts) if max(sizes) > shortest else None
    found, least = {}, 1.0
    for size in range(2, max(sizes) + 1):
        weighted = [(count, _chances(outcome, size, prior)) for outcome, count in counts.items()]
        none, one, every = (math.fsum(count * chances[i] for count, chances in weighted) / total for i in range(3))
        # Larger groups never collapse more often; where a model takes over from counting, the estimate could.
        least = min(least, none + every)
        if size in sizes:
            found[size] = GroupForecast(size, none, one, every, least, size <= shortest)
    return found


def _chances(outcome: Outcome, size: int, prior: Prior | None) -> tuple[float, float, float]:
    """Of no, exactly one, and only successes in a group of this size."""
    right, scored = outcome.successes, outcome.rollouts
    wrong = scored - right
    if size <= scored:
        ways = math.comb(scored, size)
        return math.comb(wrong, size) / ways, right * math.comb(wrong, size - 1) / ways, math.comb(right, size) / ways
    assert prior is not None
    alpha, beta = prior.alpha + right, prior.beta + wrong
    start = special.betaln(alpha, beta)
    none, one, every = (float(np.exp(special.betaln(alpha + j, beta + size - j) - start)) for j in (0, 1, size))
    return none, size * one, every


def fitted_prior(counts: Mapping[Outcome, int]) -> Prior:
    """The beta distribution of pass rates under which these outcomes are most likely (beta-binomial).

    One imaginary question, solved once in two rollouts, is counted with them: it keeps a few questions that all ended
    the same way from being taken for certainty. α and β are kept within [0.01, 100].

    Args:
        counts: questions by outcome.
    """
    weighed = Counter(counts)
    weighed[Outcome(1, 2)] += 1
    right = np.array([outcome.successes for outcome in weighed])
    wrong = np.array([outcome.rollouts - outcome.successes for outcome in weighed])
    weights = np.array(list(weighed.values()))

    def surprise(logs: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        return -float(np.sum(weights * (special.betaln(alpha + right, beta + wrong) - special.betaln(alpha, beta))))

    bounds = [(math.log(LEAST), math.log(MOST))] * 2
    starts = ([0.0, 0.0], [-2.0, -2.0], [-2.0, 0.0], [0.0, -2.0], [1.0, 1.0])
    best = min((optimize.minimize(surprise, start, bounds=bounds) for start in starts), key=lambda found: found.fun)
    alpha, beta = np.exp(best.x)
    return Prior(float(alpha), float(beta))


def recommended_size(outcomes: Sequence[Outcome]) -> int | None:
    """A `num_generations`: the smallest of [`SIZES`] that is not worth doubling, the largest where all are.

    Doubling is worth it where it saves at least [`WORTH`] of all groups from collapse. None where nothing was scored.
    """
    found = forecast(outcomes, [*SIZES, 2 * SIZES[-1]])
    if not found:
        return None
    saved = {size: found[size].collapsed - found[2 * size].collapsed for size in SIZES}
    return next((size for size in SIZES if saved[size] < WORTH), SIZES[-1])
