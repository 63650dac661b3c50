"""The mismatch of an engine that samples and the trainer: how far apart their log-probabilities of a token are."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DIFFERENCE, RATIO = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
SHOWN = {DIFFERENCE: ("mean", "max"), RATIO: ("min", "mean", "max")}
"""What TRL logs, under these names."""


@dataclass
class Spread:
    """Number, sum, least and greatest of values."""

    count: float = 0.0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, values: Tensor) -> "Spread":
        if not values.numel():
            return cls()
        return cls(values.numel(), float(values.double().sum()), float(values.min()), float(values.max()))

    def merge(self, other: "Spread") -> None:
        self.count, self.total = self.count + other.count, self.total + other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def summary(self) -> dict[str, float]:
        return {"min": self.low, "mean": self.total / self.count, "max": self.high}


def spreads(
    trainer_logps: Float[Tensor, "batch completion"],
    engine_logps: Float[Tensor, "batch completion"],
    ratio: Float[Tensor, "batch completion"] | Float[Tensor, "batch 1"],
    mask: Bool[Tensor, "batch completion"],
    rows: Bool[Tensor, " batch"],
) -> dict[str, Spread]:
    """The mismatch of engine and trainer over the tokens in `mask`, by TRL's names.

    Args:
        ratio: TRL's importance-sampling correction, per token or, of these `rows`, per sequence, after truncation.
    """
    difference = (trainer_logps - engine_logps).abs()
    # Tokens the engine could not score carry NaN.
    difference = difference[mask & ~difference.isnan()]
    ratios = ratio[mask] if ratio.shape == mask.shape else ratio[rows]
    return {DIFFERENCE: Spread.of(difference), RATIO: Spread.of(ratios)}


def summaries(found: Mapping[str, Spread]) -> dict[str, list[float]]:
    """TRL's metrics of the mismatch; empty lists without tokens."""
    return {
        f"{name}/{which}": [found[name].summary()[which]] if found[name].count else []
        for name, shown in SHOWN.items()
        for which in shown
    }


def mismatch_metrics(
    trainer_logps: Float[Tensor, "batch completion"],
    engine_logps: Float[Tensor, "batch completion"],
    ratio: Float[Tensor, "batch completion"] | Float[Tensor, "batch 1"],
    mask: Bool[Tensor, "batch completion"],
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> dict[str, list[float]]:
    """TRL's metrics of the mismatch over the tokens in `mask`; arguments as in [`spreads`].

    Args:
        gather: puts the rows of all processes, (1, 4) from each, below each other; the metrics are then over the tokens
            of all.
    """
    found = spreads(trainer_logps, engine_logps, ratio, mask, mask.any(dim=1))
    for name, mine in found.items():
        row = torch.tensor([[mine.count, mine.total, mine.low, mine.high]], dtype=torch.float64, device=mask.device)
        found[name] = Spread()
        for everyones in gather(row).tolist():
            found[name].merge(Spread(*everyones))
    return summaries(found)


def replace_logged_mismatch(
    metrics: dict[str, list[float]],
    batch: dict[str, Tensor],
    mask: Bool[Tensor, "batch completion"],
    gather: Callable[[Tensor], Tensor],
) -> None:
    """Replaces the mismatch metrics that TRL has just logged by those over the tokens in `mask`, where both sides share
    a context, of all processes, which call it together."""
    if "importance_sampling_ratio" not in batch:
        return
    measured = mismatch_metrics(
        batch["old_per_token_logps"],
        batch["sampling_per_token_logps"],
        batch["importance_sampling_ratio"],
        mask,
        gather,
    )
    for name, values in measured.items():
        metrics[name][-1:] = values
        if not metrics[name]:
            del metrics[name]
