"""`p2o features apply`: how training moved the features of a dictionary, over the checkpoints of runs."""

import math
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from p2o.cli.console import Meter
from p2o.cli.errors import InputError
from p2o.cli.features_source import refuse_other_engines, source_of
from p2o.cli.frozen import open_directory
from p2o.cli.frozen_answers import AnswerArguments, answer_settings
from p2o.cli.frozen_options import parse
from p2o.cli.frozen_questions import load_questions
from p2o.cli.models import path_of_model
from p2o.difficulty.buckets import BUCKETS
from p2o.difficulty.profile import ProfileError, read_profile
from p2o.engines.loading import weights_digest
from p2o.evaluation.results import question_key
from p2o.evaluation.types import QuestionSet
from p2o.features.activations import read_activations
from p2o.features.dynamics import BASE, Checkpoint, Strengths, base_of, checkpoints_of, leads, strengths, summarise
from p2o.features.saved import SavedDictionary, load_dictionary
from p2o.journal import JsonLines
from p2o.reports.features import draw_dynamics, dynamics_tables, lead_table
from p2o.reports.features_data import CONTEXTS, DYNAMICS, KIND, VERSION
from p2o.state import write_json

PICTURE, MEASURED = "dynamics.svg", "measured.jsonl"
MEASURED_VERSION = 2  # of what is measured of a checkpoint
USAGE = "p2o features apply DICTIONARY RUN [RUN ...] [--OPTION VALUE ...]"


@dataclass
class ApplyArguments(AnswerArguments):
    """Options of `p2o features apply`: bare questions, and how they are sampled."""

    difficulty_profile: str | None = field(
        default=None,
        metadata={
            "help": "Profile of these questions, by `p2o profile`: a file or its directory. What training moved is "
            "then shown for hard, medium and easy questions, too. Nothing is sampled anew for it."
        },
    )

    def check(self) -> None:
        super().check()
        refuse_other_engines(self)


def apply(argv: list[str], console: Console) -> int:
    """
    Raises:
        InputError, DictionaryError: what cannot be measured.
    """
    names = [word for number, word in enumerate(argv) if not any(w.startswith("-") for w in argv[: number + 1])]
    options = argv[len(names) :]
    about_help = {"--help", "-h"} & {*options}
    if len(names) < 2 and not about_help:
        raise InputError(f"Name a dictionary that `p2o features` wrote, and runs to apply it to: {USAGE}")
    saved = None if about_help else load_dictionary(Path(names[0]))
    model = [] if saved is None else ["--model", saved.origin.model]
    arguments = parse(
        ApplyArguments,
        [*model, *options],
        prog="p2o features apply DICTIONARY RUN [RUN ...]",
        description="Samples bare questions from every checkpoint of the runs, and says what share of activation the "
        "groups of features have in each, with intervals.",
        takes_dataset=True,
        needs_model=False,
    )
    assert saved is not None  # help has ended the command
    tasks = load_questions(arguments, console.print)
    buckets = _buckets(arguments.difficulty_profile, tasks, console)
    checkpoints = _checkpoints(saved, [Path(name) for name in names[1:]])
    settings = {
        **answer_settings(arguments, tasks),
        "dictionary": weights_digest(_directory(Path(names[0]))),
        "runs": [str(Path(name)) for name in names[1:]],
    }
    directory = open_directory(arguments.output_dir, "dynamics", Path(names[0]).name, settings)
    measured = _measure(saved, checkpoints, arguments, tasks, directory, console)
    rows, lead = summarise(measured, buckets), leads(measured, buckets, seed=arguments.seed)
    found = {"kind": KIND, "version": VERSION, "dictionary": asdict(saved.origin), "checkpoints": rows, "lead": lead}
    write_json(directory / DYNAMICS, _json(found))
    contexts = _directory(Path(names[0])).parent / CONTEXTS
    if contexts.exists():
        shutil.copyfile(contexts, directory / CONTEXTS)  # so that a report needs one directory
    draw_dynamics(rows, directory / PICTURE)
    _print(rows, lead, console)
    files = " · ".join(str(directory / name) for name in (DYNAMICS, PICTURE))
    console.print(files, markup=False, soft_wrap=True)
    advice = f"As a page, beside what the runs report: p2o report {' '.join(names[1:])} --features {directory}"
    console.print(advice, markup=False, soft_wrap=True)
    return 0


