"""`p2o report RUN…`: one self-contained HTML page about one run or several side by side."""

import argparse
import base64
import gzip
import html
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly
import plotly.graph_objects as go
import yaml
from rich.console import Console

from p2o.cli.console import share
from p2o.cli.metrics import accuracy_curves, by_epoch
from p2o.evaluation.statistics import interval
from p2o.ledger import PURPOSES


@dataclass
class RunData:
    """What a run directory holds; what is missing or damaged is named in `problems`."""

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
    """Reads what is there; a file that is missing or damaged becomes a problem, not an exception."""
    run = RunData(path)

    def read(name: str, parse: Any, default: Any) -> Any:
        try:
            return parse((path / name).read_text())
        except FileNotFoundError:
            run.problems.append(f"{name} is missing")
        except (ValueError, OSError, yaml.YAMLError) as error:
            run.problems.append(f"{name} is damaged ({type(error).__name__})")
        return default

    def lines(name: str) -> Any:
        def parse(text: str) -> list[dict[str, Any]]:
            records, torn = [], 0
            for line in text.splitlines():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    torn += 1
            if torn:
                run.problems.append(f"{name} has {torn} damaged line(s)")
            return records

        return parse

    run.config = read("config.yaml", yaml.safe_load, {}) or {}
    run.versions = read("versions.json", json.loads, {})
    run.summary = read("summary.json", json.loads, {})
    run.metrics = read("metrics.jsonl", lines("metrics.jsonl"), [])
    # Runs without evaluation questions have no answers to them.
    for when in ("before", "after") if run.summary.get("bare_accuracy") else ():
        run.answers[when] = read(f"answers-{when}.jsonl", lines("answers"), [])
    for file in sorted(path.glob("hard_sets/epoch-*.json")):
        record = read(str(file.relative_to(path)), json.loads, None)
        if record:
            run.hard_sets[record["epoch"]] = record["rows"]
    for file in sorted(path.glob("templates/epoch-*.json")):
        record = read(str(file.relative_to(path)), json.loads, None)
        if record:
            run.templates[record["epoch"]] = record
    return run


# -- what is drawn ----------------------------------------------------------------------------------------------------


def fate(run: RunData) -> list[tuple[str, str, int]]:
    """Flows of questions between states of successive epochs: hard, solved (templated then), and what became of them.

    A question that is hard before epoch e is tried under a template in e; one that leaves the hard set then is tried
    bare in e + 1, and is solved bare when it does not come back.
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


COLOURS = ("#4c78a8", "#e07b39", "#3a9d6e", "#b4518f", "#7f6dc6", "#a08a2c", "#5aa5b8", "#c94f4f", "#777777")


Curve = Sequence[tuple[float, float]]


def _by_method(runs: list[RunData], curve: Callable[[RunData], Curve]) -> Iterator[tuple[str, str, list[Curve]]]:
    """Method, colour, and its runs' curves, without those that are empty."""
    for number, method in enumerate(dict.fromkeys(run.method for run in runs)):
        curves = [curve(run) for run in runs if run.method == method]
        yield method, COLOURS[number % len(COLOURS)], [c for c in curves if c]


def _add_curves(figure: go.Figure, method: str, colour: str, curves: list[Curve], top: float = math.inf) -> None:
    """One run as it is; two and their mean; from three on mean and 95 % interval, within [0, top]."""
    if len(curves) < 3:
        for curve in curves:
            x, y = zip(*curve, strict=True)
            alone = len(curves) == 1
            style = {"mode": "lines+markers", "name": method} if alone else {"opacity": 0.4, "showlegend": False}
            figure.add_scatter(x=x, y=y, line={"color": colour, "width": 2 if alone else 1}, **style)
        if len(curves) < 2:
            return
    points = min(map(len, curves))
    places = [sum(c[i][0] for c in curves) / len(curves) for i in range(points)]
    middle, half = zip(*(interval([c[i][1] for c in curves]) for i in range(points)), strict=True)
    if len(curves) > 2:
        high = [min(m + h, top) for m, h in zip(middle, half, strict=True)]
        low = [max(m - h, 0.0) for m, h in zip(middle, half, strict=True)]
        figure.add_scatter(
            x=[*places, *reversed(places)],
            y=[*high, *reversed(low)],
            fill="toself",
            mode="none",
            fillcolor=colour,
            opacity=0.15,
            hoverinfo="skip",
            showlegend=False,
        )
    figure.add_scatter(x=places, y=middle, name=f"{method} ({len(curves)} runs)", line={"color": colour})


