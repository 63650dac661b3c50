"""Reads what `p2o features` and `p2o features apply` wrote, for a report. Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

DYNAMICS, CONTEXTS, SUMMARY = "dynamics.json", "contexts.json", "features.json"
KIND, VERSION = "p2o feature dynamics", 1
EVERYTHING = "all"  # the questions of all buckets


class Interval(NamedTuple):
    """A number with its 95 % interval; None where it is not known."""

    value: float | None
    low: float | None
    high: float | None


class Numbers(NamedTuple):
    """What was measured of a checkpoint on a set of questions; shares and changes by kind of feature."""

    questions: int
    reward: Interval | None
    shares: dict[str, Interval]
    changes: dict[str, Interval]


class Row(NamedTuple):
    """A checkpoint; numbers are by set of questions, [`EVERYTHING`] and buckets. `step` is None where unrecorded."""

    run: str
    method: str
    step: int | None
    explained: float
    numbers: dict[str, Numbers]


class LeadRow(NamedTuple):
    """Which comes first, share or reward: correlations by lag in checkpoints."""

    run: str
    questions: str
    kind: str
    by_lag: dict[int, Interval]
    lead: Interval
    is_ahead: bool


class Feature(NamedTuple):
    """A feature with the places where it is most active.

    Args:
        share: of its mean activation, on the kind of span that labels it; None where none does.
        activity: its mean activation over all tokens.
        contexts: the strongest first, each as pieces of text with whether the feature is active there.
    """

    number: int
    is_high: bool
    share: float | None
    activity: float
    endpoint_label: str | None
    contexts: list[list[tuple[str, bool]]]


@dataclass
class FeatureData:
    """The readable contents of a directory of `p2o features`; what is damaged is listed in `problems`.

    Args:
        origin: model and layer of the dictionary, in words; "" without dynamics.
        rows: the base, then the checkpoints of the runs; empty without dynamics.
        leads: empty where there are too few checkpoints or questions.
        features: by kind.
    """

    path: Path
    origin: str = ""
    rows: list[Row] = field(default_factory=list)
    leads: list[LeadRow] = field(default_factory=list)
    features: dict[str, list[Feature]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name


def has_features(path: Path) -> bool:
    """Whether a directory has anything that [`load_features`] reads."""
    return any((path / name).exists() for name in (DYNAMICS, CONTEXTS))


def load_features(path: Path) -> FeatureData:
    """Reads a directory of `p2o features` or `p2o features apply`; what is damaged is a problem, not an exception."""
    data = FeatureData(path)

    def read(name: str, parse: Callable[[Any], None]) -> None:
        try:
            parse(json.loads((path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass  # the other command's
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"{name} is damaged ({type(error).__name__}: {error})"
            data.problems.append(f"{what}: run the command that wrote it again, which samples nothing anew")

    def dynamics(found: Any) -> None:
        if found["kind"] != KIND or found["version"] != VERSION:
            raise ValueError(f"not a {KIND} of version {VERSION}")
        rows, leads = [_row(row) for row in found["checkpoints"]], [_lead(row) for row in found["lead"]]
        of = [{(name, *own.shares, *own.changes) for name, own in row.numbers.items()} for row in rows]
        if not rows or any(own != of[0] for own in of) or any(1 not in lead.by_lag for lead in leads):
            raise ValueError("something is missing of a checkpoint or of a correlation")
        data.origin = f"{found['dictionary']['model']}, {found['dictionary']['layer']}"
        data.rows, data.leads = rows, leads

    def contexts(found: Any) -> None:
        data.features = {str(kind): [_feature(one) for one in group] for kind, group in found.items()}

    read(DYNAMICS, dynamics)
    read(CONTEXTS, contexts)
    return data


def _interval(found: Mapping[str, Any], value: str = "mean") -> Interval:
    return Interval(*(None if found[key] is None else float(found[key]) for key in (value, "low", "high")))


def _numbers(found: Mapping[str, Any]) -> Numbers:
    return Numbers(
        int(found["questions"]),
        None if found["mean_reward"] is None else _interval(found["mean_reward"]),
        {str(kind): _interval(of) for kind, of in found["share"].items()},
        {str(kind): _interval(of) for kind, of in found["change"].items()},
    )


def _row(found: Mapping[str, Any]) -> Row:
    sets = {EVERYTHING: found, **found.get("by_bucket", {})}
    step = None if found["step"] is None else int(found["step"])
    numbers = {str(name): _numbers(of) for name, of in sets.items()}
    return Row(str(found["run"]), str(found["method"]), step, float(found["explained_variance"]), numbers)


def _lead(found: Mapping[str, Any]) -> LeadRow:
    return LeadRow(
        str(found["run"]),
        f"{int(found['questions'])} {found['bucket'] or EVERYTHING}",
        str(found["kind"]),
        {int(lag): _interval(of, "value") for lag, of in found["by_lag"].items()},
        _interval(found["lead"], "value"),
        bool(found["is_ahead"]),
    )


def _feature(found: Mapping[str, Any]) -> Feature:
    label = found.get("endpoint_label")
    return Feature(
        int(found["feature"]),
        bool(found["high"]),
        None if found["share"] is None else float(found["share"]),
        float(found["activity"]),
        None if label is None else str(label),
        [_pieces(one["pieces"]) for one in found["contexts"]],
    )


def _pieces(found: Sequence[Sequence[Any]]) -> list[tuple[str, bool]]:
    return [(str(text), bool(is_active)) for text, is_active in found]
