"""Which tokens of a completion the policy has written; those that a tool returned stand between them. Pure."""

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor


def policy_tokens(batch: Mapping[str, Tensor]) -> Int[Tensor, "batch completion"]:
    """1 where the policy has written a token of a batch as TRL has it, which is what its loss is over."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