def _print(rows: list[dict[str, Any]], lead: list[dict[str, Any]], console: Console) -> None:
    for table in dynamics_tables(rows):
        console.print(table)
    if lead:
        console.print(lead_table(lead))
    else:
        least = "3 checkpoints, 10 scored questions and --n 2, or more"
        console.print(f"Which comes first, features or accuracy, is told with {least}.")
    if any(row["explained_variance"] < 0.5 * rows[0]["explained_variance"] for row in rows):
        console.print("Of some checkpoints the dictionary explains less than half of what it does of the base: there")
        console.print("it misses what training added. Train one on such a checkpoint and compare.")


def _buckets(path: str | None, tasks: list[QuestionSet], console: Console) -> list[str | None] | None:
    """Of each question its bucket by a profile, None where it is not in it or was not scored; None without a profile.

    Raises:
        InputError: a file that is no profile, or one of other questions.
    """
    if path is None:
        return None
    try:
        profile = read_profile(path)
    except ProfileError as error:
        raise InputError(str(error)) from None
    known = {question.key: bucket for question, bucket in zip(profile.questions, profile.buckets, strict=True)}
    found = [known.get(question_key(row)) for task in tasks for row in task.rows]
    counts = Counter(bucket for bucket in found if bucket in BUCKETS)
    if not counts:
        raise InputError(
            f"difficulty_profile={path} is a profile of other questions: none of the {len(found)} here is in it. "
            "Profile these, with the same options of the data: p2o profile MODEL ..."
        )
    there = ", ".join(f"{counts[bucket]} {bucket}" for bucket in BUCKETS)
    left_out = len(found) - counts.total()
    rest = f"; {left_out} not in the profile, or unscored there" if left_out else ""
    console.print(f"Questions by bucket: {there}{rest}.", markup=False)
    return found


def _directory(path: Path) -> Path:
    return path / "dictionary" if (path / "dictionary").is_dir() else path


def _checkpoints(saved: SavedDictionary, runs: list[Path]) -> list[Checkpoint]:
    """The base, and all checkpoints of the runs.

    Raises:
        InputError: a run that started from another model, a dictionary without labels.
    """
    if not any(saved.labels.kinds):
        raise InputError(
            "No feature of this dictionary has a label, so there are no groups to follow. Train one on rollouts with "
            "spans of several kinds, or with a lower --label_share."
        )
    base = path_of_model(saved.origin.model)
    found = [Checkpoint(BASE, BASE, 0, Path(base))]
    for run in runs:
        found += checkpoints_of(run)
        started = base_of(run)
        if started is not None and path_of_model(started) != base:
            raise InputError(
                f"{run} started from {started}, the dictionary is of {saved.origin.model}: features of one base say "
                f"nothing about another. Train a dictionary on it: p2o features {started} --tasks ..."
            )
    names = [run.resolve().name for run in runs]
    if len({*names}) < len(names):
        raise InputError(f"Two runs have the same name ({', '.join(names)}): rename one, so that lines can be told.")
    return found


def _measure(
    saved: SavedDictionary,
    checkpoints: list[Checkpoint],
    arguments: ApplyArguments,
    tasks: list[QuestionSet],
    directory: Path,
    console: Console,
) -> list[tuple[Checkpoint, Strengths]]:
    """Measures the checkpoints that the directory does not have yet."""
    measured: list[tuple[Checkpoint, Strengths]] = []
    with JsonLines(directory / MEASURED) as journal, Meter(console) as meter:
        for place, checkpoint in enumerate(checkpoints):
            key = [MEASURED_VERSION, checkpoint.run, checkpoint.step, weights_digest(checkpoint.path)]
            if len(journal.records) > place and journal.records[place]["key"] == key:
                found = Strengths(**journal.records[place]["strengths"])
            else:
                found = _strengths(saved, checkpoint, arguments, tasks)
                journal.append([{"key": key, "strengths": found.to_dict()}], after=place)
                journal.records[place:] = []
            measured.append((checkpoint, found))
            meter.update("checkpoints", place + 1, len(checkpoints))
    return measured


def _strengths(
    saved: SavedDictionary, checkpoint: Checkpoint, arguments: ApplyArguments, tasks: list[QuestionSet]
) -> Strengths:
    source, tasks = source_of(arguments, checkpoint.path, tasks, saved.origin.layer)
    saved.origin.check(source.model.config, str(checkpoint.path))
    passages, activations, first = [], [], 0
    for task in tasks:
        for start in range(0, len(task.rows), arguments.questions_per_batch):
            rows = range(start, min(start + arguments.questions_per_batch, len(task.rows)))
            found = source.rollouts(task, rows, first)
            activations += read_activations(source.model, source.layer, found, arguments.batch_size)
            passages += found
        first += len(task.rows)
    return strengths(saved.dictionary, saved.labels, passages, activations)


def _json(value: Any) -> Any:
    """The value with null for what is not a number."""
    if isinstance(value, dict):
        return {name: _json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
