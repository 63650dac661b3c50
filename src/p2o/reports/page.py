"""One self-contained HTML page about one run or several side by side."""

import base64
import gzip
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from p2o.difficulty.buckets import Cutoffs
from p2o.evaluation.statistics import wilson
from p2o.files import write_whole
from p2o.ledger import PURPOSES
from p2o.reports.charts import Chart, Charts, Table
from p2o.reports.differences import Piece, differences
from p2o.reports.features_data import FeatureData
from p2o.reports.features_page import features_section
from p2o.reports.figures import BUCKET_COLOURS, BY_EPOCH, FATES, accuracy_figure, epoch_figure, flow_figure
from p2o.reports.metrics import accuracy_curves, by_epoch
from p2o.reports.run_data import RunData, bucket_transitions, hard_set_transitions
from p2o.reports.words import highest_scored, in_words

EVENTS = {
    "accuracy_regression": "accuracy on an evaluation set fell by more than regression_margin",
    "single_template": "an epoch had a single template in use",
    "response_length_changed": "response length left the range around its beginning (length_change_factor)",
    "shortcut_suspected": "length and entropy of responses collapsed while rewards still paid for it (shortcut_factor)",
    "feature_proxy_stopped": "reasoning features grew, successes did not: proxy rewards ended (feature_proxy_patience)",
    "selection_within_noise": "a prompt phase's templates solved no more dev questions than none, but by chance",
    "templates_not_tried_again": "templates that selection_margin left out because max_rollouts was reached",
    "unscored_rollouts": "rollouts that no reward function scored",
    "template_too_long_for_question": "rollouts whose template did not fit the prompt limit",
}


def write_report(runs: list[RunData], output: Path, features: Sequence[FeatureData] = ()) -> None:
    """Writes the page about these runs, and what was read of them from inside."""
    write_whole(output, render(runs, features))


