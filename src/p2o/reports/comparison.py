"""Methods compared over seeds: from run directories to numbers, a table and a figure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypedDict

from rich.table import Table

from p2o.evaluation.statistics import interval
from p2o.methods import tuned_as
from p2o.reports.metrics import accuracy_curves, by_epoch, headline


@dataclass(frozen=True)
class Cell:
    """One run: the name of its directory and its options besides the common ones."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Values of one option to try for every method before the comparison, with a separate seed."""

    option: str
    values: tuple[str, ...]
    seed: int

    def cell(self, method: str, value: str) -> Cell:
        options = ["--method", method, "--seed", str(self.seed), f"--{self.option}", value]
        # Tune on other evaluation sets than are reported, where there are two.
        return Cell(f"sweep/{method}-{value}", (*options, "--evaluate_before_and_after", "false"))


def choose(directory: Path, sweep: Sweep, methods: list[str]) -> dict[str, Any]:
    """For each method the value with the best final mean accuracy over the evaluation sets of training.

    Raises:
        ValueError: the trials were not evaluated.
    """
    chosen = {}
    for method in methods:
        scores: dict[str, float] = {}
        for value in sweep.values:
            watched = accuracy_curves(read_metrics(directory / sweep.cell(method, value).name))
            if not watched:
                raise ValueError("A sweep chooses by evaluation; the configuration has no evaluation set.")
            scores[value] = mean(points[-1][1] for points in watched.values())
        best = max(scores, key=scores.__getitem__)
        chosen[method] = {"value": best, "scores": scores}
    return chosen


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def collect(directory: Path, arms: Mapping[str, str], seeds: list[int], limit: dict[str, Any]) -> dict[str, Any]:
    """The data of the tables and the figure; cells without a summary are listed as missing.

    Args:
        arms: what is compared, a method or a method on some questions, each with the beginning of its directories.

    For each cell: its summary, `curves` (by evaluation set, rollouts and accuracy), `collapsed` (by epoch, share of
    questions whose group had no variance), and `rollouts_until_half` of the headline set.
    """
    cells, missing = [], []
    for arm, beginning in arms.items():
        for seed in seeds:
            path = directory / f"{beginning}-{seed}"
            if not (path / "summary.json").exists():
                missing.append(path.name)
                continue
            summary = json.loads((path / "summary.json").read_text()) | {"method": arm}
            summary.pop("templates", None)
            metrics = read_metrics(path)
            curves = accuracy_curves(metrics)
            # A full evaluation has only two points, before and after: no curve.
            full = summary["bare_accuracy"]
            summary["curves"] = {name: p for name, p in curves.items() if name not in full or len(p) > 2}
            summary["collapsed"] = by_epoch(metrics, "frac_reward_zero_std")
            shown = headline(summary["curves"])
            half = [spent for spent, value in summary["curves"].get(shown, []) if value >= 0.5]
            summary["rollouts_until_half"] = half[0] if half else None
            cells.append(summary)
    return {"limit": limit, "methods": list(arms), "seeds": seeds, "missing": missing, "cells": cells}


class Change(TypedDict):
    """Of bare accuracy from before to after training: its mean over seeds, and half of the 95 % interval of that mean,
    None for one seed."""

    change: float
    half: float | None


