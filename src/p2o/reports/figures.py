"""Figures of a report, for plotly."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from p2o.evaluation.statistics import interval
from p2o.reports.difficulty import COLOURS as OF_BUCKETS
from p2o.reports.metrics import accuracy_curves, by_epoch, prompt_phases
from p2o.reports.run_data import TEMPLATED, RunData

LIGHT = ("#e6a9a9", "#f1d3a0", "#a3d3bb")
"""Of hard, medium and easy questions, where their rollouts were under templates."""
COLOURS = ("#4c78a8", "#e07b39", "#3a9d6e", "#b4518f", "#7f6dc6", "#a08a2c", "#5aa5b8", "#c94f4f", "#777777")


Curve = Sequence[tuple[float, float]]


def _by_method(runs: list[RunData], curve: Callable[[RunData], Curve]) -> Iterator[tuple[str, str, list[Curve]]]:
    """Method, colour, and its runs' curves, without those that are empty."""
    for number, method in enumerate(dict.fromkeys(run.method for run in runs)):
        curves = [curve(run) for run in runs if run.method == method]
        yield method, COLOURS[number % len(COLOURS)], [c for c in curves if c]


def _add_curves(figure: go.Figure, method: str, colour: str, curves: list[Curve], top: float = math.inf) -> None:
    """One run: its curve. Two: curves and mean. Three or more: mean and 95 % interval, within [0, top]."""
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


def accuracy_figure(runs: list[RunData], split: str) -> go.Figure:
    """Curves from zero; dotted what there was before training, and of a run by itself its prompt phases shaded."""
    figure, before = go.Figure(), []
    for method, colour, curves in _by_method(runs, lambda run: accuracy_curves(run.metrics).get(split, [])):
        _add_curves(figure, method, colour, curves, top=1)
        before += [accuracy for curve in curves for rollouts, accuracy in curve[:1] if rollouts == 0]
    if before:
        grey = {"color": "#8892a6", "width": 1, "dash": "dot"}
        figure.add_hline(y=sum(before) / len(before), line=grey)
    if len(runs) == 1:
        for began, ended in prompt_phases(runs[0].metrics):
            figure.add_vrect(x0=began, x1=ended, fillcolor="#8892a6", opacity=0.25, line_width=0)
    axes = {"title": "rollouts in all", "rangemode": "tozero"}
    figure.update_layout(xaxis=axes, yaxis={"range": [0, 1.02], "tickformat": ".0%"})
    return figure


class ByEpoch(NamedTuple):
    """A metric that a page shows by epoch, or by part of one.

    Args:
        is_share: whether the value is in [0, 1].
    """

    title: str
    metric: str
    caption: str
    is_share: bool = False
    parts: int = 1


BY_EPOCH = (
    ByEpoch(
        "Collapsed groups", "frac_reward_zero_std", "Share of questions whose rollouts all got the same reward.", True
    ),
    ByEpoch(
        "Distillation: heads",
        "p2o/shift/head",
        "Mean log π(y|x) − log π(y|T(x, z)) of a token in the first quarter of templated rollouts: towards 0 within an "
        "epoch, as the weights take over.",
        parts=4,
    ),
    ByEpoch("Distillation: tails", "p2o/shift/tail", "The same in the last quarter of templated rollouts.", parts=4),
    ByEpoch(
        "Outside the context ratio's range",
        "p2o/context_ratio/outside",
        "Share of tokens in templated rollouts whose context ratio is out of range (masked by default).",
        True,
    ),
    ByEpoch("Templates in use", "p2o/templates", "Distinct templates that the epoch's rollouts draw on."),
    ByEpoch(
        "Similarity of templates",
        "p2o/template_similarity",
        "Mean word overlap (Jaccard) of two templates in use; 1 means all are the same.",
        True,
    ),
    ByEpoch("Response length", "completions/mean_length", "Mean tokens of a completion."),
    ByEpoch(
        "Entropy",
        "entropy",
        "Mean entropy of a sampled token, in nats: where it collapses together with response length while rewards are "
        "still paid, the policy may be taking a shortcut.",
    ),
)


def epoch_figure(runs: list[RunData], shown: ByEpoch) -> go.Figure:
    figure, is_share = go.Figure(), shown.is_share
    for method, colour, curves in _by_method(runs, lambda run: by_epoch(run.metrics, shown.metric, shown.parts)):
        # Epochs that all of a method's runs have; a prompt phase may have been skipped in one of them.
        common = set.intersection(*({epoch for epoch, _ in curve} for curve in curves)) if curves else set()
        aligned: list[Curve] = [[point for point in curve if point[0] in common] for curve in curves]
        _add_curves(figure, method, colour, aligned if common else curves[:1], top=1 if is_share else math.inf)
    layout = {"range": [0, 1.02], "tickformat": ".0%"} if is_share else {"rangemode": "tozero"}
    figure.update_layout(xaxis={"title": "epoch", "dtick": 1}, yaxis=layout)
    return figure


FATES = dict(zip(("hard", "solved with template", "solved bare"), OF_BUCKETS.values(), strict=True))
BUCKET_COLOURS = {
    **OF_BUCKETS,
    **{f"{bucket}{TEMPLATED}": colour for bucket, colour in zip(OF_BUCKETS, LIGHT, strict=True)},
}


def flow_figure(flows: Sequence[tuple[str, str, int]], colours: Mapping[str, str]) -> go.Figure | None:
    """Questions that move from state to state; None where none do.

    Args:
        flows: from, to, questions; a state is a name and an epoch, with " · " between them.
        colours: by name; grey for others.
    """
    if not flows:
        return None
    order = {name: place for place, name in enumerate(colours)}
    states = {state for source, target, _ in flows for state in (source, target)}
    nodes = sorted(states, key=lambda state: _node_order(state, order))
    place = {node: index for index, node in enumerate(nodes)}
    return go.Figure(
        go.Sankey(
            node={
                # With many epochs labels would overlap; the caption explains the colours, hovering shows the names.
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


def _node_order(node: str, order: Mapping[str, int]) -> tuple[int, int, str]:
    name, _, epoch = node.partition(" · ")
    return int(epoch), order.get(name, len(order)), name
