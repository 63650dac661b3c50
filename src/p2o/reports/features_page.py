"""The part of a page about features: how training moved their groups, which came first, and what they are about."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import plotly.graph_objects as go

from p2o.reports.charts import Chart, Charts, Table
from p2o.reports.features_data import EVERYTHING, FeatureData, Interval, LeadRow, Row
from p2o.reports.figures import COLOURS

SHOWN_FEATURES = 8  # of each kind, the most active ones
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "pentagon", "hexagon")
LEAST_EXPLAINED = 0.5  # of what the dictionary explains of the base; below, the page says so


def features_section(data: FeatureData, charts: Charts) -> dict[str, Any]:
    """What the template shows of a directory."""
    kinds = list(data.rows[0].numbers[EVERYTHING].shares) if data.rows else []
    sets = list(data.rows[0].numbers) if data.rows else []
    leads = [(run, list(rows)) for run, rows in groupby(data.leads, key=attrgetter("run"))]
    return {
        "name": data.name,
        "origin": data.origin,
        "warning": _warning(data.rows),
        "sets": [(_heading(data.rows, name), _moves(data.rows, name, kinds, charts)) for name in sets],
        "lead_words": _lead_words(data.leads),
        "lead_charts": [_lead_chart(run, rows, charts) for run, rows in leads],
        "leads": _lead_table(data.leads),
        "kinds": [
            (kind, len(group), sorted(group, key=lambda one: -one.activity)[:SHOWN_FEATURES])
            for kind, group in data.features.items()
            if group
        ],
    }


def _heading(rows: Sequence[Row], name: str) -> str:
    count = rows[0].numbers[name].questions
    return f"{'All' if name == EVERYTHING else name.capitalize()} questions ({count})"


def _warning(rows: Sequence[Row]) -> str:
    few = [row for row in rows if row.explained < LEAST_EXPLAINED * rows[0].explained]
    poor = [f"{row.run} at {'its end' if row.step is None else f'step {row.step}'}" for row in few]
    if not poor:
        return ""
    return (
        f"Of {', '.join(poor)} the dictionary explains less than half of what it does of the base: there it misses "
        "what training added."
    )


def _moves(rows: Sequence[Row], name: str, kinds: Sequence[str], charts: Charts) -> list[Chart]:
    """Mean reward and the share of each kind by step, of one set of questions."""
    made = []
    if any(row.numbers[name].reward for row in rows):
        found = [(row, row.numbers[name].reward) for row in rows]
        made.append(_by_step(found, f"Mean reward on {_on(name)}, by step.", charts))
    for kind in kinds:
        label = f"{kind.capitalize()}: share of activation on {_on(name)}, by step."
        found = [(row, row.numbers[name].shares[kind]) for row in rows]
        changes = [row.numbers[name].changes[kind] for row in rows]
        made.append(_by_step(found, label, charts, changes))
    return made


def _on(name: str) -> str:
    return "bare questions" if name == EVERYTHING else f"bare {name} questions"


def _by_step(
    found: Sequence[tuple[Row, Interval | None]],
    label: str,
    charts: Charts,
    changes: Sequence[Interval] | None = None,
) -> Chart:
    """A line for each run, from the base on, with 95 % intervals."""
    base, *others = found
    figure = go.Figure()
    for number, run in enumerate(dict.fromkeys(row.run for row, _ in others)):
        own = [base, *(one for one in others if one[0].run == run)]
        places = zip(_steps([row for row, _ in own]), own, strict=True)
        known = [(step, value) for step, (_, value) in places if value is not None and value.value is not None]
        figure.add_scatter(
            x=[step for step, _ in known],
            y=[value.value for _, value in known],
            error_y=_bars([value for _, value in known]),
            name=run,
            mode="lines+markers",
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8},
            line={"color": COLOURS[number % len(COLOURS)]},
        )
    figure.update_layout(xaxis={"title": "step"}, yaxis={"rangemode": "tozero"}, showlegend=True)
    headings = ["run", "step", "value", "95 % interval", *(["change from the base"] * bool(changes)), "explained"]
    table = [
        [
            row.run,
            "–" if row.step is None else row.step,
            "–" if value is None or value.value is None else f"{value.value:.3f}",
            "–" if value is None else _range(value),
            *([_shown(changes[place])] if changes else []),
            f"{row.explained:.2f}",
        ]
        for place, (row, value) in enumerate(found)
    ]
    return charts.add(figure, label, Table(headings, table), height=300)


def _steps(rows: Sequence[Row]) -> list[int]:
    """A final model whose step is not recorded stands behind the others."""
    last = max((row.step or 0 for row in rows), default=0)
    return [last + 1 if row.step is None else row.step for row in rows]


def _bars(values: Sequence[Interval]) -> dict[str, Any]:
    """Both ways from each value to the ends of its interval; none where that is not known."""
    above = [0.0 if one.high is None or one.value is None else one.high - one.value for one in values]
    below = [0.0 if one.low is None or one.value is None else one.value - one.low for one in values]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2}


def _range(found: Interval) -> str:
    return "–" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def _shown(found: Interval) -> str:
    if found.value is None:
        return "–"
    ends = "" if found.low is None or found.high is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    return f"{found.value:+.3f}{ends}"


# -- which comes first -------------------------------------------------------------------------------------------------


def _lead_words(leads: Sequence[LeadRow]) -> str:
    ahead = [f"{row.kind} in {row.run} ({row.questions} questions, {_shown(row.by_lag[1])})" for row in leads]
    ahead = [words for words, row in zip(ahead, leads, strict=True) if row.is_ahead]
    if not leads:
        return ""
    if not ahead:
        return "Of no group does the share change ahead of accuracy, as far as the intervals tell."
    return f"Ahead of accuracy changes the share of: {'; '.join(ahead)}."


def _lead_chart(run: str, rows: Sequence[LeadRow], charts: Charts) -> Chart:
    """Correlations by lag on all questions, a line for each kind."""
    figure = go.Figure()
    everything = [row for row in rows if row.questions.endswith(EVERYTHING)]
    for number, row in enumerate(everything):
        lags = [lag for lag, found in sorted(row.by_lag.items()) if found.value is not None]
        figure.add_scatter(
            x=[lag + 0.06 * (number - 1.5) for lag in lags],  # side by side, so that intervals do not cover each other
            y=[row.by_lag[lag].value for lag in lags],
            error_y=_bars([row.by_lag[lag] for lag in lags]),
            name=row.kind,
            mode="markers",
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9, "color": COLOURS[number % len(COLOURS)]},
        )
    figure.update_layout(xaxis={"dtick": 1}, showlegend=True)  # a title would be below the legend of a narrow page
    label = (
        f"{run}: correlation, across questions, of the change in a group's share with the change in reward so many "
        "checkpoints later. Right of 0 shares change first."
    )
    table = [[row.kind, lag, *_cells(found)] for row in everything for lag, found in sorted(row.by_lag.items())]
    return charts.add(figure, label, Table(["kind", "lag", "correlation", "95 % interval"], table), height=340)


def _cells(found: Interval) -> list[str]:
    if found.value is None or found.low is None or found.high is None:
        return ["–", "–"]
    return [f"{found.value:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}"]


def _lead_table(leads: Sequence[LeadRow]) -> Table:
    nothing = Interval(None, None, None)
    rows = [
        [
            row.run,
            row.questions,
            row.kind,
            *(" ".join(_cells(found)) for found in (*(row.by_lag.get(lag, nothing) for lag in (-1, 0, 1)), row.lead)),
            "ahead of accuracy" if row.is_ahead else "",
        ]
        for row in leads
    ]
    return Table(["run", "questions", "group", "reward first", "together", "share first", "lead", ""], rows)
