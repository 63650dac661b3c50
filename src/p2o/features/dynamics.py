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

from p2o.difficulty.buckets import BUCKETS
from p2o.features.autoencoder import Dictionary, DictionaryError
from p2o.features.labels import Labels
from p2o.features.lead import complete, lead_of
from p2o.features.shards import Passage
from p2o.features.spans import KINDS
from p2o.seeding import derive_seed

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
        half_shares, half_rewards: the same by half of each question's rollouts, every other one; None where a half has
            none. Whatever compares shares with rewards takes them from different halves.
    """

    shares: dict[str, list[float]]
    rewards: list[float | None]
    lengths: list[float]
    explained_variance: float
    half_shares: dict[str, list[list[float | None]]]
    half_rewards: list[list[float | None]]

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


class _Sums:
    """Activations, lengths and rewards of the rollouts of one question, or of half of them."""

    def __init__(self) -> None:
        self.by_kind: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.total = 0.0
        self.lengths: list[int] = []
        self.rewards: list[float] = []

    def add(self, by_feature: Float[Tensor, " features"], groups: dict[str, list[int]], passage: Passage) -> None:
        for kind, group in groups.items():
            self.by_kind[kind] += float(by_feature[group].sum())
        self.total += float(by_feature.sum())
        self.lengths.append(len(passage.ids) - 1)
        if passage.reward is not None:
            self.rewards.append(passage.reward)

    def share(self, kind: str) -> float:
        return self.by_kind[kind] / max(self.total, 1e-12)

    @property
    def reward(self) -> float | None:
        return _mean(self.rewards) if self.rewards else None


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
    whole = {question: _Sums() for question in questions}
    halves = [{question: _Sums() for question in questions} for _ in range(2)]
    everything = torch.cat(list(activations))
    left = 0.0
    for passage, inner in zip(passages, activations, strict=True):
        found = dictionary.encode(inner)
        left += float((inner - dictionary.decode(found)).square().sum())
        half = halves[len(whole[passage.question].lengths) % 2]
        for sums in (whole, half):
            sums[passage.question].add(found.sum(0), groups, passage)
    variance = float((everything - everything.mean(0)).square().sum())
    return Strengths(
        {kind: [whole[q].share(kind) for q in questions] for kind in KINDS},
        [whole[q].reward for q in questions],
        [_mean(whole[q].lengths) for q in questions],
        1 - left / variance,
        {
            kind: [[half[q].share(kind) if half[q].lengths else None for q in questions] for half in halves]
            for kind in KINDS
        },
        [[half[q].reward for q in questions] for half in halves],
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


Measured = Sequence[tuple[Checkpoint, Strengths]]


def summarise(measured: Measured, buckets: Sequence[str | None] | None = None) -> list[dict[str, Any]]:
    """The numbers of each checkpoint; the first is the base, from which changes are counted, question by question.

    Args:
        buckets: of each question, None where it has none; leaves out `by_bucket` when None.
    """
    (_, base), *_ = measured
    rows = []
    for checkpoint, found in measured:
        row: dict[str, Any] = {
            "run": checkpoint.run,
            "method": checkpoint.method,
            "step": checkpoint.step,
            "explained_variance": found.explained_variance,
            **_numbers(found, base, range(len(found.lengths))),
        }
        if buckets is not None:
            row["by_bucket"] = {name: _numbers(found, base, own) for name, own in by_bucket(buckets).items()}
        rows.append(row)
    return rows


def by_bucket(buckets: Sequence[str | None]) -> dict[str, list[int]]:
    """The questions of each bucket that has any."""
    found = {name: [place for place, own in enumerate(buckets) if own == name] for name in BUCKETS}
    return {name: own for name, own in found.items() if own}


def _numbers(found: Strengths, base: Strengths, questions: Sequence[int]) -> dict[str, Any]:
    """Of these questions."""
    scored = [reward for reward in (found.rewards[q] for q in questions) if reward is not None]
    shares = {kind: [found.shares[kind][q] for q in questions] for kind in KINDS}
    return {
        "questions": len(questions),
        "mean_reward": interval(scored) if scored else None,
        "mean_length": interval([found.lengths[q] for q in questions]),
        "share": {kind: interval(shares[kind]) for kind in KINDS},
        "change": {
            kind: interval([share - base.shares[kind][q] for share, q in zip(shares[kind], questions, strict=True)])
            for kind in KINDS
        },
    }


def leads(measured: Measured, buckets: Sequence[str | None] | None = None, *, seed: int) -> list[dict[str, Any]]:
    """Which groups of features move ahead of accuracy, for each run and kind, by [`p2o.features.lead`].

    Args:
        measured: the base, then the checkpoints of the runs.
        buckets: of each question, None where it has none.
        seed: of the bootstrap.

    Returns:
        For each run, set of questions (`bucket` None is all) and kind that has checkpoints and questions enough.
    """
    base, *others = measured
    rows: list[dict[str, Any]] = []
    sets: list[tuple[str | None, Sequence[int]]] = [(None, range(len(base[1].lengths)))]
    sets += by_bucket(buckets).items() if buckets is not None else ()
    for run in dict.fromkeys(checkpoint.run for checkpoint, _ in others):
        own = [base, *(one for one in others if one[0].run == run)]
        for name, questions in sets:
            for kind in KINDS:
                shares, rewards = complete(
                    [[[half[q] for q in questions] for half in found.half_shares[kind]] for _, found in own],
                    [[[half[q] for q in questions] for half in found.half_rewards] for _, found in own],
                )
                if lead := lead_of(shares, rewards, seed=derive_seed(seed, "lead", run, str(name), kind)):
                    rows.append({"run": run, "method": own[-1][0].method, "bucket": name, "kind": kind})
                    rows[-1] |= lead.to_dict()
    return rows
