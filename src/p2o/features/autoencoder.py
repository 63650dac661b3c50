"""A temporal sparse autoencoder (T-SAE; Bhalla et al., arXiv 2511.05541): features of a residual stream.

A residual-stream activation is written as a sum of few features of many. Two things distinguish it from other sparse
autoencoders. The first features of the dictionary, the *high-level* ones, have to reconstruct an activation by
themselves as well as they can (a Matryoshka split); and a contrastive term makes the high-level features of a token
similar to those of the token before, and dissimilar to those of other places. What lasts over a passage is thus pushed
into the high-level features, what changes with every token into the low-level ones.

How many features are active is set for a batch (BatchTopK, Bussmann et al., arXiv 2412.06410): its k · n largest
activations are kept, so that a token may have more than another. A single activation is read with a threshold, the
moving mean of the least one that was kept.

Plain torch: of maintained libraries, `sae-lens` has BatchTopK and Matryoshka but no pairs of adjacent tokens, which its
buffer shuffles apart.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

THRESHOLD_RATE = 0.02  # of its moving mean


class DictionaryError(ValueError):
    """A dictionary that cannot be made or used; the message says why, and what to do."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a dictionary.

    Args:
        width: of the residual stream.
        features: of the dictionary.
        high: of them, the first, are high-level; with `high == features` there is no split.
        k: features that are active in a token, on average.

    Raises:
        DictionaryError: sizes that do not go together.
    """

    width: int
    features: int
    high: int
    k: int

    def __post_init__(self) -> None:
        if self.k < 2:
            raise DictionaryError(
                f"k={self.k}: a single active feature cannot be both high-level and low-level. Choose k of at least 2; "
                "usual are 16 to 64."
            )
        if not self.k <= self.features:
            raise DictionaryError(f"k={self.k} is more than the {self.features} features there are: lower k.")
        if not 1 <= self.high <= self.features:
            raise DictionaryError(f"{self.high} high-level features of {self.features}: choose from 1 to all of them.")

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Objective:
    """Weights of the loss. The paper's are those of the two reconstructions (1 each); where it is silent, ours.

    Args:
        contrastive: weight of the contrastive term; 0 leaves it out.
        temperature: of its softmax over cosine similarities.
        auxiliary: weight of the term that revives features which have not been active for long (Gao et al., arXiv
            2406.04093): they reconstruct what is left over.
    """

    contrastive: float = 1.0
    temperature: float = 0.1
    auxiliary: float = 1 / 32


@dataclass(frozen=True)
class Losses:
    """The terms of the loss. Reconstructions are shares of the variance that is not explained, 1 for a constant."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    high_reconstruction: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    active: Bool[Tensor, "features"]


