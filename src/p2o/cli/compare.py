"""`p2o compare`: methods × seeds at equal compute, one table, one figure, one JSON."""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p2o.cli.arguments import given_settings
from p2o.cli.defaults import with_defaults
from p2o.cli.errors import InputError
from p2o.cli.secrets import take_secrets
from p2o.cli.words import normalized_option
from p2o.methods import METHODS, tuned_as
from p2o.reports.comparison import Cell, Sweep, as_table, choose, collect, draw
from p2o.state import differences, write_json

DEFAULT_METHODS = "p2o,grpo,grpo-2x,dapo"
ENDLESS = 10**6  # epochs; a run ends at its budget


def compare(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: some run failed, 2: bad input)."""
    arguments, rest = _parser().parse_known_args(argv)
    rest = [normalized_option(word) for word in rest]
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 180
    try:
        secrets = take_secrets(rest)
        methods, seeds, sweep = _checked(arguments, rest)
        limit = {"steps": arguments.steps} if arguments.steps else {"total_rollouts": arguments.total_rollouts}
        settings = {**limit, "options": rest, "sweep": [sweep.option, *sweep.values, sweep.seed] if sweep else None}
        _same_comparison(arguments.output_dir, settings)
        jobs = arguments.jobs or _runs_at_once(rest)
        comparison = Comparison(arguments.output_dir, jobs, rest, limit, secrets)
        return _compare(comparison, methods, seeds, sweep, console)
    except InputError as error:
        errors.print(f"Error: {error}")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="p2o compare",
        allow_abbrev=False,  # --seed is an option of `p2o train`, and no short form of --seeds
        description=__doc__,
        epilog="All other options are passed to `p2o train`, for every method: --config, --learning_rate, …",
    )
    parser.add_argument("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(METHODS)} (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: %(default)s)")
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs/compare"), help="(%(default)s)")
    parser.add_argument(
        "--total_rollouts", "--total-rollouts", type=int, default=12_000, help="total rollouts per method"
    )
    parser.add_argument(
        "--steps", type=int, help="equal number of optimizer steps instead; prompt-phase rollouts are not charged"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs at once, one thread each (default: as many as there are cores; 1 where runs train on a GPU)",
    )
    parser.add_argument(
        "--sweep",
        metavar="OPTION=VALUE,VALUE,…",
        help="first try each value for each method and use the one with the best evaluation accuracy. Ablations "
        "(p2o-…) use p2o's value",
    )
    parser.add_argument(
        "--sweep_seed", "--sweep-seed", type=int, default=1000, help="seed of these trials (default: %(default)s)"
    )
    return parser


@dataclass(frozen=True)
class Comparison:
    """The directory of the runs and their common options.

    Args:
        jobs: runs at once.
        options: of `p2o train`, for all of them.
        limit: `steps` or `total_rollouts` of each.
        secrets: by the environment variable in which the runs are given them.
    """

    directory: Path
    jobs: int
    options: list[str]
    limit: dict[str, Any]
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def run(self, cells: list[Cell], console: Console) -> bool:
        """Runs or resumes these cells; whether all are finished."""
        if "steps" in self.limit:
            length = ["--max_steps", str(self.limit["steps"])]
        else:
            length = ["--max_rollouts", str(self.limit["total_rollouts"]), "--num_train_epochs", str(ENDLESS)]
        options = [*self.options, *length]
        with ThreadPoolExecutor(self.jobs) as pool:
            return all(list(pool.map(lambda cell: _run(self.directory, cell, options, console, self.secrets), cells)))


def _runs_at_once(options: list[str]) -> int:
    """As many single-threaded runs as there are cores (see benchmarks/two_at_once.py); one where they train on GPUs."""
    settings, has_file = given_settings(list(options))
    settings, _ = with_defaults(settings, has_file=has_file)
    on_cpu = settings.get("use_cpu") or not torch.accelerator.is_available()
    return (os.cpu_count() or 1) if on_cpu else 1


def _compare(
    comparison: Comparison, methods: list[str], seeds: list[int], sweep: Sweep | None, console: Console
) -> int:
    """Runs the unfinished cells and shows the result; returns the exit code.

    Raises:
        InputError: a sweep without evaluation results.
    """
    chosen: dict[str, Any] = {}
    if sweep:
        tried = list(dict.fromkeys(tuned_as(method, methods) for method in methods))
        console.print(f"{len(tried) * len(sweep.values)} trials, {comparison.jobs} at once.")
        if not comparison.run([sweep.cell(method, value) for method in tried for value in sweep.values], console):
            return 1
        try:
            chosen = choose(comparison.directory, sweep, tried)
        except ValueError as error:
            raise InputError(str(error)) from None
    cells = []
    for seed in seeds:
        for method in methods:
            own = [f"--{sweep.option}", chosen[tuned_as(method, methods)]["value"]] if sweep else []
            cells.append(Cell(f"{method}-{seed}", ("--method", method, "--seed", str(seed), *own)))
    console.print(f"{len(cells)} runs, {comparison.jobs} at once; finished ones are not run again.")
    finished = comparison.run(cells, console)
    result = collect(comparison.directory, methods, seeds, comparison.limit)
    if sweep:
        result["sweep"] = {"option": sweep.option, "seed": sweep.seed, "methods": chosen}
    write_json(comparison.directory / "compare.json", result)
    console.print(as_table(result))
    draw(result, comparison.directory / "compare")
    console.print(f"{comparison.directory}/compare.json, .png, .svg", markup=False)
    return 0 if finished else 1


def _run(directory: Path, cell: Cell, options: list[str], console: Console, secrets: dict[str, str]) -> bool:
    """Runs or resumes a cell unless it is finished; whether it is."""
    path = directory / cell.name
    if (path / "summary.json").exists():
        return True
    began = time.monotonic()
    new = [*options, *cell.options, "--num_threads", "1"]
    resumes = (path / "config.yaml").exists()
    command = [*_TRAIN, "--output_dir", str(path), *(["--resume"] if resumes else new)]
    path.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **secrets, "OMP_NUM_THREADS": "1"}
    with open(path / "log.txt", "a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
    minutes = (time.monotonic() - began) / 60
    verdict = f"done in {minutes:.1f} min" if code == 0 else f"failed, see {path / 'log.txt'}"
    console.print(f"{cell.name}: {verdict}", markup=False)
    return code == 0


_TRAIN = [sys.executable, "-m", "p2o", "train"]


def _checked(arguments: argparse.Namespace, rest: list[str]) -> tuple[list[str], list[int], Sweep | None]:
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"Unknown method(s) {', '.join(unknown) or '(none)'}; choose among {', '.join(METHODS)}.")
    try:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {arguments.seeds!r} is not a list of integers such as 0,1,2.") from None
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
            f"--sweep_seed {arguments.sweep_seed} is also one of --seeds: tune on a seed that is not reported."
        )
    return methods, seeds, Sweep(option, values, arguments.sweep_seed)


def _same_comparison(directory: Path, settings: dict[str, Any]) -> None:
    """Refuses a directory of runs that were made under other settings, naming the difference."""
    path = directory / "settings.json"
    if path.exists():
        changed = differences(json.loads(path.read_text()), settings)
        if changed:
            raise InputError(
                f"{directory} holds a comparison with other settings: {changed}. Choose another --output_dir."
            )
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.") from None
