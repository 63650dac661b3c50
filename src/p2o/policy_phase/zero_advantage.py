"""Rollouts whose advantage is zero are left out of the update's passes, to which they add nothing. Pure.

So are groups without variance where the KL term is to leave them out.

The loss stays TRL's, over all rows and with its normalisers: rows left out get a policy ratio of 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from p2o.policy_phase.context_distillation import TEMPLATED
from p2o.policy_phase.feature_guidance import weigh_tokens
from p2o.policy_phase.policy_tokens import policy_tokens

COLLAPSED = "collapsed_rows"
"""Name in a batch: rows of groups without variance, where the KL term leaves them out."""


def has_advantage(
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch completion"],
) -> Bool[Tensor, " batch"]:
    """Rows with an advantage other than zero, at any token."""
    return advantages != 0 if advantages.dim() == 1 else (advantages != 0).any(dim=1)


def rows_to_pass(live: Bool[Tensor, " batch"]) -> Int[Tensor, " passed"] | None:
    """Rows that take part in the update's passes; None for all of them.

    One row at least, since every process takes part in the backward pass.
    """
    if live.all():
        return None
    return live.nonzero().flatten() if live.any() else torch.zeros_like(live[:1], dtype=torch.long)


@dataclass(frozen=True)
class LossPass:
    """The loss's own forward pass over one batch.

    Args:
        batch: what TRL's loss reads, after the pass as well; a copy, since rollouts may be trained on again.
        rows: those that take part, see [`rows_to_pass`].
        skips: whether rows without an advantage are left out.
    """

    batch: dict[str, Tensor]
    rows: Int[Tensor, " passed"] | None
    skips: bool

    @classmethod
    def over(cls, batch: Mapping[str, Tensor], *, skips: bool) -> "LossPass":
        """Over this batch, without rows that have nothing to add if it `skips` them."""
        own = dict(batch)
        if TEMPLATED not in own:  # else they are weighed once they are masked
            weigh_tokens(own)
        return cls(own, rows_to_pass(_live(own)) if skips else None, skips)

    def metrics(self) -> dict[str, float]:
        """Share of rows that have nothing to add, in [0, 1], where they are left out."""
        return {"p2o/skipped_rollouts": 1 - _live(self.batch).float().mean().item()} if self.skips else {}

    def select(self, values: Tensor) -> Tensor:
        return values if self.rows is None else values[self.rows]

    def over_all_rows(
        self,
        logps: Float[Tensor, "passed completion"],
        entropies: Float[Tensor, "passed completion"],
    ) -> tuple[Float[Tensor, "batch completion"], Float[Tensor, "batch completion"]]:
        """Log-probabilities and entropies with a row for each rollout, left out or not.

        Those left out have the old log-probabilities, so that their policy ratio is 1. Their entropy, which is only
        logged, is the mean of the others'. Where the KL term leaves rows out, the reference has the policy's own
        log-probabilities there from now on: KL divergence and its gradient are exactly zero.
        """
        if self.rows is not None:
            shape = (len(self.batch["completion_ids"]), logps.size(1))
            unmoved = self.batch.get("old_per_token_logps", logps.new_zeros(shape)).to(logps)
            mask = self.select(policy_tokens(self.batch))
            mean = (entropies * mask).sum() / mask.sum().clamp(min=1)
            entropies = mean.expand(shape).to(entropies).index_copy(0, self.rows, entropies)
            logps = unmoved.index_copy(0, self.rows, logps)
        if COLLAPSED in self.batch:
            reference = self.batch["ref_per_token_logps"]
            own = logps.detach().to(reference)
            self.batch["ref_per_token_logps"] = torch.where(self.batch[COLLAPSED].unsqueeze(1), own, reference)
        return logps, entropies


def _live(batch: Mapping[str, Tensor]) -> Bool[Tensor, " batch"]:
    """Rows with something to add to the loss: to the KL term, where the batch notes what that leaves out."""
    return ~batch[COLLAPSED] if COLLAPSED in batch else has_advantage(batch["advantages"])