class Dictionary(nn.Module):
    """Encoder and decoder. Activations go in and come out in the model's own units.

    Args:
        shape: sizes.
        seed: of the initial directions.
    """

    mean: Tensor
    scale: Tensor
    threshold: Tensor

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(shape.features, shape.width, generator=generator)
        directions = nn.functional.normalize(directions, dim=1)
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.T.clone())
        self.bias = nn.Parameter(torch.zeros(shape.features))
        self.centre = nn.Parameter(torch.zeros(shape.width))
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))

    @torch.no_grad()
    def fit_units(self, activations: Float[Tensor, "tokens width"]) -> None:
        """Sets the units from a sample: afterwards activations have mean 0 and a mean square of 1 in each dimension.

        Raises:
            DictionaryError: all activations of the sample are the same.
        """
        self.mean.copy_(activations.mean(0))
        spread = (activations - self.mean).square().mean().sqrt()
        if not torch.isfinite(spread) or spread == 0:
            raise DictionaryError("The activations do not vary: is this the right layer, and are there texts?")
        self.scale.copy_(spread)

    def normalised(self, activations: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        inner: Tensor = (activations - self.mean) / self.scale
        return inner

    def _before_selection(self, inner: Float[Tensor, "*any width"]) -> Float[Tensor, "*any features"]:
        return torch.relu((inner - self.centre) @ self.encoder + self.bias)

    def encode(self, activations: Float[Tensor, "*any width"]) -> Float[Tensor, "*any features"]:
        """Features of each activation, ≥ 0, most of them 0: what is above the threshold.

        Raises:
            DictionaryError: activations of another width.
        """
        if activations.shape[-1] != self.shape.width:
            raise DictionaryError(
                f"The dictionary is of a residual stream of width {self.shape.width}, these activations have "
                f"{activations.shape[-1]}: it is of another model. Train one for this model."
            )
        found = self._before_selection(self.normalised(activations.float()))
        return torch.where(found > self.threshold, found, 0.0)

    def decode(self, features: Float[Tensor, "*any features"]) -> Float[Tensor, "*any width"]:
        """The activations that features stand for."""
        return (features @ self.decoder + self.centre) * self.scale + self.mean

    @torch.no_grad()
    def normalise_directions(self) -> None:
        """Makes the directions of the decoder unit vectors: else features could shrink while directions grow."""
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-8))

    def losses(
        self,
        pairs: Float[Tensor, "two pairs width"],
        objective: Objective,
        is_dead: Bool[Tensor, "features"] | None = None,
    ) -> Losses:
        """The loss of a batch, which also moves the threshold.

        Args:
            pairs: activations of tokens, and of the tokens just behind them in the same sequence.
            is_dead: features that have not been active for long.
        """
        inner = self.normalised(pairs.flatten(0, 1))
        found = self._before_selection(inner)
        kept = batch_top_k(found, self.shape.k)
        with torch.no_grad():
            active = kept > 0
            if active.any():
                least = torch.where(active, kept, torch.inf).min()
                rate = THRESHOLD_RATE if self.threshold > 0 else 1.0
                self.threshold.lerp_(least, rate)
        high = self.shape.high
        from_high = kept[:, :high] @ self.decoder[:high] + self.centre
        whole = from_high + kept[:, high:] @ self.decoder[high:]
        variance = inner.square().mean()
        reconstruction = (inner - whole).square().mean() / variance
        none = torch.zeros((), device=inner.device)
        high_reconstruction = (inner - from_high).square().mean() / variance if high < self.shape.features else none
        contrastive = none
        if objective.contrastive:
            before, after = kept[:, :high].unflatten(0, tuple(pairs.shape[:2]))
            contrastive = agreement_loss(before, after, objective.temperature)
        total = reconstruction + high_reconstruction + objective.contrastive * contrastive
        if objective.auxiliary and is_dead is not None and bool(is_dead.any()):
            left = (inner - whole).detach()
            total = total + objective.auxiliary * self._revival_loss(found, left, is_dead) / variance
        return Losses(total, reconstruction, high_reconstruction, contrastive, active.any(0))

    def _revival_loss(
        self,
        found: Float[Tensor, "tokens features"],
        left: Float[Tensor, "tokens width"],
        is_dead: Bool[Tensor, "features"],
    ) -> Float[Tensor, ""]:
        """How badly dead features, of which as many as half the width may be active, reconstruct what is left over."""
        among = min(int(is_dead.sum()), max(self.shape.width // 2, 1))
        best = torch.where(is_dead, found, 0.0).topk(among, dim=1)
        revived = torch.zeros_like(found).scatter(1, best.indices, best.values)
        loss: Tensor = (left - revived @ self.decoder).square().mean()
        return loss


def batch_top_k(found: Float[Tensor, "tokens features"], k: int) -> Float[Tensor, "tokens features"]:
    """Keeps the k · tokens largest of all activations of a batch; the others become 0."""
    kept = k * found.shape[0]
    least = found.detach().flatten().kthvalue(found.numel() - kept + 1).values
    return torch.where((found >= least) & (found > 0), found, 0.0)


def agreement_loss(
    before: Float[Tensor, "pairs high"], after: Float[Tensor, "pairs high"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE on cosine similarities, in both directions: each of a pair has to find the other among all of the batch.

    Pairs without any active high-level feature count as similar to nothing.
    """
    one, other = (nn.functional.normalize(side, dim=1, eps=1e-6) for side in (before, after))
    similarity = one @ other.T / temperature
    wanted = torch.arange(len(before), device=before.device)
    there = nn.functional.cross_entropy(similarity, wanted)
    return (there + nn.functional.cross_entropy(similarity.T, wanted)) / 2


def to_state(dictionary: Dictionary) -> dict[str, Any]:
    """The tensors of a dictionary, by name, to be saved."""
    return {name: value.detach().contiguous() for name, value in dictionary.state_dict().items()}
