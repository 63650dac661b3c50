"""Context distillation: a rollout sampled under T(x, z) teaches the policy under x alone. Pure.

Two log-probabilities of the same tokens meet here: under the bare question and under the templated one, both of the
policy that sampled. Their ratio says how far a token is from anything the bare policy would write. Tokens out of range
are masked (the paper's context ratio mask): raising their probability would move the policy far from itself.

A batch with two contexts passes through here twice: [`distil`] once it is scored, [`mask_by_context`] once
log π_old(y|x) is known, which may be as late as the loss's own forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from p2o.policy_phase.feature_guidance import weigh_tokens
from p2o.policy_phase.policy_tokens import policy_tokens

if TYPE_CHECKING:
    from p2o.policy_phase.logprobs import CompletionLogprobs
    from p2o.policy_phase.rollouts import RolloutPlan

TEMPLATED, ROLLOUT_LOGPS = "templated_rows", "rollout_context_logps"
"""Names in a batch: rows that were sampled under another context than they are trained on, and log π_old(y|T(x, z))."""


def context_ratio(
    bare_logps: Float[Tensor, "batch completion"], templated_logps: Float[Tensor, "batch completion"]
) -> Float[Tensor, "batch completion"]:
    """π_old(y_t | x, y_<t) / π_old(y_t | T(x, z), y_<t), in [0, inf). Tokens an engine could not score (NaN) get 1."""
    return torch.nan_to_num((bare_logps - templated_logps).exp(), nan=1.0, posinf=torch.inf)


def context_mask(
    ratio: Float[Tensor, "batch completion"],
    mode: Literal["hard", "soft", "off"] = "hard",
    minimum: float = 0.01,
    maximum: float = 10.0,
) -> Float[Tensor, "batch completion"]:
    """Factor m_t on each token's loss: 1 within [minimum, maximum]; else 0 ('hard'), bound/ratio ('soft'), 1 ('off').

    The soft factor of a token above the range lies in [0, 1). Below the range it exceeds 1, and would do so without
    bound as the ratio goes to 0: it is `maximum` at most (1 where that is less), so that no token outweighs all others.
    """
    if mode == "off":
        return torch.ones_like(ratio)
    inside = (ratio >= minimum) & (ratio <= maximum)
    if mode == "hard":
        return inside.to(ratio.dtype)
    bound = ratio.clamp(minimum, maximum)
    factor = (bound / ratio.clamp(min=torch.finfo(ratio.dtype).tiny)).clamp(max=max(maximum, 1.0))
    return torch.where(inside, torch.ones_like(ratio), factor)


def token_advantages(
    advantages: Float[Tensor, " batch"],
    factor: Float[Tensor, "templated completion"],
    templated: Bool[Tensor, " batch"],
) -> Float[Tensor, "batch completion"]:
    """Advantages per token: each row's own, times the context mask in the templated rows.

    Scaling the advantage scales exactly the policy term of every loss of TRL and leaves its denominators alone.
    """
    per_token = advantages.unsqueeze(1).repeat(1, factor.size(1))
    per_token[templated] = per_token[templated] * factor
    return per_token


def head_and_tail(
    mask: Int[Tensor, "templated completion"],
) -> tuple[Bool[Tensor, "templated completion"], Bool[Tensor, "templated completion"]]:
    """The first and the last quarter of each rollout's tokens, rounded up; they overlap in one of a single token."""
    place, length = mask.cumsum(dim=1) - 1, mask.sum(dim=1, keepdim=True)
    valid = mask.bool()
    return valid & (4 * place < length), valid & (4 * (length - 1 - place) < length)


@dataclass(frozen=True)
class ContextStatistics:
    """Sums over the tokens of templated rollouts; they add up over processes and batches.

    Args:
        head_tokens: tokens in the first quarter of their rollout, `tail_tokens` in its last.
        head_shift: sum of log π(y|x) − log π(y|T(x, z)) over the former, `tail_shift` over the latter.
    """

    tokens: float
    below: float
    above: float
    log_ratio: float
    head_tokens: float
    head_shift: float
    tail_tokens: float
    tail_shift: float

    @classmethod
    def of(
        cls,
        ratio: Float[Tensor, "templated completion"],
        mask: Int[Tensor, "templated completion"],
        minimum: float,
        maximum: float,
    ) -> "ContextStatistics":
        """Counts where `mask` is 1. A ratio of 0 enters the mean logarithm as the smallest positive number."""
        valid = mask.bool()
        logs = ratio.clamp(min=torch.finfo(ratio.dtype).tiny, max=torch.finfo(ratio.dtype).max).log()
        head, tail = head_and_tail(mask)
        return cls(
            tokens=valid.sum().item(),
            below=((ratio < minimum) & valid).sum().item(),
            above=((ratio > maximum) & valid).sum().item(),
            log_ratio=(logs * valid).sum().item(),
            head_tokens=head.sum().item(),
            head_shift=(logs * head).sum().item(),
            tail_tokens=tail.sum().item(),
            tail_shift=(logs * tail).sum().item(),
        )

    def metrics(self) -> dict[str, float]:
        """Shares of tokens out of range, and the mean logarithm of the ratio: over all tokens, and as the shift that
        distillation is to take away, over heads and over tails. Empty without tokens."""
        if not self.tokens:
            return {}
        return {
            "p2o/context_ratio/below": self.below / self.tokens,
            "p2o/context_ratio/above": self.above / self.tokens,
            "p2o/context_ratio/outside": (self.below + self.above) / self.tokens,
            "p2o/context_ratio/mean_log": self.log_ratio / self.tokens,
            "p2o/shift/head": self.head_shift / self.head_tokens,
            "p2o/shift/tail": self.tail_shift / self.tail_tokens,
        }


