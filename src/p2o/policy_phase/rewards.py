"""What the rollouts of a batch earned. Pure: tensors in, tensors out.

A reward function answers None where it does not apply; TRL turns that into NaN. A rollout that nobody scored is no
evidence: neither a success nor a failure, and no variance within its group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Scoring:
    """How the reward functions' answers become rewards and successes.

    Args:
        weights: of the functions, in the total.
        threshold: a rollout is a success when its success score is greater.
        success_reward: name of the one function that decides success; None for the total.
        names: of the functions.

    Raises:
        ValueError: none of the functions has that name.
    """

    weights: Float[Tensor, " functions"]
    threshold: float
    success_reward: str | None
    names: Sequence[str]

    def __post_init__(self) -> None:
        if self.success_reward is not None and self.success_reward not in self.names:
            raise ValueError(
                f"success_reward={self.success_reward!r} is none of the reward functions: {', '.join(self.names)}."
            )

    def rewards(self, by_function: Float[Tensor, "rollouts functions"]) -> "Rewards":
        decides = None if self.success_reward is None else list(self.names).index(self.success_reward)
        return Rewards(by_function, self.weights, self.threshold, decides)


@dataclass(frozen=True)
class Rewards:
    """Rewards of rollouts; K consecutive ones are a group, the rollouts of one question.

    Args:
        by_function: one column a reward function; NaN where it answered None.
        weights: of the functions, in the total.
        threshold: a rollout is a success when its success score is greater.
        success_function: index of the one function that decides success; None for the total.
    """

    by_function: Float[Tensor, "rollouts functions"]
    weights: Float[Tensor, " functions"]
    threshold: float = 0.0
    success_function: int | None = None

    @property
    def total(self) -> Float[Tensor, " rollouts"]:
        """Weighted sum as TRL forms it; NaN where every function answered None."""
        weighted = self.by_function * self.weights.to(self.by_function.device)
        return weighted.nansum(dim=1).masked_fill(self.by_function.isnan().all(dim=1), torch.nan)

    @property
    def success_scores(self) -> Float[Tensor, " rollouts"]:
        """What decides success; NaN where nobody scored it."""
        return self.total if self.success_function is None else self.by_function[:, self.success_function]

    @property
    def successes(self) -> Bool[Tensor, " rollouts"]:
        return self.success_scores > self.threshold

    @property
    def unscored(self) -> Bool[Tensor, " rollouts"]:
        """Rollouts without a success score."""
        return self.success_scores.isnan()

    def collapsed(self, k: int) -> Bool[Tensor, " groups"]:
        """Groups of k rollouts whose scored totals are all the same: their advantages are zero."""
        groups = self.total.view(-1, k)
        high = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
        low = groups.nan_to_num(nan=torch.inf).amin(dim=1)
        return (high <= low) | torch.isclose(high, low)

    def success_rate(self) -> float:
        """Share of successes among the scored rollouts, in [0, 1]; 0 where none was scored."""
        scored = int((~self.unscored).sum())
        return int(self.successes.sum()) / max(scored, 1)

    def of(self, rows: Bool[Tensor, " rollouts"] | slice) -> "Rewards":
        """Those of some of the rollouts."""
        return Rewards(self.by_function[rows], self.weights, self.threshold, self.success_function)
