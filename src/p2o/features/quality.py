"""How good a dictionary is, on activations that it was not trained on."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from p2o.features.autoencoder import Dictionary
from p2o.features.shards import Activations

Splice = Callable[[Tensor], Tensor]
"""Activations of one passage, (tokens, width), to those that are put in their place."""

SplicedLoss = Callable[[int, Splice | None], float]
"""`loss(passage, splice)`: a model's mean loss on a passage's completion in nats a token; without `splice` its own."""


@dataclass(frozen=True)
class Quality:
    """What is reported of a dictionary.

    Args:
        explained_variance: share of the variance of the activations, at most 1; below 0 it is worse than their mean.
        loss_recovered: of the loss of the model that knows only their mean in place of the activations, the share
            that their reconstruction takes back; 1 where it is as good as the activations. None if not measured.
        dead: share of features that are never active.
        active: mean number of active features of a token.
        smoothness: 1 − Σ|z(t) − z(t−1)| / Σ(z(t) + z(t−1)) over adjacent tokens and features: 1 where each feature
            keeps its activation from token to token, 0 where none is ever active twice running.
        high_smoothness, low_smoothness: the same of high-level and low-level features; None where there are none.
        tokens: measured on.
    """

    explained_variance: float
    loss_recovered: float | None
    dead: float
    active: float
    smoothness: float
    high_smoothness: float
    low_smoothness: float | None
    tokens: int

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


@torch.no_grad()
def measure(dictionary: Dictionary, activations: Activations, spliced_loss: SplicedLoss | None = None) -> Quality:
    """The quality on these activations, passage by passage.

    Args:
        spliced_loss: of the model that the activations are of, for the passages of `activations`.
    """
    shape = dictionary.shape
    mean = torch.zeros(shape.width).double()
    for number in range(len(activations.passages)):
        mean += activations.of_passage(number).double().sum(0) / activations.tokens
    left, variance, active = 0.0, 0.0, 0
    is_alive = torch.zeros(shape.features, dtype=torch.bool)
    changes, sums = torch.zeros(shape.features).double(), torch.zeros(shape.features).double()
    for number in range(len(activations.passages)):
        inner = activations.of_passage(number)
        found = dictionary.encode(inner)
        left += float((inner - dictionary.decode(found)).square().sum())
        variance += float((inner - mean).square().sum())
        active += int((found > 0).sum())
        is_alive |= (found > 0).any(0)
        changes += found.diff(dim=0).abs().sum(0)
        sums += found[1:].sum(0) + found[:-1].sum(0)
    high = shape.high
    return Quality(
        explained_variance=1 - left / variance,
        loss_recovered=None
        if spliced_loss is None
        else _recovered(dictionary, mean.float(), activations, spliced_loss),
        dead=1 - float(is_alive.float().mean()),
        active=active / activations.tokens,
        smoothness=_smoothness(changes, sums),
        high_smoothness=_smoothness(changes[:high], sums[:high]),
        low_smoothness=_smoothness(changes[high:], sums[high:]) if high < shape.features else None,
        tokens=activations.tokens,
    )


def _smoothness(changes: Float[Tensor, "features"], sums: Float[Tensor, "features"]) -> float:
    return 1 - float(changes.sum() / sums.sum().clamp_min(1e-12))


def _recovered(
    dictionary: Dictionary, mean: Tensor, activations: Activations, spliced_loss: SplicedLoss
) -> float | None:
    """None where the model does without these activations: then there is nothing to recover."""
    own = reconstructed = without = 0.0
    for number, passage in enumerate(activations.passages):
        weight = len(passage.ids) - 1
        own += weight * spliced_loss(number, None)
        reconstructed += weight * spliced_loss(number, lambda inner: dictionary.decode(dictionary.encode(inner)))
        without += weight * spliced_loss(number, lambda inner: mean.expand_as(inner))
    return (without - reconstructed) / (without - own) if without > own else None