def render(runs: list[RunData], features: Sequence[FeatureData] = ()) -> str:
    """The page as text; everything from a model, a user or a file is escaped on it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    charts = Charts()
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return environment.get_template("page.html.jinja").render(
        title=" · ".join(run.name for run in runs),
        problems=[
            *((run.name, "incomplete run directory", run.problems) for run in runs if run.problems),
            *((one.name, "incomplete directory of p2o features", one.problems) for one in features if one.problems),
        ],
        words=[(run.name, in_words(run)) for run in runs],
        outcome=_outcome(runs),
        charts=[*_accuracies(runs, charts), *_by_epoch(runs, charts)],
        taken_over=_taken_over(runs),
        warnings=Table(["run", "what", "times"], [row for run in runs for row in _warnings(run)]),
        features=[features_section(one, charts) for one in features],
        runs=[_run(run, charts) for run in runs],
        ledger=_ledger(runs),
        figures=charts.json(),
        plotly=base64.b64encode(gzip.compress(script.read_bytes(), mtime=0)).decode(),
    )


def _outcome(runs: list[RunData]) -> Table:
    rows = []
    for run in runs:
        accuracy = run.summary.get("bare_accuracy", {})
        shown = [f"{split} {_share(v['before'])} → {_share(v['after'])}" for split, v in accuracy.items()]
        total = run.summary.get("rollouts", {}).get("total")
        rollouts = f"{total:,}" if total is not None else "not finished"
        rows.append([run.name, run.method, run.config.get("seed", 0), "; ".join(shown) or "–", rollouts])
    return Table(["run", "method", "seed", "bare accuracy before → after", "rollouts in all"], rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _accuracies(runs: list[RunData], charts: Charts) -> list[tuple[str, Chart]]:
    """A chart for each evaluation set that has a curve."""
    points = [(split, len(curve)) for run in runs for split, curve in accuracy_curves(run.metrics).items()]
    # Sets that were evaluated only before and after are in the outcome; a line through two points shows no more.
    splits = list(dict.fromkeys(split for split, count in points if count > 2 or max(c for _, c in points) <= 2))
    made = []
    for split in splits:
        rows: list[list[Any]] = [
            [run.name, f"{x:,}", f"{y:.1%}"] for run in runs for x, y in accuracy_curves(run.metrics).get(split, [])
        ]
        name = split.replace("_", " ")
        marks = "Dotted: before training." + " Shaded: prompt phases." * (len(runs) == 1)
        label = f"Bare accuracy on {name} questions against rollouts spent in all. {marks}"
        chart = charts.add(accuracy_figure(runs, split), label, Table(["run", "rollouts", "accuracy"], rows))
        made.append((f"Bare accuracy: {name}", chart))
    return made


def _by_epoch(runs: list[RunData], charts: Charts) -> list[tuple[str, Chart]]:
    made = []
    for shown in BY_EPOCH:
        values = [(run.name, *point) for run in runs for point in by_epoch(run.metrics, shown.metric, shown.parts)]
        if values:
            rows = [[name, f"{epoch:g}", f"{y:.1%}" if shown.is_share else f"{y:.3g}"] for name, epoch, y in values]
            label = f"{shown.caption} By {'epoch' if shown.parts == 1 else 'part of an epoch'}."
            made.append(
                (shown.title, charts.add(epoch_figure(runs, shown), label, Table(["run", "epoch", "value"], rows)))
            )
    return made


def _taken_over(runs: list[RunData]) -> Table:
    """Success of questions in an epoch under templates, and in the next without."""
    rows = []
    for run in runs:
        bare = dict(by_epoch(run.metrics, "p2o/taken_over/bare", of=itemgetter(-1)))
        for epoch, templated in by_epoch(run.metrics, "p2o/taken_over/templated", of=itemgetter(-1)):
            rows.append([run.name, f"{epoch - 1:g}", _share(templated), _share(bare.get(epoch))])
    return Table(["run", "epoch", "under templates", "bare, an epoch later"], rows)


def _warnings(run: RunData) -> list[list[Any]]:
    last: dict[str, Any] = {}
    for record in run.metrics:
        last.update((k.removeprefix("p2o/events/"), v) for k, v in record.items() if k.startswith("p2o/events/"))
    last.update(run.summary.get("events", {}))
    return [[run.name, EVENTS.get(name, name.replace("_", " ")), f"{count:.0f}"] for name, count in last.items()]


def _run(run: RunData, charts: Charts) -> dict[str, Any]:
    """The section of the page about one run."""
    fates = (
        f"{run.name}: transitions of hard questions from epoch to epoch, left to right. Red: hard; amber: "
        "solved with a template; green: solved bare."
    )
    buckets = (
        f"{run.name}: transitions of all questions between buckets from epoch to epoch, left to right. Red: hard; "
        f"amber: medium; green: easy ({Cutoffs()}); pale: the same of rollouts under templates; grey: not asked or not "
        "scored in that epoch."
    )
    return {
        "name": run.name,
        "transitions": _flows(hard_set_transitions(run), FATES, fates, charts),
        "buckets": _flows(bucket_transitions(run), BUCKET_COLOURS, buckets, charts),
        "lineages": [_lineage(epoch, record) for epoch, record in run.templates.items()],
        "instruction": best["text"] if (best := highest_scored(run)) else None,
        "answers": [_compared(before, after) for before, after in run.examples()],
        "settings": Table(["setting", "value"], [[k, v] for k, v in sorted(run.config.items())]),
        "versions": Table(["package", "version"], [[k, v] for k, v in run.versions.items()]),
    }


def _compared(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, list[tuple[str, float, list[Piece]]]]:
    """A question; and when, reward and pieces of both answers to it."""
    sides = zip(
        ("before", "after"), (before, after), differences(before["completion"], after["completion"]), strict=True
    )
    return before["question"], [(when, answer["reward"], pieces) for when, answer, pieces in sides]


def _flows(flows: list[tuple[str, str, int]], colours: Mapping[str, str], label: str, charts: Charts) -> Chart | None:
    if (figure := flow_figure(flows, colours)) is None:
        return None
    numbers = Table(["from · epoch", "to · epoch", "questions"], [list(flow) for flow in flows])
    return charts.add(figure, label, numbers, height=380)


def _lineage(epoch: int, record: dict[str, Any]) -> dict[str, Any]:
    """The candidates of one evolution by their first parent, None for the seed."""
    evolution = record["evolution"]
    in_use = {template["candidate"] for template in record["selected"]}
    children = defaultdict(list)
    for c in evolution.get("candidates", []):
        children[c["parents"][0] if c["parents"] else None].append(
            {
                **{name: c[name] for name in ("index", "text", "parents", "iteration")},
                "score": sum(c["dev_rewards"].values()) / max(len(c["dev_rewards"]), 1),
                "solved": sum(c["dev_solved"].values()),
                "questions": len(c["dev_solved"]),
                "in_use": c["index"] in in_use,
            }
        )
    return {
        "epoch": epoch,
        "children": dict(children),
        "skipped": evolution.get("skipped") or "nothing evolved",
        "ended_early": evolution.get("ended_early"),
        "success": _dev_success(evolution, [template["candidate"] for template in record["selected"]]),
        "tried_again": bool(evolution.get("trials")),
    }


def _dev_success(evolution: dict[str, Any], in_use: list[Any]) -> Table:
    """Solve rates on the dev questions of the empty template and of those in use, side by side with their intervals."""
    candidates = {str(c["index"]): c["dev_solved"] for c in evolution.get("candidates", [])}
    candidates |= {index: trial["solved"] for index, trial in evolution.get("trials", {}).items()}
    rows = []
    for index in (0, *in_use):
        if solved := candidates.get(str(index)):
            rate, count = sum(solved.values()) / len(solved), len(solved)
            low, high = wilson(rate, count)
            rows.append([f"#{index}" if index else "none", _share(rate), f"{_share(low)} to {_share(high)}", count])
    return Table(["template", "dev questions solved", "95 % interval", "dev questions"], rows)


def _ledger(runs: list[RunData]) -> Table:
    rows: list[list[Any]] = []
    for run in runs:
        tokens = run.summary.get("tokens", {})
        for purpose in PURPOSES:
            counts = [
                run.summary.get("rollouts", {}).get(purpose),
                *(tokens.get(unit, {}).get(purpose) for unit in ("prompt_tokens", "completion_tokens")),
            ]
            if any(counts):
                rows.append([run.name, purpose.replace("_", " "), *(f"{c or 0:,}" for c in counts)])
        if tokens:
            passes = f"{tokens['forward_backward_tokens']:,} with a gradient, {tokens['forward_tokens']:,} without"
            rows.append([run.name, "trainer's passes", "", "", passes])
        if run.summary.get("reflection_cost"):
            rows.append([run.name, "reflection, US dollars", "", "", f"{run.summary['reflection_cost']:.2f}"])
    return Table(["run", "spent on", "rollouts", "prompt tokens", "completion tokens"], rows)