def _accuracy_figure(runs: list[RunData], split: str) -> go.Figure:
    figure = go.Figure()
    for method, colour, curves in _by_method(runs, lambda run: accuracy_curves(run.metrics).get(split, [])):
        _add_curves(figure, method, colour, curves, top=1)
    figure.update_layout(xaxis_title="rollouts in all", yaxis={"range": [0, 1], "tickformat": ".0%"})
    return figure


# What is watched by epoch: section, metric, what it says, how a value is written, and whether it is a share.
WATCHED = (
    ("The collapse", "frac_reward_zero_std", "Share of questions whose rollouts all got the same reward.", True),
    (
        "Outside the context ratio's range",
        "p2o/context_ratio/outside",
        "Share of templated tokens that the bare policy would hardly write, or far more readily: they are masked.",
        True,
    ),
    ("Templates in use", "p2o/templates", "Distinct templates that the epoch's rollouts draw on.", False),
    (
        "Similarity of templates",
        "p2o/template_similarity",
        "Mean share of words that two templates in use have in common: towards 1 they collapse into one.",
        True,
    ),
    ("Response length", "completions/mean_length", "Mean tokens of a completion.", False),
)


def _epoch_figure(runs: list[RunData], metric: str, is_share: bool) -> go.Figure:
    figure = go.Figure()
    for method, colour, curves in _by_method(runs, lambda run: by_epoch(run.metrics, metric)):
        # Epochs that all of a method's runs have; a prompt phase may have been skipped in one of them.
        common = set.intersection(*({epoch for epoch, _ in curve} for curve in curves)) if curves else set()
        aligned: list[Curve] = [[point for point in curve if point[0] in common] for curve in curves]
        _add_curves(figure, method, colour, aligned if common else curves[:1], top=1 if is_share else math.inf)
    layout = {"range": [0, 1.02], "tickformat": ".0%"} if is_share else {"rangemode": "tozero"}
    figure.update_layout(xaxis={"title": "epoch", "dtick": 1}, yaxis=layout)
    return figure


def _fate_figure(run: RunData) -> go.Figure | None:
    flows = fate(run)
    if not flows:
        return None
    nodes = sorted({node for source, target, _ in flows for node in (source, target)}, key=_node_order)
    place = {node: index for index, node in enumerate(nodes)}
    colours = {"hard": "#c94f4f", "solved with template": "#e0a339", "solved bare": "#3a9d6e"}
    return go.Figure(
        go.Sankey(
            node={
                # Names would overlap where epochs are many; colours are told in the caption, names by pointing.
                "label": [""] * len(nodes),
                "customdata": nodes,
                "hovertemplate": "%{customdata}: %{value}<extra></extra>",
                "color": [colours.get(node.partition(" · ")[0], "#8892a6") for node in nodes],
                "pad": 14,
            },
            link={
                "source": [place[s] for s, _, _ in flows],
                "target": [place[t] for _, t, _ in flows],
                "value": [count for *_, count in flows],
                "color": "rgba(128,140,165,0.35)",
            },
        )
    )


def _node_order(node: str) -> tuple[int, str]:
    name, _, epoch = node.partition(" · ")
    return int(epoch), name