def effects(result: dict[str, Any]) -> dict[str, dict[str, Change]]:
    """What training did, by what was compared and by evaluation set."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in result["cells"]:
        for split, accuracy in cell["bare_accuracy"].items():
            if None not in (accuracy["before"], accuracy["after"]):
                changes = found.setdefault(cell["method"], {}).setdefault(split, [])
                changes.append(accuracy["after"] - accuracy["before"])
    return {arm: {split: _mean_change(changes) for split, changes in splits.items()} for arm, splits in found.items()}


def _mean_change(changes: list[float]) -> Change:
    middle, half = interval(changes)
    return {"change": middle, "half": None if math.isnan(half) else half}


def effects_table(found: dict[str, dict[str, Change]]) -> Table:
    """The effect of training on some questions, a row, on the questions of each evaluation set, a column.

    Args:
        found: what [`effects`] returns.
    """
    table = Table(title="Change of bare accuracy by training, in points (mean ± 95 % interval over seeds, t)")
    splits = list(dict.fromkeys(split for changes in found.values() for split in changes))
    for heading in ("trained on", *(split.replace("_", " ") for split in splits)):
        table.add_column(heading, justify="left" if heading == "trained on" else "right")
    for arm, changes in found.items():
        table.add_row(arm, *(_points(**changes[split]) if split in changes else "–" for split in splits))
    return table


def _points(change: float, half: float | None) -> str:
    return f"{100 * change:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def as_table(result: dict[str, Any]) -> Table:
    (unit, amount), *_ = result["limit"].items()
    table = Table(title=f"Bare accuracy after {amount:,} {unit.replace('_', ' ')} (mean ± 95 % interval over seeds, t)")
    splits = list(dict.fromkeys(split for cell in result["cells"] for split in cell["bare_accuracy"]))
    swept = result.get("sweep")
    headings = ["method", *(split.replace("_", " ") for split in splits), "easy gained", "half of hard at", "collapsed"]
    measured = any(cell.get("kl_to_base") for cell in result["cells"])
    more = [*(["KL to base"] if measured else []), *([swept["option"].replace("_", " ")] if swept else [])]
    for heading in (*headings, *more, "minutes", "seeds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method in result["methods"]:
        cells = [cell for cell in result["cells"] if cell["method"] == method]
        if not cells:
            continue
        shown = [_percent(*interval([cell["bare_accuracy"][split]["after"] for cell in cells])) for split in splits]
        easy = [c["bare_accuracy"]["easy"] for c in cells if "easy" in c["bare_accuracy"]]
        gained = f"{100 * mean(e['after'] - e['before'] for e in easy):+.1f}" if easy else "–"
        half = [cell["rollouts_until_half"] for cell in cells]
        reached = [h for h in half if h is not None]
        when = f"{mean(reached):,.0f} ({len(reached)}/{len(half)})" if reached else "never"
        shares = [[share for _, share in cell["collapsed"]] for cell in cells if cell["collapsed"]]
        collapsed = " → ".join(f"{mean(share[i] for share in shares):.0%}" for i in (0, -1)) if shares else "–"
        value = [_kl(cells)] if measured else []
        value += [swept["methods"][tuned_as(method, result["methods"])]["value"]] if swept else []
        minutes = f"{mean(cell['wall_seconds'] for cell in cells) / 60:.1f}"
        table.add_row(method, *shown, gained, when, collapsed, *value, minutes, str(len(cells)))
    return table


def _kl(cells: list[dict[str, Any]]) -> str:
    """Mean KL to the base over evaluation sets, then over seeds, in nats a token."""
    found = [mean(cell["kl_to_base"].values()) for cell in cells if cell.get("kl_to_base")]
    if not found:
        return "–"
    middle, half = interval(found)
    return f"{middle:.4f}" if math.isnan(half) else f"{middle:.4f} ± {half:.4f}"


def prompts_table(result: dict[str, Any]) -> Table | None:
    """Accuracy after training, bare and with prompts, of the methods that have templates; None where none has.

    Over the same seeds: those whose last templates were evaluated.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for cell in result["cells"]:
        if cell.get("prompted_accuracy"):
            by_method.setdefault(cell["method"], []).append(cell)
    if not by_method:
        return None
    table = Table(title="Accuracy after training, bare and with prompts (the template that solved most dev questions)")
    splits = list(dict.fromkeys(s for cells in by_method.values() for c in cells for s in c["prompted_accuracy"]))
    table.add_column("method")
    for split in splits:
        for how in ("bare", "with prompts"):
            table.add_column(f"{split.replace('_', ' ')} {how}", justify="right")
    table.add_column("seeds", justify="right")
    for method, cells in by_method.items():
        shown = []
        for split in splits:
            there = [cell for cell in cells if split in cell["prompted_accuracy"]]
            for values in (
                [cell["bare_accuracy"][split]["after"] for cell in there],
                [cell["prompted_accuracy"][split] for cell in there],
            ):
                shown.append(_percent(*interval(values)) if values else "–")
        table.add_row(method, *shown, str(len(cells)))
    return table


def _percent(middle: float, half: float) -> str:
    return f"{middle:.1%}" if math.isnan(half) else f"{middle:.1%} ± {100 * half:.1f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Bare accuracy on the headline set against rollouts; PNG and SVG.

    Means and, from three seeds on, 95 % intervals. Variants of P²O (p2o-…) have a separate panel next to the others.
    """
    import matplotlib.pyplot as plt

    shown = headline(name for cell in result["cells"] for name in cell["curves"])
    variants = [method for method in result["methods"] if method.startswith("p2o-")]
    others = [method for method in result["methods"] if method not in variants]
    panels = [others, ["p2o"] * ("p2o" in others) + variants] if variants and others else [variants or others]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.5 + 5 * len(panels), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, methods in zip(axes[0], panels, strict=True):
        for method in methods:
            _draw_method(axis, method, result, shown)
        axis.set(xlabel="rollouts in all, prompt phases charged", ylim=(0, 1))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False, loc="upper left")
    axes[0][0].set_ylabel(f"bare accuracy, {(shown or '').replace('_', ' ')} questions")
    for ending in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=160)
    plt.close(figure)


def _draw_method(axis: Any, method: str, result: dict[str, Any], shown: str | None) -> None:
    import numpy as np

    curves = [cell["curves"].get(shown, []) for cell in result["cells"] if cell["method"] == method]
    curves = [np.array(curve, dtype=float).T for curve in curves if curve]
    if not curves:
        return
    grid = np.linspace(0, min(rollouts[-1] for rollouts, _ in curves), 60)
    values = np.array([np.interp(grid, *curve) for curve in curves])
    middle = values.mean(0)
    (line,) = axis.plot(grid, middle, label=method, linewidth=2.5 if method == "p2o" else 1.5)
    if len(curves) > 2:
        half = np.array([interval(list(column))[1] for column in values.T])
        low, high = np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
        axis.fill_between(grid, low, high, alpha=0.13, linewidth=0, color=line.get_color())
