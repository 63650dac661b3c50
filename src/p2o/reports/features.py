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
    """Of each kind the first features, each with the place where it is most active."""
    table = Table(title="Where they are most active")
    for heading in ("kind", "feature", "context (the token is in ⟦ ⟧)"):
        table.add_column(heading)
    for kind, features in contexts.items():
        for feature in features[:shown]:
            (top, *_) = feature["contexts"]
            text = f"{top['before']}⟦{top['token']}⟧{top['after']}".replace("\n", "⏎")
            table.add_row(kind, f"{feature['feature']} ({'high' if feature['high'] else 'low'})", _plain(text))
    return table


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def dynamics_table(rows: list[dict[str, Any]]) -> Table:
    """One line for each checkpoint: shares of activation, with their change from the base and its 95 % interval."""
    table = Table(title="Share of activation on bare questions; in brackets the change from the base, 95 % interval")
    for heading in ("run", "step", "reward", "tokens", "explained", *KINDS):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for row in rows:
        cells = []
        for kind in KINDS:
            change = row["change"][kind]
            cells.append(f"{row['share'][kind]['mean']:.3f} [{change['low']:+.3f}, {change['high']:+.3f}]")
        reward = "–" if row["mean_reward"] is None else f"{row['mean_reward']['mean']:.3f}"
        step = "–" if row["step"] is None else str(row["step"])
        length = f"{row['mean_length']['mean']:.1f}"
        table.add_row(row["run"], step, reward, length, f"{row['explained_variance']:.2f}", *map(_plain, cells))
    return table


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
    """Share of activation by step, a panel for each kind and a line for each run, with 95 % intervals; an SVG."""
    import matplotlib.pyplot as plt

    base, *others = rows
    runs = list(dict.fromkeys(row["run"] for row in others))
    figure, axes = plt.subplots(1, len(KINDS), figsize=(14, 3.6), layout="constrained", squeeze=False)
    for axis, kind in zip(axes[0], KINDS, strict=True):
        for number, run in enumerate(runs):
            own = [base, *(row for row in others if row["run"] == run)]
            last = max((row["step"] or 0 for row in own), default=0)
            steps = [0, *(last + 1 if row["step"] is None else row["step"] for row in own[1:])]
            found = [row["share"][kind] for row in own]
            axis.plot(steps, [share["mean"] for share in found], marker="o", color=f"C{number}", label=run)
            bounds = [[share[end] for share in found] for end in ("low", "high")]
            axis.fill_between(steps, *bounds, color=f"C{number}", alpha=0.2, linewidth=0)
        axis.set(title=kind, xlabel="step", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel="share of activation")
    axes[0][0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    # Without a date and with fixed names of parts, so that the same numbers give the same file.
    with plt.rc_context({"svg.hashsalt": "p2o"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
