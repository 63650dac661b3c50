"""Reads a run directory for a report."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class RunData:
    """The readable contents of a run directory; missing or damaged files are listed in `problems`.

    Args:
        hard_sets: rows that were hard before an epoch, by epoch.
        templates: record of the evolution before an epoch, by epoch.
        answers: "before" and "after" training.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    hard_sets: dict[int, list[int]] = field(default_factory=dict)
    templates: dict[int, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def method(self) -> str:
        return str(self.config.get("method", "p2o"))


def load_run(path: Path) -> RunData:
    """Reads a run directory; a file that is missing, damaged or malformed is a problem, not an exception."""
    run = RunData(path)

    def read(name: str, parse: Callable[[str], Any], default: Any) -> Any:
        try:
            return parse((path / name).read_text())
        except FileNotFoundError:
            run.problems.append(f"{name} is missing")
        except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:
            run.problems.append(f"{name} is damaged ({type(error).__name__})")
        return default

    def read_lines(name: str, *keys: str) -> list[dict[str, Any]]:
        records, damaged = [], 0
        for line in read(name, str.splitlines, []):
            try:
                records.append(_mapping(json.loads(line), keys))
            except (ValueError, RecursionError):
                damaged += 1
        if damaged:
            run.problems.append(f"{name} has {damaged} damaged line(s)")
        return records

    run.config = read("config.yaml", lambda text: _mapping(yaml.safe_load(text) or {}), {})
    run.versions = read("versions.json", lambda text: _mapping(json.loads(text)), {})
    run.summary = read("summary.json", lambda text: _mapping(json.loads(text)), {})
    run.metrics = read_lines("metrics.jsonl")
    # Runs without evaluation questions have no answers to them.
    for when in ("before", "after") if run.summary.get("bare_accuracy") else ():
        run.answers[when] = read_lines(f"answers-{when}.jsonl", "dataset", "question", "completion", "reward")
    for folder, keys in (("hard_sets", ("epoch", "rows")), ("templates", ("epoch", "selected", "evolution"))):
        for file in sorted(path.glob(f"{folder}/epoch-*.json")):
            name = str(file.relative_to(path))
            record = read(name, lambda text, keys=keys: _mapping(json.loads(text), keys), None)  # type: ignore[misc]
            if record and folder == "hard_sets":
                run.hard_sets[record["epoch"]] = record["rows"]
            elif record:
                run.templates[record["epoch"]] = record
    return run


def _mapping(value: Any, keys: Sequence[str] = ()) -> dict[str, Any]:
    """
    Raises:
        ValueError: the value is not a mapping with these keys.
    """
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise ValueError(f"not a mapping with {', '.join(keys)}")
    return value


def hard_set_transitions(run: RunData) -> list[tuple[str, str, int]]:
    """Number of questions per transition between states of successive epochs: hard, solved with template, solved bare.

    A question that is hard before epoch e is sampled under a template in e; if it leaves the hard set then, it is
    sampled bare in e + 1, and counts as solved bare if it does not become hard again.
    """
    flows: dict[tuple[str, str], int] = defaultdict(int)
    epochs = sorted(run.hard_sets)
    state: dict[int, str] = {}
    for epoch in epochs:
        hard = set(run.hard_sets[epoch])
        after = {}
        for question in set(state) | hard:
            was = state.get(question)
            if question in hard:
                now = "hard"
            elif was == "hard":
                now = "solved with template"
            else:
                now = "solved bare"
            after[question] = now
            if was is not None:
                flows[f"{was} · {epoch - 1}", f"{now} · {epoch}"] += 1
            elif now == "hard" and epoch != epochs[0]:
                flows[f"not hard yet · {epoch - 1}", f"hard · {epoch}"] += 1
        state = after
    return [(source, target, count) for (source, target), count in flows.items()]
