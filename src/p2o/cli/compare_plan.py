"""What `p2o compare` runs: methods, on all questions or on parts of them, with seeds, after a sweep."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2o.cli.errors import InputError
from p2o.difficulty.selection import parse_selection
from p2o.methods import METHODS, tuned_as
from p2o.reports.comparison import Cell, Sweep

ALL = "all"  # questions


@dataclass(frozen=True)
class Arm:
    """What is compared: a method, on all questions or on some.

    Args:
        label: in tables.
        beginning: of the names of its runs.
        options: of `p2o train`.
        start: beginning of the names of the runs, elsewhere, from whose models these start; None for the
            configuration's model.
    """

    label: str
    beginning: str
    method: str
    options: tuple[str, ...]
    start: str | None = None

    def start_model(self, seed: int) -> Path | None:
        """The model that the run with this seed starts from."""
        return None if self.start is None else Path(f"{self.start}-{seed}") / "model"


@dataclass(frozen=True)
class Plan:
    """What is to be run: each of the arms with each of the seeds, after a sweep, where there is one."""

    arms: list[Arm]
    seeds: list[int]
    sweep: Sweep | None
    by_difficulty: bool = False

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def tuned(self) -> list[str]:
        """Methods that a sweep tries values for."""
        return list(dict.fromkeys(tuned_as(method, self.methods) for method in self.methods)) if self.sweep else []

    @property
    def trials(self) -> list[Cell]:
        return (
            [self.sweep.cell(method, value) for method in self.tuned for value in self.sweep.values]
            if self.sweep
            else []
        )

    def cells(self, chosen: dict[str, Any]) -> list[Cell]:
        """The runs that the tables are of, with what a sweep has chosen."""
        made = []
        for seed in self.seeds:
            for arm in self.arms:
                tuned = tuned_as(arm.method, self.methods)
                own = [f"--{self.sweep.option}", chosen[tuned]["value"]] if self.sweep else []
                if (model := arm.start_model(seed)) is not None:
                    own += ["--model_name_or_path", str(model)]
                made.append(Cell(f"{arm.beginning}-{seed}", (*arm.options, "--seed", str(seed), *own)))
        return made


def checked_plan(arguments: argparse.Namespace, rest: list[str], profile: str | None) -> Plan:
    """
    Args:
        rest: options of `p2o train`, for all runs.
        profile: of the training questions; None where none is given.

    Raises:
        InputError: methods, seeds, parts of the questions or a sweep that there are not, or that do not go together.
    """
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
    if arguments.start_from is not None:
        return Plan(_continued(methods, seeds, arguments, profile), seeds, None)
    if arguments.then is not None:
        raise InputError("--then, the method of the runs, goes with --start_from, where their models are.")
    arms = _arms(methods, arguments.difficulty, profile)
    if arguments.sweep is None:
        return Plan(arms, seeds, None, arguments.difficulty is not None)
    if arguments.difficulty is not None:
        raise InputError("--sweep chooses a value for a method, on all questions: it does not go with --difficulty.")
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
    return Plan(arms, seeds, Sweep(option, values, arguments.sweep_seed))


def _continued(methods: list[str], seeds: list[int], arguments: argparse.Namespace, profile: str | None) -> list[Arm]:
    """Runs that start from the models of finished ones, all with one method.

    Raises:
        InputError: an unknown method, a run without a model, or options that do not go with this.
    """
    given = {"--sweep": arguments.sweep, "--difficulty": arguments.difficulty, "--difficulty_profile": profile}
    if taken := [name for name, value in given.items() if value is not None]:
        raise InputError(f"--start_from does not go with {', '.join(taken)}.")
    then = arguments.then or "grpo"
    if then not in METHODS:
        raise InputError(f"Unknown method {then} of --then; choose one of {', '.join(METHODS)}.")
    there = arguments.start_from
    arms = [Arm(f"{m}, then {then}", f"{m}-then-{then}", then, ("--method", then), str(there / m)) for m in methods]
    models = [arm.start_model(seed) for arm in arms for seed in seeds]
    if missing := [str(model) for model in models if model is not None and not model.is_dir()]:
        raise InputError(
            f"--start_from {there}: there is no {', '.join(missing)}. Finish that comparison first, or leave out the "
            "method or seed."
        )
    return arms


def _arms(methods: list[str], difficulty: str | None, profile: str | None) -> list[Arm]:
    """
    Raises:
        InputError: a part of the questions that is none, is named twice, or has no profile to be looked up in.
    """
    if difficulty is None:
        if profile is not None:
            raise InputError("--difficulty_profile, the file of `p2o profile`, goes with --difficulty easy,all.")
        return [Arm(method, method, method, ("--method", method)) for method in methods]
    parts = [part.strip() for part in difficulty.split(",")]
    if len(set(parts)) < len(parts):
        raise InputError(f"--difficulty {difficulty}: a part is named twice.")
    arms = []
    for part in parts:
        wanted = part.replace("+", ",")
        if part != ALL:
            if profile is None:
                raise InputError(f"--difficulty {part} needs the --difficulty_profile that `p2o profile` wrote.")
            try:
                parse_selection(wanted)
            except ValueError as error:
                raise InputError(str(error)) from None
        own = () if part == ALL else ("--difficulty_profile", str(profile), "--difficulty", wanted)
        beginning = re.sub(r"[^\w.+-]", "-", part)
        arms += [Arm(f"{m} on {part}", f"{m}-{beginning}", m, ("--method", m, *own)) for m in methods]
    return arms
