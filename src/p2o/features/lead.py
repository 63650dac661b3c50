"""Whether a group of features moves ahead of accuracy, over the checkpoints of a run. Pure.

arXiv 2605.28388 looks at shares of features and at accuracy side by side and names no statistic for which comes first.
Decided here: the correlation, across questions, of the change in a group's share between two checkpoints with the
change in reward between two checkpoints `lag` places later. Three things keep it honest:

- *Changes, not levels.* A question on which the model always works things through, and which it always solves, has
  changes of 0. Means of a pair of checkpoints are taken out, so that two curves that both rise say nothing.
- *Halves.* Shares are of one half of a question's rollouts and rewards of the other, and the other way round.
  Otherwise the luck of a checkpoint would be in both its share and its reward, and make a correlation of its own.
- *Ahead against behind.* What improves at one checkpoint often goes on improving at the next, so a share that merely
  accompanies accuracy correlates with its next change, too; but as much with its last one. The `lead` of a group is
  what is left: |correlation at lag 1| − |correlation at lag −1|.

Intervals are of a percentile bootstrap over questions, each with all its checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

LAGS = (-2, -1, 0, 1, 2)
RESAMPLES = 2000
LEAST_QUESTIONS = 10  # fewer give intervals that mean nothing
LEAST_SPREAD = 1e-9  # sum of squares of changes; below, nothing has changed but by rounding

Halves = Float[np.ndarray, "halves checkpoints questions"]


@dataclass(frozen=True)
class Estimate:
    """A number in [-1, 1] with its 95 % interval; all are None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Lead:
    """Which comes first, the share of a group or the reward.

    Args:
        questions: that were measured, and scored in both halves, at all checkpoints.
        by_lag: correlations by [`LAGS`], of those for which there are checkpoints enough; at lag 1 the share changes
            before the reward does, at −1 after it.
        lead: |correlation at lag 1| − |correlation at lag −1|.
    """

    questions: int
    by_lag: dict[int, Estimate]
    lead: Estimate

    @property
    def is_ahead(self) -> bool:
        """Whether the share tells of the next change in reward, and more than of the last one."""
        return 1 in self.by_lag and self.by_lag[1].sign != 0 and self.lead.sign > 0

    def to_dict(self) -> dict[str, Any]:
        def of(found: Estimate) -> dict[str, float | None]:
            return {"value": found.value, "low": found.low, "high": found.high}

        return {
            "questions": self.questions,
            "by_lag": {str(lag): of(found) for lag, found in self.by_lag.items()},
            "lead": of(self.lead),
            "is_ahead": self.is_ahead,
        }


def complete(
    shares: Sequence[Sequence[Sequence[float | None]]], rewards: Sequence[Sequence[Sequence[float | None]]]
) -> tuple[Halves, Halves]:
    """Shares and rewards of the questions that have both in both halves at all checkpoints.

    Args:
        shares, rewards: by checkpoint, half and question; None where a half had no rollout, or none was scored.
    """
    both = [np.array(values, float).transpose(1, 0, 2) for values in (shares, rewards)]  # None becomes NaN
    known = np.isfinite(both[0]).all(axis=(0, 1)) & np.isfinite(both[1]).all(axis=(0, 1))
    return both[0][..., known], both[1][..., known]


def lead_of(shares: Halves, rewards: Halves, *, seed: int) -> Lead | None:
    """Which comes first; None with fewer than 3 checkpoints or [`LEAST_QUESTIONS`] questions.

    Args:
        shares: of the group, in [0, 1], by half of a question's rollouts.
        rewards: mean reward by half.
        seed: of the bootstrap.
    """
    _, checkpoints, questions = shares.shape
    if checkpoints < 3 or questions < LEAST_QUESTIONS:
        return None
    moved, gained = np.diff(shares, axis=1), np.diff(rewards[::-1], axis=1)
    drawn = np.random.default_rng(seed).multinomial(questions, [1 / questions] * questions, size=RESAMPLES)
    weights = np.concatenate([np.ones((1, questions)), drawn])
    lags = [lag for lag in LAGS if abs(lag) < checkpoints - 1]
    found = {lag: _correlations(*_aligned(moved, gained, lag), weights) for lag in lags}
    lead = abs(found[1]) - abs(found[-1])
    return Lead(questions, {lag: _estimate(values) for lag, values in found.items()}, _estimate(lead))


def _aligned(moved: Halves, gained: Halves, lag: int) -> tuple[Halves, Halves]:
    """Changes in share, and those in reward `lag` checkpoints later."""
    if lag < 0:
        return moved[:, -lag:], gained[:, :lag]
    return moved[:, : moved.shape[1] - lag], gained[:, lag:]


def _correlations(
    moved: Halves, gained: Halves, weights: Float[np.ndarray, "resamples questions"]
) -> Float[np.ndarray, " resamples"]:
    """Over all pairs of a half and an interval, each about its own means; NaN where nothing changes."""
    questions = weights.shape[1]
    x, y = moved.reshape(-1, questions), gained.reshape(-1, questions)

    def products(a: Float[np.ndarray, "pairs questions"], b: Float[np.ndarray, "pairs questions"]) -> Any:
        return (weights @ (a * b).T - (weights @ a.T) * (weights @ b.T) / questions).sum(axis=1)

    spreads = products(x, x), products(y, y)
    moves = np.minimum(*spreads) > LEAST_SPREAD
    return np.where(moves, products(x, y) / np.sqrt(np.where(moves, spreads[0] * spreads[1], 1.0)), np.nan)


def _estimate(values: Float[np.ndarray, " resamples"]) -> Estimate:
    """The first value, with percentiles of the others."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(drawn):
        return Estimate(None, None, None)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))
