"""`p2o compare`: methods × seeds at equal compute, one table, one figure, one JSON."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from p2o.cli.arguments import given_settings
from p2o.cli.compare_plan import Plan, checked_plan
from p2o.cli.defaults import with_defaults
from p2o.cli.errors import InputError
from p2o.cli.secrets import take_secrets
from p2o.cli.words import normalized_option, take_option
from p2o.continuation import differences
from p2o.methods import METHODS
from p2o.reports.comparison import Cell, as_table, choose, collect, draw, effects, effects_table, prompts_table
from p2o.state import write_json

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
        profile = take_option(rest, "--difficulty_profile")
        plan = checked_plan(arguments, rest, profile)
        sweep = plan.sweep
        limit = {"steps": arguments.steps} if arguments.steps else {"total_rollouts": arguments.total_rollouts}
        settings = {**limit, "options": rest, "sweep": [sweep.option, *sweep.values, sweep.seed] if sweep else None}
        if profile is not None:
            settings["difficulty_profile"] = profile
        if arguments.start_from is not None:
            settings |= {"start_from": str(arguments.start_from), "then": arguments.then or "grpo"}
        _same_comparison(arguments.output_dir, settings)
        launcher = _launcher(arguments.launcher)
        comparison = Comparison(arguments.output_dir, arguments.jobs, rest, limit, launcher, secrets)
        if arguments.print_commands:
            return _print_commands(comparison, plan)
        if arguments.collect:
            return _collect(comparison, plan, console)
        return _compare(comparison, plan, console)
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
    parser.add_argument(
        "--difficulty",
        metavar="EASY,MEDIUM,…",
        help="parts of the training questions to train on, each with every method: 'all', or what `p2o train "
        "--difficulty` takes, with + in place of its commas, of the --difficulty_profile. A second table shows the "
        "effect on each evaluation set; with --eval_difficulty_profile, on each bucket of the evaluation questions",
    )
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
        help="runs at once, one thread each (default: as many as there are cores; 1 where runs train on a GPU; all "
        "with --launcher)",
    )
    parser.add_argument(
        "--launcher",
        metavar="COMMAND",
        help="runs each run, such as 'srun -N1 --gres=gpu:8 {command}'; {command} is `python -m p2o train …`, "
        "{arguments} what is behind `p2o` in it, as in 'accelerate launch -m p2o {arguments}', and {name} the run's "
        "name. It returns when the run has ended, and may run it again: a run goes on where it was",
    )
    parser.add_argument(
        "--print_commands",
        "--print-commands",
        action="store_true",
        help="run nothing, and print one command a line for each run that is not finished, such as for a job array; "
        "afterwards, or any time, the same command with --collect makes the table",
    )
    parser.add_argument(
        "--collect", action="store_true", help="run nothing, and make the table of the runs that are finished"
    )
    _add_options_of_other_runs(parser)
    return parser


def _add_options_of_other_runs(parser: argparse.ArgumentParser) -> None:
    """What came before the runs: finished ones whose models they start from, or trials of a value."""
    parser.add_argument(
        "--start_from",
        "--start-from",
        type=Path,
        metavar="DIRECTORY",
        help="of a finished comparison: each run starts from the model of its run there, with the same method and "
        "seed, to see what these models can still learn, of the data in the other options",
    )
    parser.add_argument("--then", metavar="METHOD", help="of all runs with --start_from (default: grpo)")
    parser.add_argument(
        "--sweep",
        metavar="OPTION=VALUE,VALUE,…",
        help="first try each value for each method and use the one with the best evaluation accuracy. Ablations "
        "(p2o-…) use p2o's value",
    )
    parser.add_argument(
        "--sweep_seed", "--sweep-seed", type=int, default=1000, help="seed of these trials (default: %(default)s)"
    )


@dataclass(frozen=True)
class Comparison:
    """The directory of the runs and their common options.

    Args:
        jobs: runs at once; None for the default.
        options: of `p2o train`, for all of them.
        limit: `steps` or `total_rollouts` of each.
        launcher: words of the command that runs a run; None where they run here.
        secrets: by the environment variable in which the runs are given them.
    """

    directory: Path
    jobs: int | None
    options: list[str]
    limit: dict[str, Any]
    launcher: list[str] | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def run(self, cells: list[Cell], console: Console) -> bool:
        """Runs or resumes these cells; whether all are finished."""
        with ThreadPoolExecutor(self.at_once(len(cells))) as pool:
            return all(list(pool.map(lambda cell: self._run(cell, console), cells)))

    def at_once(self, cells: int) -> int:
        """So many of the cells run at the same time."""
        if self.jobs or self.launcher is None:
            return self.jobs or _runs_at_once(self.options)
        return max(cells, 1)

    def is_finished(self, cell: Cell) -> bool:
        return (self.directory / cell.name / "summary.json").exists()

    def command(self, cell: Cell) -> list[str]:
        """Starts or continues the cell, as often as it is run; without effect on a finished one."""
        if "steps" in self.limit:
            length = ["--max_steps", str(self.limit["steps"])]
        else:
            length = ["--max_rollouts", str(self.limit["total_rollouts"]), "--num_train_epochs", str(ENDLESS)]
        directory = ["--resume_or_start", "--output_dir", str(self.directory / cell.name)]
        # Where there are no templates, or no evaluation, that one has no effect.
        arguments = ["train", *directory, "--evaluate_with_prompts", "true", *self.options, *length, *cell.options]
        if self.launcher is None:
            return [sys.executable, "-m", "p2o", *arguments]
        words = {"command": [sys.executable, "-m", "p2o", *arguments], "arguments": arguments}
        return list(chain.from_iterable(_filled(word, words, cell.name) for word in self.launcher))

    def _run(self, cell: Cell, console: Console) -> bool:
        """Runs or resumes a cell unless it is finished; whether it is."""
        if self.is_finished(cell):
            return True
        path, began = self.directory / cell.name, time.monotonic()
        path.mkdir(parents=True, exist_ok=True)
        command, environment = self.command(cell), {**os.environ, **self.secrets}
        if self.launcher is None:  # several share this machine
            command, environment = [*command, "--num_threads", "1"], {**environment, "OMP_NUM_THREADS": "1"}
        with open(path / "log.txt", "a") as log:
            try:
                code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
            except OSError as error:
                raise InputError(f"Cannot run {command[0]}: {error.strerror}.") from None
        minutes, finished = (time.monotonic() - began) / 60, self.is_finished(cell)
        # Whatever a launcher returns: what counts is whether the run has ended.
        verdict = f"done in {minutes:.1f} min" if finished else f"failed, see {path / 'log.txt'}"
        if not finished and code == 0:
            verdict = f"not finished, though its command has ended; see {path / 'log.txt'}"
        console.print(f"{cell.name}: {verdict}", markup=False)
        return finished


def _launcher(template: str | None) -> list[str] | None:
    """The words of a launcher.

    Raises:
        InputError: it does not say where the command goes, or is no command.
    """
    if template is None:
        return None
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InputError(f"--launcher {template!r} cannot be read ({error}).") from None
    if sum(word.count("{command}") + word.count("{arguments}") for word in words) != 1:
        raise InputError(
            f"--launcher {template!r} has to have either {{command}} or {{arguments}} in it, once, such as "
            "'srun -N1 --gres=gpu:8 {command}' or 'accelerate launch -m p2o {arguments}'."
        )
    return words


def _filled(word: str, words: dict[str, list[str]], name: str) -> list[str]:
    """A word of a launcher with its placeholders filled: one alone becomes several words, one within stays one."""
    for placeholder, put in words.items():
        if word == f"{{{placeholder}}}":
            return put
        word = word.replace(f"{{{placeholder}}}", shlex.join(put))
    return [word.replace("{name}", name.replace("/", "-"))]


def _runs_at_once(options: list[str]) -> int:
    """As many single-threaded runs as there are cores (see benchmarks/two_at_once.py); one where they train on GPUs."""
    settings, has_file = given_settings(list(options))
    settings, _ = with_defaults(settings, has_file=has_file)
    on_cpu = settings.get("use_cpu") or not torch.accelerator.is_available()
    return (os.cpu_count() or 1) if on_cpu else 1


def _print_commands(comparison: Comparison, plan: Plan) -> int:
    """Prints the command of each cell that is not finished, of a sweep first its trials; returns the exit code."""
    cells = plan.trials
    if all(map(comparison.is_finished, cells)):
        cells = plan.cells(_chosen(comparison, plan))
    for cell in cells:
        if not comparison.is_finished(cell):
            print(shlex.join(comparison.command(cell)))
    return 0


def _chosen(comparison: Comparison, plan: Plan) -> dict[str, Any]:
    """What a sweep whose trials are finished has chosen for each method; {} without one.

    Raises:
        InputError: a sweep without evaluation results.
    """
    if plan.sweep is None:
        return {}
    try:
        return choose(comparison.directory, plan.sweep, plan.tuned)
    except ValueError as error:
        raise InputError(str(error)) from None


def _compare(comparison: Comparison, plan: Plan, console: Console) -> int:
    """Runs the unfinished cells and shows the result; returns the exit code.

    Raises:
        InputError: a sweep without evaluation results.
    """
    if trials := plan.trials:
        console.print(f"{len(trials)} trials, {comparison.at_once(len(trials))} at once.")
        if not comparison.run(trials, console):
            return 1
    chosen = _chosen(comparison, plan)
    cells = plan.cells(chosen)
    console.print(f"{len(cells)} runs, {comparison.at_once(len(cells))} at once; finished ones are not run again.")
    finished = comparison.run(cells, console)
    return _show(comparison, plan, chosen, console) or (0 if finished else 1)


def _collect(comparison: Comparison, plan: Plan, console: Console) -> int:
    """Shows the result of the cells that are finished; returns the exit code.

    Raises:
        InputError: trials of a sweep are missing.
    """
    if missing := [cell.name for cell in plan.trials if not comparison.is_finished(cell)]:
        raise InputError(f"Trials of the sweep are not finished: {', '.join(missing)}.")
    chosen = _chosen(comparison, plan)
    finished = all(map(comparison.is_finished, plan.cells(chosen)))
    return _show(comparison, plan, chosen, console) or (0 if finished else 1)


def _show(comparison: Comparison, plan: Plan, chosen: dict[str, Any], console: Console) -> int:
    """Writes and prints the tables of the cells that are finished; returns the exit code."""
    arms = {arm.label: arm.beginning for arm in plan.arms}
    result = collect(comparison.directory, arms, plan.seeds, comparison.limit)
    if plan.sweep:
        result["sweep"] = {"option": plan.sweep.option, "seed": plan.sweep.seed, "methods": chosen}
    if plan.by_difficulty:
        result["effects"] = effects(result)
    write_json(comparison.directory / "compare.json", result)
    console.print(as_table(result))
    if (prompted := prompts_table(result)) is not None:
        console.print(prompted)
    if plan.by_difficulty:
        console.print(effects_table(result["effects"]))
    draw(result, comparison.directory / "compare")
    console.print(f"{comparison.directory}/compare.json, .png, .svg", markup=False)
    return 0


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
