"""Dictionaries of features and their dynamics as tables and pictures."""

from pathlib import Path
from typing import Any

from rich.table import Table

from p2o.features.spans import KINDS

COLOURS = dict(zip(KINDS, ("#4c78a8", "#e0a339", "#3a9d6e", "#c94f4f"), strict=True))
QUALITIES = {
    "explained_variance": "variance explained",
    "loss_recovered": "loss recovered",
    "dead": "dead features",
    "active": "active features of a token",
    "smoothness": "smoothness, all features",
    "high_smoothness": "smoothness, high-level",
    "low_smoothness": "smoothness, low-level",
}


def quality_table(quality: dict[str, dict[str, Any]]) -> Table:
    """One column for each dictionary."""
    tokens = next(iter(quality.values()))["tokens"]
    table = Table(title=f"Quality on {tokens:,} tokens of questions that were held out")
    table.add_column("")
    for name in quality:
        table.add_column(name, justify="right")
    for key, title in QUALITIES.items():
        values = [found[key] for found in quality.values()]
        table.add_row(title, *("–" if v is None else f"{v:.1f}" if key == "active" else f"{v:.3f}" for v in values))
    return table


def labels_table(labels: dict[str, dict[str, Any]]) -> Table:
    """One line for each kind of span; of the embedded world with what the corpus says of the labels."""
    checked = any("auroc" in found for found in labels.values())
    table = Table(title="Features by the spans that they stand out on" + (", and the truth" if checked else ""))
    headings = ["kind", "tokens", "high-level", "low-level", *(["known", "labelled alike", "AUROC"] * checked)]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, found in labels.items():
        known = []
        if checked:
            shares = (found["agreeing"], found["auroc"])
            known = [str(found["judged"]), *("–" if value is None else f"{value:.2f}" for value in shares)]
        table.add_row(kind, f"{found['tokens']:,}", str(found["high"]), str(found["low"]), *known)
    return table


def contexts_table(contexts: dict[str, list[dict[str, Any]]], shown: int) -> Table:
    """Of each kind the first features, each with the place where it is most active, and an endpoint's label if any."""
    labelled = any("endpoint_label" in feature for features in contexts.values() for feature in features)
    table = Table(title="Where they are most active")
    for heading in ("kind", "feature", "context (the token is in ⟦ ⟧)", *(["label by the endpoint"] * labelled)):
        table.add_column(heading)
    for kind, features in contexts.items():
        for feature in sorted(features, key=lambda one: "endpoint_label" not in one)[:shown]:
            (top, *_) = feature["contexts"]
            text = f"{top['before']}⟦{top['token']}⟧{top['after']}".replace("\n", "⏎")
            label = [_plain(feature.get("endpoint_label", "–"))] * labelled
            table.add_row(kind, f"{feature['feature']} ({'high' if feature['high'] else 'low'})", _plain(text), *label)
    return table


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def dynamics_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Shares of activation by checkpoint, with their change from the base and its 95 % interval: of all, by bucket."""
    buckets = rows[0].get("by_bucket", {})
    return [
        _dynamics_table(rows, rows, "bare questions"),
        *(_dynamics_table(rows, [row["by_bucket"][b] for row in rows], f"{b} questions") for b in buckets),
    ]


def _dynamics_table(rows: list[dict[str, Any]], numbers: list[dict[str, Any]], questions: str) -> Table:
    count = numbers[0]["questions"]
    title = f"Share of activation on {count} {questions}; in brackets the change from the base, 95 % interval"
    table = Table(title=title)
    for heading in ("run", "step", "reward", "tokens", "explained", *KINDS):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for row, found in zip(rows, numbers, strict=True):
        cells = []
        for kind in KINDS:
            change = found["change"][kind]
            cells.append(f"{found['share'][kind]['mean']:.3f} [{change['low']:+.3f}, {change['high']:+.3f}]")
        reward = "–" if found["mean_reward"] is None else f"{found['mean_reward']['mean']:.3f}"
        step = "–" if row["step"] is None else str(row["step"])
        length = f"{found['mean_length']['mean']:.1f}"
        table.add_row(row["run"], step, reward, length, f"{row['explained_variance']:.2f}", *map(_plain, cells))
    return table


LEAD_COLUMNS = {"-1": "reward first", "0": "together", "1": "share first"}
"""Of correlations, by lag in checkpoints."""


def lead_table(lead: list[dict[str, Any]]) -> Table:
    """Which comes first, by run, questions and kind: correlations of changes, with 95 % intervals."""
    table = Table(title="Changes in share against changes in reward, correlation across questions, 95 % interval")
    for heading in ("run", "questions", "kind", *LEAD_COLUMNS.values(), "lead", ""):
        table.add_column(heading, justify="left" if heading in ("run", "kind", "") else "right")
    for row in lead:
        questions = f"{row['questions']} {row['bucket'] or 'all'}"
        found = [*(row["by_lag"].get(lag) for lag in LEAD_COLUMNS), row["lead"]]
        ahead = "ahead of accuracy" if row["is_ahead"] else ""
        table.add_row(row["run"], questions, row["kind"], *map(_plain, map(estimate, found)), ahead)
    return table


def estimate(found: dict[str, float | None] | None) -> str:
    """A number with its interval, as [`p2o.features.lead.Lead`] has them; a dash where it is not known."""
    if found is None or found["value"] is None:
        return "–"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def draw_quality(quality: dict[str, dict[str, Any]], labels: dict[str, dict[str, Any]], path: Path) -> None:
    """Qualities side by side, and features by kind; an SVG."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    keys = [key for key in QUALITIES if key != "active"]
    width = 0.8 / len(quality)
    for number, (name, found) in enumerate(quality.items()):
        places = [place + (number - (len(quality) - 1) / 2) * width for place in range(len(keys))]
        left.bar(places, [found[key] or 0 for key in keys], width, label=name, color=("#4c78a8", "#bbbbbb")[number % 2])
    left.set_xticks(range(len(keys)), [QUALITIES[key].replace(", ", ",\n").replace(" ", "\n", 1) for key in keys])
    left.tick_params(axis="x", labelsize=7)
    left.legend(frameon=False)
    names = list(labels)
    right.barh(names, [labels[name]["high"] for name in names], color="#4c78a8", label="high-level")
    lows = [labels[name]["low"] for name in names]
    right.barh(names, lows, left=[labels[name]["high"] for name in names], color="#9ecae9", label="low-level")
    right.set(xlabel="features that stand out on it")
    right.invert_yaxis()
    right.legend(frameon=False)
    _save(figure, path)


