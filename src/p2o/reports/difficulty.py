"""A difficulty profile as tables and as a picture."""

from pathlib import Path
from typing import Any

from rich.table import Table

from p2o.difficulty.buckets import BUCKETS, UNSCORED
from p2o.difficulty.groups import forecast
from p2o.difficulty.profile import Profile

COLOURS = {"hard": "#c94f4f", "medium": "#e0a339", "easy": "#3a9d6e"}
LARGEST = 32  # group in the picture


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def buckets_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"{summary['model']}, k = {summary['k']}")
    for heading in ("bucket", "questions", "share", "pass rate", "tokens", "cut off"):
        table.add_column(heading, justify="left" if heading == "bucket" else "right")
    for name, bucket in summary["buckets"].items():
        if name == UNSCORED and not bucket["questions"]:
            continue
        length = bucket["mean_length"]
        table.add_row(
            name,
            str(bucket["questions"]),
            _percent(bucket["share"]),
            _percent(bucket["pass_rate"]),
            "–" if length is None else f"{length:,.0f}",
            _percent(bucket["cut_off"]),
        )
    return table


def groups_table(summary: dict[str, Any]) -> Table:
    """One line for each `num_generations`; a share that a model estimated, beyond k, is marked with ≈."""
    table = Table(title="A first epoch of bare rollouts, as expected")
    headings = ("num_generations", "collapsed", "none right", "all right", "hard set", "policy phase", "prompt phase")
    for heading in (*headings, "reflections at most", "rollouts charged"):
        table.add_column(heading, justify="right")
    for size, group in summary["groups"].items():
        about = "" if group["is_unbiased"] else "≈ "
        charge = group["charge"]
        mark = " ←" if summary["recommended_num_generations"] == int(size) else ""
        table.add_row(
            f"{size}{mark}",
            *(f"{about}{group[name]:.1%}" for name in ("collapsed", "none", "every")),
            f"{about}{charge['hard']}",
            *(f"{charge[name]:,}" for name in ("policy", "prompt", "reflections", "total")),
        )
    return table


def draw(profile: Profile, summary: dict[str, Any], path: Path) -> None:
    """Questions by pass rate, collapsed groups by `num_generations`, length by pass rate; an SVG.

    Args:
        summary: of the same profile, by [`p2o.difficulty.summary.summarise`].
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    _draw_questions(axes[0], profile)
    _draw_groups(axes[1], profile, summary["recommended_num_generations"])
    _draw_lengths(axes[2], profile)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(f"{profile.model}: {summary['questions']} questions, {profile.k} rollouts each")
    # Without a date and with fixed names of parts, so that the same profile gives the same file.
    with plt.rc_context({"svg.hashsalt": "p2o"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_questions(axis: Any, profile: Profile) -> None:
    bins = profile.k + 1
    rates = {bucket: [] for bucket in BUCKETS}  # type: dict[str, list[float]]
    for question, bucket in zip(profile.questions, profile.buckets, strict=True):
        if question.pass_rate is not None:
            rates[bucket].append(question.pass_rate)
    edges = [(number - 0.5) / profile.k for number in range(bins + 1)]
    axis.hist(
        [rates[bucket] for bucket in BUCKETS],
        bins=edges,
        stacked=True,
        color=[COLOURS[bucket] for bucket in BUCKETS],
        label=[f"{bucket} ({len(rates[bucket])})" for bucket in BUCKETS],
        rwidth=0.9,
    )
    axis.set(xlabel="pass rate", ylabel="questions", xlim=(edges[0], edges[-1]))
    axis.legend(frameon=False)


def _draw_groups(axis: Any, profile: Profile, recommended: int | None) -> None:
    found = forecast(profile.outcomes, range(2, LARGEST + 1))
    axis.set(xlabel="num_generations", ylabel="share of groups that collapse", ylim=(0, 1), xlim=(2, LARGEST))
    for unbiased, style, label in ((True, "-", "unbiased"), (False, ":", "estimated, beyond the rollouts made")):
        points = [(size, one.collapsed) for size, one in found.items() if one.is_unbiased is unbiased]
        if points:
            axis.plot(*zip(*points, strict=True), style, color="#4c78a8", label=label, linewidth=2)
    if recommended is not None:
        axis.axvline(recommended, color="#777777", linewidth=1, linestyle="--", label=f"recommended: {recommended}")
        axis.legend(frameon=False)


def _draw_lengths(axis: Any, profile: Profile) -> None:
    known = zip(profile.questions, profile.buckets, strict=True)
    points = [(q.pass_rate, q.mean_length, COLOURS[b]) for q, b in known if None not in (q.pass_rate, q.mean_length)]
    if points:
        rates, lengths, colours = zip(*points, strict=True)
        axis.scatter(rates, lengths, c=colours, s=18, alpha=0.6, linewidths=0)
    axis.set(xlabel="pass rate", ylabel="mean tokens of a rollout", xlim=(-0.05, 1.05))
    axis.set_ylim(bottom=0)
