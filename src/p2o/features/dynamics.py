"""How training moves groups of features: their share of the activation on bare questions, checkpoint by checkpoint.

One dictionary, trained on the base, reads every checkpoint, so that features need no matching. How much of a
checkpoint's variance it still explains is reported with every number: where that falls, the dictionary no longer says
what is there.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from p2o.features.autoencoder import Dictionary, DictionaryError
from p2o.features.labels import Labels
from p2o.features.shards import Passage
from p2o.features.spans import KINDS

BASE = "base"


@dataclass(frozen=True)
class Checkpoint:
    """A model of a run.

    Args:
        run: name of the run's directory.
        method: of the run; "base" for the model that training started from.
        step: of training; None for a final model whose step is not recorded.
        path: its directory.
    """

    run: str
    method: str
    step: int | None
    path: Path


@dataclass(frozen=True)
class Strengths:
    """What was measured on one checkpoint, by question.

    Args:
        shares: by kind of feature, of each question the share of the activation of all features over the tokens of its
            rollouts, in [0, 1].
        rewards: of each question the mean reward of its rollouts; None where none was scored.
        lengths: of each question the mean length of its rollouts, in tokens.
        explained_variance: of the activations by the dictionary.
    """

    shares: dict[str, list[float]]
    rewards: list[float | None]
    lengths: list[float]
    explained_variance: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def checkpoints_of(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run directory and its final model, by step; a directory with a model alone is one.

    Raises:
        DictionaryError: neither a run nor a model.
    """
    if _is_model(run):
        return [Checkpoint(run.name, "model", None, run)]
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        method = str(config.get("method", "p2o"))
    except (OSError, AttributeError, yaml.YAMLError):
        raise DictionaryError(
            f"{run} is neither a run directory of `p2o train`, with its config.yaml, nor a model."
        ) from None
    names = [(path.name.partition("-")[2], path) for path in run.glob("checkpoint-*") if _is_model(path)]
    numbered = {int(step): path for step, path in names if step.isdigit()}  # not one that is being written
    found = [Checkpoint(run.name, method, step, numbered[step]) for step in sorted(numbered)]
    if _is_model(run / "model"):
        last = _last_step(run)
        found = [one for one in found if one.step != last] + [Checkpoint(run.name, method, last, run / "model")]
    if not found:
        raise DictionaryError(f"{run} has no model yet: neither model/ nor a checkpoint.")
    return found


def base_of(run: Path) -> str | None:
    """The model that a run started from, as its configuration names it; None for what is no run."""
    config = run / "config.yaml"
    name = (yaml.safe_load(config.read_text()) or {}).get("model_name_or_path") if config.exists() else None
    return None if name is None else str(name)


def _is_model(path: Path) -> bool:
    return (path / "config.json").exists() or (path / "adapter_config.json").exists()


def _last_step(run: Path) -> int | None:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return max((int(json.loads(line)["step"]) for line in lines if line.endswith("}")), default=None)
    except (OSError, ValueError, KeyError):
        return None


@torch.no_grad()
def strengths(
    dictionary: Dictionary,
    labels: Labels,
    passages: Sequence[Passage],
    activations: Sequence[Float[Tensor, "tokens width"]],
) -> Strengths:
    """What the passages of a checkpoint show, question by question.

    Args:
        activations: of the passages, in their order.
    """
    groups = {kind: labels.group(kind) for kind in KINDS}
    questions = sorted({passage.question for passage in passages})
    sums = {kind: dict.fromkeys(questions, 0.0) for kind in KINDS}
    totals = dict.fromkeys(questions, 0.0)
    lengths: dict[int, list[float]] = {question: [] for question in questions}
    rewards: dict[int, list[float]] = {question: [] for question in questions}
    everything = torch.cat(list(activations))
    left = 0.0
    for passage, inner in zip(passages, activations, strict=True):
        found = dictionary.encode(inner)
        left += float((inner - dictionary.decode(found)).square().sum())
        by_feature = found.sum(0)
        for kind, group in groups.items():
            sums[kind][passage.question] += float(by_feature[group].sum())
        totals[passage.question] += float(by_feature.sum())
        lengths[passage.question].append(len(passage.ids) - 1)
        if passage.reward is not None:
            rewards[passage.question].append(passage.reward)
    variance = float((everything - everything.mean(0)).square().sum())
    return Strengths(
        {kind: [sums[kind][q] / max(totals[q], 1e-12) for q in questions] for kind in KINDS},
        [_mean(rewards[q]) if rewards[q] else None for q in questions],
        [_mean(lengths[q]) for q in questions],
        1 - left / variance,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean over questions and its 95 % interval by Student's t; of one question, the interval is not a number."""
    found = np.asarray(values, float)
    if len(found) < 2:
        return {"mean": float(found.mean()), "low": math.nan, "high": math.nan}
    half = float(stats.sem(found) * stats.t.ppf(0.975, len(found) - 1))
    middle = float(found.mean())
    return {"mean": middle, "low": middle - half, "high": middle + half}


def summarise(measured: Sequence[tuple[Checkpoint, Strengths]]) -> list[dict[str, Any]]:
    """The numbers of each checkpoint; the first is the base, from which changes are counted, question by question."""
    (_, base), *_ = measured
    rows = []
    for checkpoint, found in measured:
        scored = [reward for reward in found.rewards if reward is not None]
        rows.append(
            {
                "run": checkpoint.run,
                "method": checkpoint.method,
                "step": checkpoint.step,
                "mean_reward": interval(scored) if scored else None,
                "mean_length": interval(found.lengths),
                "explained_variance": found.explained_variance,
                "share": {kind: interval(found.shares[kind]) for kind in KINDS},
                "change": {
                    kind: interval(np.subtract(found.shares[kind], base.shares[kind]).tolist()) for kind in KINDS
                },
            }
        )
    return rows
