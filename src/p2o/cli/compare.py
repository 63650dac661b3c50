"""`p2o compare`: methods × seeds at equal compute, one table, one figure, one JSON."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from p2o.cli.errors import InputError
from p2o.cli.metrics import accuracy_curves, by_epoch, headline
from p2o.evaluation.statistics import interval
from p2o.methods import METHODS
from p2o.state import differences, write_json

DEFAULT_METHODS = "p2o,grpo,grpo-2x,dapo"
ENDLESS = 10**6  # epochs; the budget ends a run


@dataclass(frozen=True)
class Cell:
    """One run: its directory's name and the options that are its own."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Values of one option that every method is tried with, on a seed of its own, before the comparison."""

    option: str
    values: tuple[str, ...]
    seed: int

    def cell(self, method: str, value: str) -> Cell:
        options = ["--method", method, "--seed", str(self.seed), f"--{self.option}", value]
        # What the comparison will report on is not what is chosen by, where the two are different sets.
        return Cell(f"sweep/{method}-{value}", (*options, "--evaluate_before_and_after", "false"))


def compare(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: some run failed, 2: bad input)."""
    parser = argparse.ArgumentParser(
        prog="p2o compare",
        allow_abbrev=False,  # --seed is an option of `p2o train`, and no short form of --seeds
        description=__doc__,
        epilog="Every other option goes to `p2o train`, for all methods alike: --config, --learning_rate, …",
    )
    parser.add_argument("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(METHODS)} (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare"), help="(default: %(default)s)")
    parser.add_argument("--total_rollouts", type=int, default=12_000, help="every method spends this many in all")
    parser.add_argument("--steps", type=int, help="equal optimizer steps instead, prompt phases for nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    parser.add_argument(
        "--sweep",
        metavar="OPTION=VALUE,VALUE,…",
        help="first try every method with each value; it keeps the one with the best accuracy on the evaluation sets "
        "of training. Ablations p2o-… take p2o's, so that they differ in one thing",
    )
    parser.add_argument("--sweep_seed", type=int, default=1000, help="seed of these trials (default: %(default)s)")
    arguments, rest = parser.parse_known_args(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        methods, seeds, sweep = _checked(arguments, rest)
        limit = {"steps": arguments.steps} if arguments.steps else {"total_rollouts": arguments.total_rollouts}
        settings = {**limit, "options": rest, "sweep": [sweep.option, *sweep.values, sweep.seed] if sweep else None}
        _same_comparison(arguments.output_dir, settings)
    except InputError as error:
        errors.print(f"Error: {error}")
        return 2
    length = (
        ["--max_steps", str(arguments.steps)]
        if arguments.steps
        else ["--max_rollouts", str(arguments.total_rollouts), "--num_train_epochs", str(ENDLESS)]
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180

    def run(cells: list[Cell]) -> bool:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            return all(list(pool.map(lambda cell: _run(arguments.output_dir, cell, [*rest, *length], console), cells)))

    chosen: dict[str, Any] = {}
    if sweep:
        tried = list(dict.fromkeys(_tuned_as(method, methods) for method in methods))
        console.print(f"{len(tried) * len(sweep.values)} trials, {arguments.jobs} at once.")
        if not run([sweep.cell(method, value) for method in tried for value in sweep.values]):
            return 1
        try:
            chosen = choose(arguments.output_dir, sweep, tried)
        except InputError as error:
            errors.print(f"Error: {error}")
            return 2
    cells = []
    for seed in seeds:
        for method in methods:
            own = [f"--{sweep.option}", chosen[_tuned_as(method, methods)]["value"]] if sweep else []
            cells.append(Cell(f"{method}-{seed}", ("--method", method, "--seed", str(seed), *own)))
    console.print(f"{len(cells)} runs, {arguments.jobs} at once; finished ones are not run again.")
    finished = run(cells)
    result = collect(arguments.output_dir, methods, seeds, limit)
    if sweep:
        result["sweep"] = {"option": sweep.option, "seed": sweep.seed, "methods": chosen}
    write_json(arguments.output_dir / "compare.json", result)
    console.print(as_table(result))
    draw(result, arguments.output_dir / "compare")
    console.print(f"{arguments.output_dir}/compare.json, .png, .svg", markup=False)
    return 0 if finished else 1


def _run(directory: Path, cell: Cell, options: list[str], console: Console) -> bool:
    """Runs or resumes a cell unless it is finished; whether it is."""
    path = directory / cell.name
    if (path / "summary.json").exists():
        return True
    began = time.monotonic()
    new = [*options, *cell.options, "--num_threads", "1"]
    resumes = (path / "config.yaml").exists()
    command = [*_TRAIN, "--output_dir", str(path), *(["--resume"] if resumes else new)]
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "log.txt", "a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    minutes = (time.monotonic() - began) / 60
    verdict = f"done in {minutes:.1f} min" if code == 0 else f"failed, see {path / 'log.txt'}"
    console.print(f"{cell.name}: {verdict}", markup=False)
    return code == 0


_TRAIN = [sys.executable, "-m", "p2o", "train"]


def _tuned_as(method: str, methods: list[str]) -> str:
    """Whose chosen value a method takes: an ablation that of what it ablates, any other its own."""
    return "p2o" if method.startswith("p2o-") and "p2o" in methods else method


def choose(directory: Path, sweep: Sweep, methods: list[str]) -> dict[str, Any]:
    """For each method the value whose trial ended best, in mean accuracy over the evaluation sets of training.

    Raises:
        InputError: the trials were not evaluated.
    """
    chosen = {}
    for method in methods:
        scores: dict[str, float] = {}
        for value in sweep.values:
            watched = accuracy_curves(read_metrics(directory / sweep.cell(method, value).name))
            if not watched:
                raise InputError("A sweep chooses by evaluation; the configuration has no evaluation set.")
            scores[value] = mean(points[-1][1] for points in watched.values())
        best = max(scores, key=scores.__getitem__)
        chosen[method] = {"value": best, "scores": scores}
    return chosen


def _checked(arguments: argparse.Namespace, rest: list[str]) -> tuple[list[str], list[int], Sweep | None]:
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"Unknown method(s) {', '.join(unknown) or '(none)'}; choose among {', '.join(METHODS)}.")
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {arguments.seeds!r} is no list of whole numbers such as 0,1,2.") from None
    if len(set(seeds)) < len(seeds) or len(set(methods)) < len(methods):
        raise InputError("A method or seed is named twice.")
    if arguments.sweep is None:
        return methods, seeds, None
    option, _, listed = arguments.sweep.partition("=")
    values = tuple(value.strip() for value in listed.split(",") if value.strip())
    if not option.isidentifier() or len(values) < 2 or len(set(values)) < len(values):
        raise InputError(
            f"--sweep {arguments.sweep!r} is not like learning_rate=1e-4,5e-4: two different values or more."
        )
    if any(word.split("=")[0] == f"--{option}" for word in rest):
        raise InputError(f"--{option} is both swept and set.")
    if arguments.sweep_seed in seeds:
        raise InputError(
            f"--sweep_seed {arguments.sweep_seed} is one of --seeds: choose by other runs than you report."
        )
    return methods, seeds, Sweep(option, values, arguments.sweep_seed)


def _same_comparison(directory: Path, settings: dict[str, Any]) -> None:
    """Refuses a directory of runs that were made under other settings, naming the difference."""
    path = directory / "settings.json"
    if path.exists():
        changed = differences(json.loads(path.read_text()), settings)
        if changed:
            raise InputError(f"{directory} holds another comparison: {changed}. Choose another --output_dir.")
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.") from None


# -- from run directories to numbers ----------------------------------------------------------------------------------


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def collect(directory: Path, methods: list[str], seeds: list[int], limit: dict[str, Any]) -> dict[str, Any]:
    """Everything the table and the figure show; cells without a summary are left out and named.

    Of each cell: its summary, `curves` (by evaluation set, rollouts and accuracy), `collapsed` (by epoch, share of
    questions whose group had no variance), and `rollouts_until_half` of the headline set.
    """
    cells, missing = [], []
    for method in methods:
        for seed in seeds:
            path = directory / f"{method}-{seed}"
            if not (path / "summary.json").exists():
                missing.append(f"{method}-{seed}")
                continue
            summary = json.loads((path / "summary.json").read_text())
            summary.pop("templates", None)
            metrics = read_metrics(path)
            curves = accuracy_curves(metrics)
            # Of the full evaluations only before and after are known: no curve.
            full = summary["bare_accuracy"]
            summary["curves"] = {name: p for name, p in curves.items() if name not in full or len(p) > 2}
            summary["collapsed"] = by_epoch(metrics, "frac_reward_zero_std")
            shown = headline(summary["curves"])
            half = [spent for spent, value in summary["curves"].get(shown, []) if value >= 0.5]
            summary["rollouts_until_half"] = half[0] if half else None
            cells.append(summary)
    return {"limit": limit, "methods": methods, "seeds": seeds, "missing": missing, "cells": cells}


def as_table(result: dict[str, Any]) -> Table:
    (unit, amount), *_ = result["limit"].items()
    table = Table(title=f"Bare accuracy after {amount:,} {unit.replace('_', ' ')} (mean ± 95 % interval over seeds, t)")
    splits = list(dict.fromkeys(split for cell in result["cells"] for split in cell["bare_accuracy"]))
    swept = result.get("sweep")
    headings = ["method", *(split.replace("_", " ") for split in splits), "easy gained", "half of hard at", "collapsed"]
    for heading in (*headings, *([swept["option"].replace("_", " ")] if swept else []), "minutes", "seeds"):
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
        value = [swept["methods"][_tuned_as(method, result["methods"])]["value"]] if swept else []
        minutes = f"{mean(cell['wall_seconds'] for cell in cells) / 60:.1f}"
        table.add_row(method, *shown, gained, when, collapsed, *value, minutes, str(len(cells)))
    return table


def _percent(middle: float, half: float) -> str:
    return f"{middle:.1%}" if math.isnan(half) else f"{middle:.1%} ± {100 * half:.1f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Bare accuracy on the headline set against rollouts; PNG and SVG.

    Means and, from three seeds on, 95 % intervals. Variants of P²O (p2o-…) have a panel of their own beside the others.
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
