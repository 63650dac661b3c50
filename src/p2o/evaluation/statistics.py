"""Statistics of n sampled answers to each question. Pure."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

CHUNK = 2**24  # resampled values held at once


def average(rewards: Sequence[Sequence[float]]) -> tuple[float, float]:
    """avg@n and its standard error, clustered by question.

    Samples of one question are not independent evidence about a benchmark, so questions are the unit: with m_q the mean
    of question q's rewards and m the mean of the m_q over Q questions, the error is sqrt(Σ (m_q − m)² / (Q (Q − 1))).
    It covers the choice of questions and the sampling of answers.

    Args:
        rewards: of each question those of its samples.

    Returns:
        m and its error; the error of a single question is NaN.
    """
    means = [math.fsum(samples) / len(samples) for samples in rewards]
    middle = math.fsum(means) / len(means)
    if len(means) < 2:
        return middle, math.nan
    squares = math.fsum((value - middle) ** 2 for value in means)
    return middle, math.sqrt(squares / (len(means) * (len(means) - 1)))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased probability that one of k samples is right, given n of which `correct` are (Chen et al. 2021, §2.1).

    1 − C(n − correct, k) / C(n, k), in [0, 1].

    Raises:
        ValueError: not 1 ≤ k ≤ n.
    """
    _check_k(n, k)
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the most frequent answer of k samples, drawn from these n without replacement, is right.

    Exact over all C(n, k) draws. A tie is broken at random; None (no answer) has no vote; without any vote, wrong.
    Answers vote as they are written, so "1/2" and "0.5" are two.

    Args:
        answers: what was extracted of each of the n samples.
        correct: whether it was judged right; the same for all samples with the same answer, else its share counts.

    Raises:
        ValueError: not 1 ≤ k ≤ n.
    """
    n = len(answers)
    _check_k(n, k)
    votes: dict[Hashable, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(right)
    silent = n - sum(map(len, votes.values()))
    won = 0.0
    for answer, rights in votes.items():
        if any(rights):
            others = [len(other) for key, other in votes.items() if key != answer]
            won += _wins(len(rights), others, silent, k) * sum(rights) / len(rights)
    return won / math.comb(n, k)


def _wins(own: int, others: list[int], silent: int, k: int) -> float:
    """Draws of k in which an answer given `own` times is the most frequent; a tie of m counts 1/m."""
    total = 0.0
    for height in range(1, min(own, k) + 1):
        # Ways to draw so many votes of the others, none above this height, by how many are tied with it.
        ways = {(0, 0): 1}
        for count in others:
            after: dict[tuple[int, int], int] = {}
            for (drawn, tied), number in ways.items():
                for votes in range(min(count, height, k - height - drawn) + 1):
                    state = (drawn + votes, tied + (votes == height))
                    after[state] = after.get(state, 0) + number * math.comb(count, votes)
            ways = after
        for (drawn, tied), number in ways.items():
            total += math.comb(own, height) * number * math.comb(silent, k - height - drawn) / (tied + 1)
    return total


def _check_k(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} is not between 1 and the {n} sample(s) there are.")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t); NaN for a single value."""
    middle = math.fsum(values) / len(values)
    if len(values) < 2:
        return middle, math.nan
    return middle, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of so many independent trials, in [0, 1] (Wilson's score interval).

    With several rollouts of a question, whose mean is one trial, it is too wide rather than too narrow.
    """
    if not count:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.975))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and 1 an end is the share itself, but for rounding.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


@dataclass(frozen=True)
class Difference:
    """Of two models on the same questions: mean difference, its 95 % interval, and a two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(differences: Sequence[float], *, seed: int, resamples: int = 10_000) -> Difference:
    """Percentile bootstrap over questions of the mean of their differences.

    Args:
        differences: of each question, the second model's avg@n minus the first's.
        seed: of the resampling.
        resamples: how many sets of questions are drawn with replacement.

    Returns:
        The p-value is twice the smaller share of resampled means at or beyond 0, at most 1 and, for the draws being
        finite, at least 2 / (resamples + 1).
    """
    values: Float[np.ndarray, " questions"] = np.asarray(differences, dtype=float)
    # scipy refuses a single question, whose resamples are all itself.
    found = stats.bootstrap(
        (values if len(values) > 1 else np.repeat(values, 2),),
        np.mean,
        n_resamples=resamples,
        batch=max(CHUNK // len(values), 1),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    drawn: Float[np.ndarray, " resamples"] = found.bootstrap_distribution
    # Sums in another order differ in the last digits; a difference of nothing must not seem to have a sign.
    zero = 1e-12
    beyond = min((drawn <= zero).sum(), (drawn >= -zero).sum())
    p_value = min(1.0, 2.0 * (int(beyond) + 1) / (resamples + 1))
    low, high = found.confidence_interval
    return Difference(float(values.mean()), float(low), float(high), p_value)


def mcnemar(gained: int, lost: int) -> float:
    """p-value of the exact two-sided McNemar test on the questions on which two models differ.

    Args:
        gained: questions right in the second model only.
        lost: questions right in the first model only.
    """
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
