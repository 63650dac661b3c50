"""What features are about: by contrast between spans of answers, and by the contexts in which they are most active."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from p2o.features.autoencoder import Dictionary
from p2o.features.spans import KINDS

Labelled = tuple[Float[Tensor, "tokens width"], Sequence[str | None]]
"""Activations of a passage, and the kind of each of its tokens."""


@dataclass(frozen=True)
class Labels:
    """The kind of span that each feature stands out on.

    Args:
        kinds: of each feature, None where it stands out on none.
        shares: of each feature its mean activation on tokens of each of [`KINDS`], divided by their sum.
        tokens: of each kind, how many there were to tell by.
        activity: of each feature its mean activation over all tokens.
    """

    kinds: tuple[str | None, ...]
    shares: tuple[tuple[float, ...], ...]
    tokens: dict[str, int]
    activity: tuple[float, ...] = ()

    def group(self, kind: str) -> list[int]:
        """The features of a kind."""
        return [feature for feature, its in enumerate(self.kinds) if its == kind]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Labels":
        activity = tuple(data.get("activity", ()))
        return cls(tuple(data["kinds"]), tuple(map(tuple, data["shares"])), dict(data["tokens"]), activity)


@torch.no_grad()
def label_by_contrast(
    dictionary: Dictionary, passages: Iterable[Labelled], least_share: float, least_tokens: int
) -> Labels:
    """Labels by mean activation on the kinds of spans.

    A feature is labelled with the kind on which its mean activation is greatest, if that is at least `least_share` of
    the sum of its means on all kinds, and if it is active in at least `least_tokens` tokens of the kind.
    """
    features = dictionary.shape.features
    sums = torch.zeros(len(KINDS), features).double()
    active, counts = torch.zeros(len(KINDS), features), torch.zeros(len(KINDS))
    everything, tokens = torch.zeros(features).double(), 0
    for inner, kinds in passages:
        found = dictionary.encode(inner)
        everything += found.sum(0)
        tokens += len(found)
        for place, kind in enumerate(KINDS):
            of_kind = torch.tensor([its == kind for its in kinds], dtype=torch.bool)
            sums[place] += found[of_kind].sum(0)
            active[place] += (found[of_kind] > 0).sum(0)
            counts[place] += int(of_kind.sum())
    means = sums / counts.clamp_min(1)[:, None]
    shares = means / means.sum(0).clamp_min(1e-12)
    best = shares.argmax(0)
    every = torch.arange(features)
    is_labelled = (shares[best, every] >= least_share) & (active[best, every] >= least_tokens)
    kinds = tuple(KINDS[place] if is_it else None for place, is_it in zip(best.tolist(), is_labelled, strict=True))
    rounded = tuple(tuple(round(share, 4) for share in row) for row in shares.T.tolist())
    activity = tuple(round(mean, 6) for mean in (everything / max(tokens, 1)).tolist())
    return Labels(kinds, rounded, {kind: int(count) for kind, count in zip(KINDS, counts, strict=True)}, activity)


@torch.no_grad()
def check_labels(
    dictionary: Dictionary, labels: Labels, truth: Sequence[Labelled], least_share: float, least_tokens: int
) -> dict[str, dict[str, float | int | None]]:
    """Labels compared with passages whose spans are known.

    Returns:
        By kind: `features`, how many have the label; `judged`, how many of them the truth labels at all; `agreeing`,
        the share of those that it labels likewise; `auroc`, how well the joint activation of all of them tells tokens
        of the kind from others, 0.5 for chance and 1 for always. The last two are None where nothing can be told.
    """
    true = label_by_contrast(dictionary, truth, least_share, least_tokens)
    found = torch.cat([dictionary.encode(inner) for inner, _ in truth])
    kinds = np.array([kind or "" for _, its in truth for kind in its])
    report: dict[str, dict[str, float | int | None]] = {}
    for kind in KINDS:
        group = labels.group(kind)
        judged = [true.kinds[feature] for feature in group if true.kinds[feature] is not None]
        is_kind, is_other = kinds == kind, (kinds != kind) & (kinds != "")
        auroc = None
        if group and is_kind.any() and is_other.any():
            strength = found[:, group].sum(1).numpy()
            greater = stats.mannwhitneyu(strength[is_kind], strength[is_other]).statistic
            auroc = float(greater / (int(is_kind.sum()) * int(is_other.sum())))
        report[kind] = {
            "features": len(group),
            "judged": len(judged),
            "agreeing": judged.count(kind) / len(judged) if judged else None,
            "auroc": auroc,
        }
    return report


@torch.no_grad()
def top_contexts(
    dictionary: Dictionary,
    passages: Iterable[tuple[Float[Tensor, "tokens width"], Sequence[int]]],
    decode: Callable[[list[int]], str],
    *,
    contexts: int = 4,
    before: int = 12,
    after: int = 4,
) -> list[list[dict[str, Any]]]:
    """Of each feature the places where it is most active, the strongest first, at most one in a passage.

    Args:
        passages: activations, and the tokens that they are of.
        decode: tokens to text.
        before, after: tokens around a place that are shown.

    Returns:
        Of each feature, mappings with `activation`, the text `before`, `token` and `after`, and the same text as
        `pieces`, each with whether the feature is active in it.
    """
    size = dictionary.shape.features
    best = torch.zeros(contexts, size)
    where = torch.zeros(contexts, size, 2, dtype=torch.int64)
    is_active = torch.zeros(contexts, size, before + 1 + after, dtype=torch.bool)
    around = torch.arange(-before, after + 1)
    tokens: list[Sequence[int]] = []
    for number, (inner, ids) in enumerate(passages):
        tokens.append(ids)
        found = dictionary.encode(inner)
        strongest = found.max(dim=0)
        values = torch.cat([best, strongest.values[None]])
        here = torch.stack([torch.full((size,), number), strongest.indices], dim=1)
        windows = (strongest.indices + around[:, None]).clamp(0, len(found) - 1)  # what is beyond an end is not shown
        actives = torch.cat([is_active, (found.gather(0, windows) > 0).T[None]])
        places = torch.cat([where, here[None]])
        best, order = values.topk(contexts, dim=0)
        where = places.gather(0, order[..., None].expand(-1, -1, 2))
        is_active = actives.gather(0, order[..., None].expand(-1, -1, len(around)))
    shown: list[list[dict[str, Any]]] = []
    for feature in range(size):
        shown.append([])
        for rank in range(contexts):
            if best[rank, feature] > 0:
                passage, place = where[rank, feature].tolist()
                found_there = _context(list(tokens[passage]), place, is_active[rank, feature].tolist(), before, decode)
                shown[-1].append({"activation": round(float(best[rank, feature]), 3), **found_there})
    return shown


def _context(
    ids: list[int], place: int, active: list[bool], before: int, decode: Callable[[list[int]], str]
) -> dict[str, Any]:
    """A place among the tokens of a passage, in text.

    Args:
        active: of the tokens around it, `before` of them in front, whether the feature is active.
    """
    first, last = max(place - before, 0), place - before + len(active)
    flagged = list(zip(ids[first:last], active[before - (place - first) :], strict=False))
    pieces = [
        [decode([token for token, _ in run]), is_active] for is_active, run in groupby(flagged, key=lambda one: one[1])
    ]
    texts = map(decode, (ids[first:place], ids[place : place + 1], ids[place + 1 : last]))
    return {**dict(zip(("before", "token", "after"), texts, strict=True)), "pieces": pieces}
