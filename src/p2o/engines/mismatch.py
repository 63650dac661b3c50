"""The mismatch of an engine that samples and the trainer: how far apart their log-probabilities of a token are."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def mismatch_metrics(
    trainer_logps: Float[Tensor, "batch completion"],
    engine_logps: Float[Tensor, "batch completion"],
    ratio: Float[Tensor, "batch completion"] | Float[Tensor, "batch 1"],
    mask: Bool[Tensor, "batch completion"],
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> dict[str, list[float]]:
    """TRL's metrics of the mismatch of engine and trainer, over the tokens in `mask`; empty lists without tokens.

    Args:
        ratio: TRL's importance-sampling correction, per token or per sequence, after truncation.
        gather: puts the rows of all processes, (1, 4) from each, below each other; the metrics are then over the tokens
            of all.
    """
    difference = (trainer_logps - engine_logps).abs()
    # Tokens the engine could not score carry NaN.
    difference = difference[mask & ~difference.isnan()]
    ratios = ratio[mask] if ratio.shape == mask.shape else ratio[mask.any(dim=1)]
    found: dict[str, list[float]] = {}
    for name, values, shown in (
        ("sampling/sampling_logp_difference", difference, ("mean", "max")),
        ("sampling/importance_sampling_ratio", ratios, ("min", "mean", "max")),
    ):
        size, (low, high) = values.numel(), values.aminmax() if values.numel() else (torch.inf, -torch.inf)
        mine = [size, float(values.double().sum()), float(low), float(high)]
        counts, sums, lows, highs = gather(torch.tensor([mine], dtype=torch.float64, device=values.device)).T
        total = counts.sum().item()
        summary = {"min": lows.min().item(), "mean": sums.sum().item() / max(total, 1), "max": highs.max().item()}
        found |= {f"{name}/{which}": [summary[which]] if total else [] for which in shown}
    return found


def replace_logged_mismatch(
    metrics: dict[str, list[float]],
    batch: dict[str, Tensor],
    rows: Bool[Tensor, " batch"],
    gather: Callable[[Tensor], Tensor],
) -> None:
    """Replaces the mismatch metrics that TRL has just logged by those over rows where both sides share a context, of
    all processes, which call it together."""
    if "importance_sampling_ratio" not in batch:
        return
    measured = mismatch_metrics(
        batch["old_per_token_logps"],
        batch["sampling_per_token_logps"],
        batch["importance_sampling_ratio"],
        batch["completion_mask"].bool() & rows.unsqueeze(1),
        gather,
    )
    for name, values in measured.items():
        metrics[name][-1:] = values
        if not metrics[name]:
            del metrics[name]
