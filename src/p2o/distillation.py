"""Context distillation: a rollout sampled under T(x, z) teaches the policy under x alone.

Two log-probabilities of the same tokens meet here: under the bare question and under the templated one, both of the
policy that sampled. Their ratio says how far a token is from anything the bare policy would write. Tokens out of range
are masked (the paper's context ratio mask), because pushing them up would tear the policy apart rather than teach it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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

    The soft factor of a token above the range lies in [0, 1); below the range it exceeds 1 without bound as the ratio
    goes to 0, so it is kept finite.
    """
    if mode == "off":
        return torch.ones_like(ratio)
    inside = (ratio >= minimum) & (ratio <= maximum)
    if mode == "hard":
        return inside.to(ratio.dtype)
    bound = ratio.clamp(minimum, maximum)
    return torch.where(inside, torch.ones_like(ratio), bound / ratio.clamp(min=torch.finfo(ratio.dtype).tiny))


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


@dataclass(frozen=True)
class ContextStatistics:
    """Sums over the tokens of templated rollouts; they add up over processes and batches."""

    tokens: float
    below: float
    above: float
    log_ratio: float

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
        return cls(
            tokens=valid.sum().item(),
            below=((ratio < minimum) & valid).sum().item(),
            above=((ratio > maximum) & valid).sum().item(),
            log_ratio=(logs * valid).sum().item(),
        )
