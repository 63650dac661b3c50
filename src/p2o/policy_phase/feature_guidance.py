"""What reasoning features add to a batch: weights of tokens, and advantages where rewards give none. Pure.

Feature-guided optimization, the second cure of arXiv 2605.28388, as far as that says what it is: "token weights from
the movement of reasoning features, and a proxy reward from features only in groups without variance". Where it is
silent, decided here:

- The *strength* of reasoning in a token is the share of reasoning features in the activation of all, in [0, 1].
- *Movement* is the change of strength from the token before: a token that begins or ends reasoning decides more than
  one within it.
- A group without variance gets proxy advantages only where all its rollouts failed; where all succeed, there is nothing
  to cure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from p2o.policy_phase.lengths import Course
from p2o.policy_phase.rewards import Rewards

TOKEN_WEIGHTS = "token_weights"
"""Name in a batch: weights of tokens, until advantages are weighed."""

LEAST_SPREAD = 0.05  # of strengths within a group: less is noise, and is not blown up to a standard deviation


def movement_weights(
    strength: Float[Tensor, "rows after_each_token"], mask: Int[Tensor, "rows completion"], weight: float
) -> Float[Tensor, "rows completion"]:
    """Weights ≥ 0 of tokens, whose mean over a rollout is 1: 1 − weight for all, the rest in proportion to movement.

    Args:
        strength: at the last token of the prompt and at each of the completion's, one more than completion tokens.
        mask: 1 for tokens of the policy.
        weight: in [0, 1].
    """
    moved = strength.diff(dim=1).abs() * mask
    tokens = mask.sum(dim=1, keepdim=True).clamp(min=1)
    total = moved.sum(dim=1, keepdim=True)
    relative = torch.where(total > 0, moved * tokens / total.clamp(min=1e-12), torch.ones_like(moved))
    return 1 - weight + weight * relative


def weigh_tokens(batch: dict[str, Any]) -> None:
    """Turns advantages into advantages per token, times the weights, which it takes out of the batch; else nothing."""
    if (weights := batch.pop(TOKEN_WEIGHTS, None)) is not None:
        advantages = batch["advantages"]
        batch["advantages"] = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)) * weights


def mean_strength(
    strength: Float[Tensor, "rows after_each_token"], mask: Int[Tensor, "rows completion"]
) -> Float[Tensor, " rows"]:
    """Mean strength over the tokens of each rollout, in [0, 1]; 0 of an empty one."""
    return (strength[:, 1:] * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def failed_groups(rewards: Rewards, k: int) -> Bool[Tensor, " groups"]:
    """Groups without variance none of whose rollouts succeeded, and some of which could be scored."""
    success, unscored = rewards.successes.view(-1, k), rewards.unscored.view(-1, k)
    return rewards.collapsed(k) & ~success.any(dim=1) & ~unscored.all(dim=1)


def proxy_advantages(
    strength: Float[Tensor, " rollouts"], guided: Bool[Tensor, " groups"], k: int, scale: float
) -> Float[Tensor, " rollouts"]:
    """Advantages by mean strength within guided groups: scale · (s − mean) / max(standard deviation, 0.05); else 0."""
    groups = strength.view(-1, k)
    spread = groups.std(dim=1, keepdim=True, correction=0).clamp(min=LEAST_SPREAD)
    found = scale * (groups - groups.mean(dim=1, keepdim=True)) / spread
    return torch.where(guided.unsqueeze(1), found, 0.0).flatten()


@dataclass(frozen=True)
class ProxyWatch:
    """The guard against a policy that excites the features and solves nothing.

    Args:
        strengths: mean strength of the failed rollouts of generation batches.
        successes: share of the scored rollouts that succeeded.
        stopped: whether proxy advantages are off; they do not come back.
    """

    strengths: Course = field(default_factory=Course)
    successes: Course = field(default_factory=Course)
    stopped: bool = False

    def after(self, strength: float | None, success_rate: float, patience: float) -> "ProxyWatch":
        """The watch after one more batch.

        Args:
            strength: None where no rollout failed.
            patience: by how much strength may rise while successes do not.
        """
        watch = replace(
            self,
            strengths=self.strengths if strength is None else self.strengths.followed_by(strength),
            successes=self.successes.followed_by(success_rate),
        )
        useless = watch.strengths.change > patience and watch.successes.change <= 0
        return replace(watch, stopped=self.stopped or useless)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ProxyWatch":
        """Of `dataclasses.asdict`, after JSON; {} is a watch that has seen nothing."""
        courses = {name: Course(*map(tuple, data[name].values())) for name in ("strengths", "successes") if data}
        return cls(**{**data, **courses})