# -- the page ---------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(headings: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f'<th scope="col">{_text(h)}</th>' for h in headings)
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{_text(c)}</th>' if not i else f"<td>{_text(c)}</td>" for i, c in enumerate(r))
        for r in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Page:
    """Collects sections and charts; every chart carries its numbers as a table beside it."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.charts: list[str] = []

    def section(self, title: str, *content: str) -> None:
        self.parts.append(f"<section><h2>{_text(title)}</h2>{''.join(content)}</section>")

    def chart(self, figure: go.Figure, label: str, numbers: str, height: int = 340) -> str:
        figure.update_layout(
            template="none",
            height=height,
            margin={"l": 52, "r": 12, "t": 12, "b": 46},
            legend={"orientation": "h", "y": -0.25},
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
        )
        self.charts.append(figure.to_json())
        return (
            f'<figure><div class="chart" role="img" aria-label="{_text(label)}" id="chart-{len(self.charts) - 1}" '
            f'style="min-height:{height}px"></div><figcaption>{_text(label)}</figcaption>'
            f"<details><summary>The numbers</summary>{numbers}</details></figure>"
        )

    def html(self, title: str) -> str:
        script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        packed = base64.b64encode(gzip.compress(script.read_bytes(), mtime=0)).decode()
        charts = "[" + ",".join(self.charts) + "]"
        return _SHELL.format(
            title=_text(title), body="".join(self.parts), charts=charts.replace("</", "<\\/"), plotly=packed
        )


def render(runs: list[RunData]) -> str:
    """The page as text."""
    page = Page()
    for run in runs:
        if run.problems:
            items = "".join(f"<li>{_text(problem)}</li>" for problem in run.problems)
            page.parts.append(
                f'<aside class="warn"><strong>{_text(run.name)}</strong>: not all is there.<ul>{items}</ul></aside>'
            )
    page.section("Outcome", _outcome(runs))
    points = [(split, len(curve)) for run in runs for split, curve in accuracy_curves(run.metrics).items()]
    # Sets that were evaluated only before and after are in the table above; a line through two points shows no more.
    splits = list(dict.fromkeys(split for split, count in points if count > 2 or max(c for _, c in points) <= 2))
    for split in splits:
        rows = [
            [run.name, f"{x:,}", f"{y:.1%}"] for run in runs for x, y in accuracy_curves(run.metrics).get(split, [])
        ]
        name = split.replace("_", " ")
        label = f"Bare accuracy on {name} questions against rollouts spent in all."
        chart = page.chart(_accuracy_figure(runs, split), label, _table(["run", "rollouts", "accuracy"], rows))
        page.section(f"Bare accuracy: {name}", chart)
    for title, metric, label, is_share in WATCHED:
        values = [(run.name, *point) for run in runs for point in by_epoch(run.metrics, metric)]
        if values:
            written = [[name, epoch, f"{y:.1%}" if is_share else f"{y:.1f}"] for name, epoch, y in values]
            table = _table(["run", "epoch", "value"], written)
            page.section(title, page.chart(_epoch_figure(runs, metric, is_share), f"{label} By epoch.", table))
    warned = [_warnings(run) for run in runs]
    if any(warned):
        page.section(
            "Warnings and incidents", _table(["run", "what", "times"], [row for rows in warned for row in rows])
        )
    for run in runs:
        figure = _fate_figure(run)
        if figure is not None:
            label = (
                f"{run.name}: what became of hard questions from epoch to epoch, left to right. Red: hard; amber: "
                "solved with a template; green: solved bare."
            )
            numbers = _table(["from · epoch", "to · epoch", "questions"], [list(flow) for flow in fate(run)])
            page.section(f"Fate of the hard set: {run.name}", page.chart(figure, label, numbers, height=380))
        if run.templates:
            page.section(f"Templates: {run.name}", _lineage(run))
        page_answers = _answers(run)
        if page_answers:
            page.section(f"Three questions, before and after: {run.name}", page_answers)
    page.section("Ledger", _ledger(runs))
    page.section("Configuration and versions", *(_configuration(run) for run in runs))
    return page.html(" · ".join(run.name for run in runs))


def _outcome(runs: list[RunData]) -> str:
    rows = []
    for run in runs:
        accuracy = run.summary.get("bare_accuracy", {})
        shown = [f"{split} {share(v['before'])} → {share(v['after'])}" for split, v in accuracy.items()]
        total = run.summary.get("rollouts", {}).get("total")
        rollouts = f"{total:,}" if total is not None else "not finished"
        rows.append([run.name, run.method, run.config.get("seed", 0), "; ".join(shown) or "–", rollouts])
    return _table(["run", "method", "seed", "bare accuracy before → after", "rollouts in all"], rows)


EVENTS = {
    "accuracy_regression": "accuracy on an evaluation set fell by more than regression_margin",
    "single_template": "an epoch had a single template in use",
    "unscored_rollouts": "rollouts that no reward function scored",
    "template_too_long_for_question": "rollouts whose template did not fit the prompt limit",
}


def _warnings(run: RunData) -> list[list[Any]]:
    last: dict[str, Any] = {}
    for record in run.metrics:
        last.update((k.removeprefix("p2o/events/"), v) for k, v in record.items() if k.startswith("p2o/events/"))
    last.update(run.summary.get("events", {}))
    return [[run.name, EVENTS.get(name, name.replace("_", " ")), f"{count:.0f}"] for name, count in last.items()]


def _lineage(run: RunData) -> str:
    parts = []
    for epoch, record in run.templates.items():
        candidates = record["evolution"].get("candidates", [])
        if not candidates:
            parts.append(f"<p>Epoch {epoch}: {_text(record['evolution'].get('skipped') or 'nothing evolved')}.</p>")
            continue
        chosen = {template["candidate"] for template in record["selected"]}
        children = defaultdict(list)
        for candidate in candidates:
            children[candidate["parents"][0] if candidate["parents"] else None].append(candidate)

        def branch(parent: int | None, children: Any = children, chosen: Any = chosen) -> str:
            items = []
            for c in children[parent]:
                score = sum(c["dev_rewards"].values()) / max(len(c["dev_rewards"]), 1)
                badge = ' <span class="badge">in use</span>' if c["index"] in chosen else ""
                text = c["text"] or "(the empty seed)"
                parents = ", ".join(map(str, c["parents"])) or "none"
                solved = sum(c["dev_solved"].values())
                items.append(
                    f'<li><details class="template"><summary>#{c["index"]} · {score:.2f}{badge} '
                    f"<q>{_text(c['text'][:48])}{'…' if len(c['text']) > 48 else ''}</q></summary>"
                    f"<blockquote>{_text(text)}</blockquote><p>Mean dev score {score:.3f}; solves {solved} of "
                    f"{len(c['dev_solved'])} dev questions; parents: {parents}; "
                    f"iteration {c['iteration']}.</p></details>{branch(c['index'])}</li>"
                )
            return f"<ul class='tree'>{''.join(items)}</ul>" if items else ""

        early = record["evolution"].get("ended_early")
        note = f"<p>Ended early: {_text(early)}</p>" if early else ""
        parts.append(f"<h3>Before epoch {epoch}</h3>{note}{branch(None)}")
    return "".join(parts)


def _answers(run: RunData) -> str:
    after = {answer["question"]: answer for answer in run.answers.get("after", [])}
    pairs = [(b, after[b["question"]]) for b in run.answers.get("before", []) if b["question"] in after]
    # First those that were learnt, of the hard ones; then any.
    pairs.sort(key=lambda p: (p[0]["dataset"] != "hard", p[0]["reward"] - p[1]["reward"]))
    return "".join(
        f'<article class="pair"><h3>{_text(b["question"])}</h3><div><h4>before, reward {b["reward"]:g}</h4>'
        f'<pre tabindex="0">{_text(b["completion"])}</pre></div><div><h4>after, reward {a["reward"]:g}</h4>'
        f'<pre tabindex="0">{_text(a["completion"])}</pre></div></article>'
        for b, a in pairs[:3]
    )


def _ledger(runs: list[RunData]) -> str:
    rows = []
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
            passes = f"{tokens['forward_backward_tokens']:,} learnt from, {tokens['forward_tokens']:,} only read"
            rows.append([run.name, "trainer's passes", "", "", passes])
        if run.summary.get("reflection_cost"):
            rows.append([run.name, "reflection, US dollars", "", "", f"{run.summary['reflection_cost']:.2f}"])
    return _table(["run", "spent on", "rollouts", "prompt tokens", "completion tokens"], rows)


def _configuration(run: RunData) -> str:
    settings = _table(["setting", "value"], [[k, v] for k, v in sorted(run.config.items())])
    versions = _table(["package", "version"], [[k, v] for k, v in run.versions.items()])
    return f"<details><summary>{_text(run.name)}</summary>{settings}{versions}</details>"


_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>P²O · {title}</title>
<style>
:root{{color-scheme:light dark;--bg:#fff;--fg:#1a2336;--soft:#5a6780;--card:#f5f7fb;--line:#d7deea;--mark:#3a9d6e}}
@media(prefers-color-scheme:dark){{:root{{--bg:#0e131c;--fg:#e7ecf6;--soft:#9fabc2;--card:#171e2b;--line:#2b3548}}}}
*{{box-sizing:border-box}}body{{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}}
main{{max-width:1400px;margin:auto;padding:1rem;display:grid;gap:1rem;grid-template-columns:minmax(0,1fr)}}
@media(min-width:1100px){{main{{grid-template-columns:repeat(2,minmax(0,1fr));align-items:start}}
main>h1,main>aside,section:first-of-type{{grid-column:1/-1}}}}
section,aside{{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem;min-width:0}}
h1{{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}}
h2{{font-size:1.1rem;margin:0 0 .6rem;overflow-wrap:anywhere}}
h3{{font-size:.95rem;margin:.6rem 0 .2rem;white-space:pre-line}}h4{{font-size:.8rem;color:var(--soft);margin:.2rem 0}}
figure{{margin:0}}.chart{{width:100%;overflow:hidden}}
figcaption,summary{{color:var(--soft);font-size:.9rem}}summary{{cursor:pointer;padding:.15rem 0}}
.scroll{{overflow-x:auto;max-height:24rem}}table{{border-collapse:collapse;font-size:.88rem;width:100%}}
th,td{{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}}
.tree{{list-style:none;padding-left:1rem;border-left:2px solid var(--line);margin:.2rem 0}}
.template[open]>summary{{color:var(--fg)}}
blockquote{{margin:.3rem 0;padding:.4rem .8rem;border-left:3px solid var(--mark)}}
.badge{{background:var(--mark);color:#fff;border-radius:6px;padding:0 .4rem;font-size:.75rem}}
.pair{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(14rem,100%),1fr));gap:.6rem}}
.pair h3{{grid-column:1/-1}}pre{{margin:0;padding:.6rem;background:var(--bg);border:1px solid var(--line);
border-radius:8px;overflow:auto;font-size:.85rem}}
.warn{{border-color:#c98a2b}}:focus-visible{{outline:3px solid #4c78a8;outline-offset:2px}}
</style></head><body><main><h1>P²O · {title}</h1>{body}</main>
<script type="application/json" id="charts">{charts}</script>
<script type="text/plain" id="plotly">{plotly}</script>
<script>
(async () => {{
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const draw = () => charts.forEach((chart, i) => {{
    const style = getComputedStyle(document.documentElement);
    const fg = style.getPropertyValue("--fg").trim(), line = style.getPropertyValue("--line").trim();
    const layout = {{...chart.layout, autosize: true, font: {{color: fg, size: 13}}}};
    for (const axis of ["xaxis", "yaxis"]) if (chart.data[0]?.type !== "sankey")
      layout[axis] = {{...layout[axis], gridcolor: line, linecolor: line, zeroline: false, automargin: true}};
    Plotly.react("chart-" + i, chart.data, layout, {{responsive: true, displayModeBar: false}});
  }});
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  document.documentElement.dataset.ready = "yes";
}})();
</script></body></html>
"""


def report(argv: list[str]) -> int:
    """Runs the command; returns its exit code (2: bad input)."""
    parser = argparse.ArgumentParser(prog="p2o report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the only run, else here)")
    arguments = parser.parse_args(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    missing = [str(path) for path in arguments.runs if not path.is_dir()]
    if missing:
        errors.print(f"Error: no such run directory: {', '.join(missing)}.")
        return 2
    output = arguments.output or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "report.html"
    write_report(arguments.runs, output)
    Console(highlight=False, markup=False).print(f"Report: {output}")
    return 0


def write_report(runs: list[Path], output: Path) -> None:
    output.write_text(render([load_run(path) for path in runs]))
