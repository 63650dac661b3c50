"""Reads a run directory for a report."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from p2o.difficulty.buckets import Cutoffs
from p2o.prompt_phase.hard_samples import Outcome


@dataclass
class RunData:
    """The readable contents of a run directory; missing or damaged files are listed in `problems`.

    Args:
        hard_sets: rows that were hard before an epoch, by epoch.
        templates: record of the evolution before an epoch, by epoch.
        mined: what mining found in an epoch, by epoch.
        answers: "before" and "after" training.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    hard_sets: dict[int, list[int]] = field(default_factory=dict)
    templates: dict[int, dict[str, Any]] = field(default_factory=dict)
    mined: dict[int, "Mined"] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def method(self) -> str:
        return str(self.config.get("method", "p2o"))

    def examples(self, count: int = 3) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Questions with their answers before and after: first hard ones newly solved, then any."""
        after = {answer["question"]: answer for answer in self.answers.get("after", [])}
        pairs = [(b, after[b["question"]]) for b in self.answers.get("before", []) if b["question"] in after]
        pairs = [(b, a) for b, a in pairs if b["reward"] is not None and a["reward"] is not None]
        pairs.sort(key=lambda p: (p[0]["dataset"] != "hard", p[0]["reward"] - p[1]["reward"]))
        return pairs[:count]


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
    for file in sorted(path.glob("outcomes/epoch-*.json")):
        if mined := read(str(file.relative_to(path)), Mined.read, None):
            run.mined[mined.epoch] = mined
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


NOT_MINED, TEMPLATED = "not mined", " under templates"


@dataclass(frozen=True)
class Mined:
    """What mining found in an epoch.

    Args:
        epoch: from 0.
        outcomes: by question.
        templated: questions with rollouts under templates.
    """

    epoch: int
    outcomes: dict[int, Outcome]
    templated: frozenset[int]

    @classmethod
    def read(cls, text: str) -> "Mined":
        """
        Raises:
            ValueError: it is not what a run directory records.
        """
        data = _mapping(json.loads(text), ("epoch", "outcomes", "templated"))
        try:
            outcomes = {int(question): Outcome(*map(int, counts)) for question, counts in data["outcomes"].items()}
            return cls(int(data["epoch"]), outcomes, frozenset(map(int, data["templated"])))
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None

    def state(self, question: int) -> str:
        """The bucket of a question in this epoch, with its number from 1."""
        if (outcome := self.outcomes.get(question)) is None:
            return f"{NOT_MINED} · {self.epoch + 1}"
        under = TEMPLATED if question in self.templated else ""
        return f"{Cutoffs().bucket(outcome)}{under} · {self.epoch + 1}"


def bucket_transitions(run: RunData) -> list[tuple[str, str, int]]:
    """Number of questions per transition between the buckets of successive epochs.

    The bucket of an epoch is by the rollouts that mining counted in it: of a question that had templates, rollouts
    under them. One that was not drawn in an epoch, whose place a rewrite took, or that nobody scored was not mined.
    """
    flows = Counter[tuple[str, str]]()
    questions = {question for mined in run.mined.values() for question in mined.outcomes}
    for epoch, before in sorted(run.mined.items()):
        if (after := run.mined.get(epoch + 1)) is not None:
            flows.update((before.state(question), after.state(question)) for question in questions)
    return [(source, target, count) for (source, target), count in flows.items()]