@dataclass(frozen=True)
class ContextMask:
    """What becomes of tokens whose context ratio is out of range, [`context_mask`], and of the policy ratio's old side.

    Args:
        old_under_rollout_context: whether the policy ratio is to the templated policy, log π_old(y|T(x, z)).
    """

    mode: Literal["hard", "soft", "off"]
    minimum: float
    maximum: float
    old_under_rollout_context: bool = False


def prepare_distillation(
    batch: dict[str, Tensor],
    plan: "RolloutPlan",
    logprobs: "CompletionLogprobs",
    mask: "ContextMask",
    *,
    failed: Bool[Tensor, " batch"],
    drop_failed: bool,
    need_old_logps: Callable[[int], bool],
) -> None:
    """Notes in a scored batch of two contexts which rows have them, and what was sampled under the other one.

    Args:
        failed: rows without success.
        drop_failed: takes templated ones of these out of the loss.
        need_old_logps: `need_old_logps(rows of two contexts)`: whether log π_old(y|x) is to be known before the loss's
            own pass; for all processes alike.
    """
    rows = plan.is_templated(batch["advantages"].device)
    if "importance_sampling_ratio" in batch:
        # TRL's engine correction compares log-probabilities of two contexts here; that ratio is the context mask's.
        batch["importance_sampling_ratio"][rows] = 1.0
    if drop_failed:
        batch["advantages"] = batch["advantages"].masked_fill(rows & failed, 0.0)
    if not mask.old_under_rollout_context:
        rows = rows & (batch["advantages"] != 0)  # the mask is a factor on them
    sampled = batch.get("sampling_per_token_logps")
    if sampled is None:
        sampled = _logprobs_under_rollout_context(batch, rows, plan, logprobs)
    batch[TEMPLATED], batch[ROLLOUT_LOGPS] = rows, sampled
    if need_old_logps(int(rows.sum())):
        if "old_per_token_logps" not in batch:
            batch["old_per_token_logps"] = logprobs.of_batch(batch)
        # Those of a kept rollout are of the policy that sampled it.
        plan.fill_kept(batch["old_per_token_logps"], "bare_logps")


def _logprobs_under_rollout_context(
    batch: dict[str, Tensor], rows: Bool[Tensor, " batch"], plan: "RolloutPlan", logprobs: "CompletionLogprobs"
) -> Float[Tensor, "batch completion"]:
    """log π_old(y|T(x, z)) of these rows by a pass, where none were recorded while sampling; zeros elsewhere."""
    logps = torch.zeros_like(batch["completion_ids"], dtype=torch.float32)
    fresh = rows & plan.is_sampled(rows.device)
    contexts = [plan.contexts[row] for row in fresh.nonzero().flatten().tolist()]
    logps[fresh] = logprobs.of_rows(batch, fresh, contexts).to(logps)
    plan.fill_kept(logps, "sampled_logps")
    return logps


def mask_by_context(
    batch: dict[str, Tensor], bare_logps: Float[Tensor, "batch completion"], mask: ContextMask
) -> "ContextStatistics":
    """Turns advantages into advantages per token, masked in the templated rows; `bare_logps` are log π_old(y|x).

    Takes `TEMPLATED` and `ROLLOUT_LOGPS` out of the batch, and returns what the ratio was like.
    """
    rows, rollout_logps = batch.pop(TEMPLATED), batch.pop(ROLLOUT_LOGPS)
    ratio = context_ratio(bare_logps[rows], rollout_logps[rows])
    factor = context_mask(ratio, mask.mode, mask.minimum, mask.maximum)
    batch["advantages"] = token_advantages(batch["advantages"], factor, rows)
    weigh_tokens(batch)
    if "sampling_per_token_logps" in batch:
        # TRL's off-policy mask compares them with log-probabilities under x.
        sampling = batch["sampling_per_token_logps"]
        batch["sampling_per_token_logps"] = torch.where(rows.unsqueeze(1), bare_logps, sampling)
    if mask.old_under_rollout_context and rows.any():
        batch["old_per_token_logps"][rows] = rollout_logps[rows]
    return ContextStatistics.of(ratio, policy_tokens(batch)[rows], mask.minimum, mask.maximum)