def draw_dynamics(rows: list[dict[str, Any]], path: Path) -> None:
    """Share of activation by step, with 95 % intervals: a column for each kind, a line for each run; an SVG.

    The first row of panels is of all questions, the others are of the buckets, where there are any.
    """
    import matplotlib.pyplot as plt

    base, *others = rows
    runs = list(dict.fromkeys(row["run"] for row in others))
    sets = [None, *base.get("by_bucket", {})]
    shape = (len(sets), len(KINDS))
    figure, panels = plt.subplots(*shape, figsize=(14, 0.2 + 3.4 * len(sets)), layout="constrained", squeeze=False)
    for axes, bucket in zip(panels, sets, strict=True):
        for axis, kind in zip(axes, KINDS, strict=True):
            for number, run in enumerate(runs):
                own = [base, *(row for row in others if row["run"] == run)]
                found = [(row if bucket is None else row["by_bucket"][bucket])["share"][kind] for row in own]
                axis.plot(steps_of(own), [share["mean"] for share in found], marker="o", color=f"C{number}", label=run)
                bounds = [[share[end] for share in found] for end in ("low", "high")]
                axis.fill_between(steps_of(own), *bounds, color=f"C{number}", alpha=0.2, linewidth=0)
            axis.set(title=kind, xlabel="step", ylim=(0, None))
            axis.grid(alpha=0.3)
        axes[0].set(ylabel=f"share of activation{', ' * bool(bucket)}{bucket or ''}")
    panels[0][0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def steps_of(rows: list[dict[str, Any]]) -> list[int]:
    """Steps of the base and of a run's checkpoints; a final model whose step is not recorded stands behind them."""
    last = max((row["step"] or 0 for row in rows), default=0)
    return [0, *(last + 1 if row["step"] is None else row["step"] for row in rows[1:])]


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    # Without a date and with fixed names of parts, so that the same numbers give the same file.
    with plt.rc_context({"svg.hashsalt": "p2o"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
