"""`p2o compare`: methods × seeds at equal compute, one table, one figure, one JSON."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from p2o.cli.arguments import InputError
from p2o.methods import METHODS
from p2o.state import differences, write_json

DEFAULT_METHODS = "p2o,grpo,grpo-2x,dapo"
ENDLESS = 10**6  # epochs; the budget ends a run
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, the normal's is close enough.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def compare(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: some run failed, 2: bad input)."""
    parser = argparse.ArgumentParser(
        prog="p2o compare",
        description=__doc__,
        epilog="Every other option goes to `p2o train`, for all methods alike: --config, --learning_rate, …",
    )
    parser.add_argument("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(METHODS)} (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare"), help="(default: %(default)s)")
    parser.add_argument("--total_rollouts", type=int, default=12_000, help="every method spends this many in all")
    parser.add_argument("--steps", type=int, help="equal optimizer steps instead, prompt phases for nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, one thread each")
    arguments, rest = parser.parse_known_args(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        methods, seeds = _checked(arguments)
        limit = {"steps": arguments.steps} if arguments.steps else {"total_rollouts": arguments.total_rollouts}
        _same_comparison(arguments.output_dir, {**limit, "options": rest})
    except InputError as error:
        errors.print(f"Error: {error}")
        return 2
    length = (
        ["--max_steps", str(arguments.steps)]
        if arguments.steps
        else ["--max_rollouts", str(arguments.total_rollouts), "--num_train_epochs", str(ENDLESS)]
    )
    console = Console(highlight=False)
    cells = [(method, seed) for seed in seeds for method in methods]

    def run(cell: tuple[str, int]) -> bool:
        method, seed = cell
        directory = arguments.output_dir / f"{method}-{seed}"
        if (directory / "summary.json").exists():
            return True
        began = time.monotonic()
        started = (directory / "config.yaml").exists()
        options = [*rest, *length, "--method", method, "--seed", str(seed), "--num_threads", "1"]
        command = [*_TRAIN, "--output_dir", str(directory), *(["--resume"] if started else options)]
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "log.txt", "a") as log:
            code = subprocess.run(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            ).returncode
        minutes = (time.monotonic() - began) / 60
        verdict = f"done in {minutes:.1f} min" if code == 0 else f"failed, see {directory / 'log.txt'}"
        console.print(f"{method} seed {seed}: {verdict}", markup=False)
        return code == 0

    console.print(f"{len(cells)} runs, {arguments.jobs} at once; finished ones are not run again.")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        finished = list(pool.map(run, cells))
    result = collect(arguments.output_dir, methods, seeds, limit)
    write_json(arguments.output_dir / "compare.json", result)
    console.print(as_table(result))
    draw(result, arguments.output_dir / "compare")
    console.print(f"{arguments.output_dir}/compare.json, .png, .svg", markup=False)
    return 0 if all(finished) else 1


_TRAIN = [sys.executable, "-c", "import sys; from p2o.cli import main; sys.exit(main())", "train"]


def _checked(arguments: argparse.Namespace) -> tuple[list[str], list[int]]:
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
    return methods, seeds


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


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t over seeds); NaN for a single value."""
    if len(values) < 2:
        return values[0], math.nan
    quantile = T95[len(values) - 2] if len(values) - 2 < len(T95) else 1.96
    return mean(values), quantile * stdev(values) / math.sqrt(len(values))


def curve(directory: Path) -> dict[str, list[float]]:
    """Bare accuracies during a run against the rollouts spent until then, and the share of collapsed groups."""
    total = 0
    rows: dict[str, list[float]] = {"rollouts": [], "hard": [], "easy": [], "collapsed_rollouts": [], "collapsed": []}
    point: dict[str, float] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        total = record.get("p2o/rollouts/total", total)
        if record.get("frac_reward_zero_std") is not None and "loss" in record:
            rows["collapsed_rollouts"].append(total)
            rows["collapsed"].append(record["frac_reward_zero_std"])
        for split in ("easy", "hard"):
            if record.get(f"eval_{split}_accuracy") is not None:
                point[split] = record[f"eval_{split}_accuracy"]
        if len(point) == 2:
            rows["rollouts"].append(total)
            rows["hard"].append(point["hard"])
            rows["easy"].append(point["easy"])
            point = {}
    return rows


def collect(directory: Path, methods: list[str], seeds: list[int], limit: dict[str, Any]) -> dict[str, Any]:
    """Everything the table and the figure show; cells without a summary are left out and named."""
    cells, missing = [], []
    for method in methods:
        for seed in seeds:
            path = directory / f"{method}-{seed}"
            if not (path / "summary.json").exists():
                missing.append(f"{method}-{seed}")
                continue
            summary = json.loads((path / "summary.json").read_text())
            summary.pop("templates", None)
            summary["curve"] = curve(path)
            half = [r for r, h in zip(summary["curve"]["rollouts"], summary["curve"]["hard"], strict=True) if h >= 0.5]
            summary["rollouts_until_half_of_hard"] = half[0] if half else None
            cells.append(summary)
    return {"limit": limit, "methods": methods, "seeds": seeds, "missing": missing, "cells": cells}


def as_table(result: dict[str, Any]) -> Table:
    (unit, amount), *_ = result["limit"].items()
    table = Table(title=f"Bare accuracy after {amount:,} {unit.replace('_', ' ')} (mean ± 95 % interval over seeds, t)")
    splits = sorted({split for cell in result["cells"] for split in cell["bare_accuracy"]})
    for heading in ("method", *splits, "easy lost", "half of hard at", "collapsed", "minutes", "seeds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method in result["methods"]:
        cells = [cell for cell in result["cells"] if cell["method"] == method]
        if not cells:
            continue
        shown = [_percent(*interval([cell["bare_accuracy"][split]["after"] for cell in cells])) for split in splits]
        easy = [c["bare_accuracy"]["easy"] for c in cells if "easy" in c["bare_accuracy"]]
        lost = f"{mean(e['before'] - e['after'] for e in easy):+.1%}" if easy else "–"
        half = [cell["rollouts_until_half_of_hard"] for cell in cells]
        reached = [h for h in half if h is not None]
        when = f"{mean(reached):,.0f} ({len(reached)}/{len(half)})" if reached else "never"
        collapsed = mean(mean(cell["curve"]["collapsed"]) for cell in cells if cell["curve"]["collapsed"])
        minutes = f"{mean(cell['wall_seconds'] for cell in cells) / 60:.1f}"
        table.add_row(method, *shown, lost, when, f"{collapsed:.0%}", minutes, str(len(cells)))
    return table


def _percent(middle: float, half: float) -> str:
    return f"{middle:.1%}" if math.isnan(half) else f"{middle:.1%} ± {100 * half:.1f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Bare accuracy on hard questions against rollouts, with intervals over seeds; PNG and SVG."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for method in result["methods"]:
        curves = [cell["curve"] for cell in result["cells"] if cell["method"] == method]
        curves = [c for c in curves if len(c["rollouts"]) > 1]
        if not curves:
            continue
        grid = np.linspace(0, max(max(c["rollouts"]) for c in curves), 60)
        values = np.array([np.interp(grid, c["rollouts"], c["hard"]) for c in curves])
        (line,) = axes.plot(grid, values.mean(0), label=method)
        if len(curves) > 1:
            half = np.array([interval(list(column))[1] for column in values.T])
            axes.fill_between(grid, values.mean(0) - half, values.mean(0) + half, alpha=0.15, color=line.get_color())
    axes.set(xlabel="rollouts in all, prompt phases charged", ylabel="bare accuracy, hard questions", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    for ending in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=160)
    plt.close(figure)
