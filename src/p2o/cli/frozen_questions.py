"""The questions of `p2o eval` and `p2o evolve`: named tasks or custom data, with their scorers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from datasets import Dataset

from p2o.cli.arguments import limit_verifiers
from p2o.cli.data import gold_checks, split_of
from p2o.cli.defaults import EMBEDDED, WORKED
from p2o.cli.errors import InputError
from p2o.cli.frozen_options import FrozenArguments
from p2o.cli.functions import load_function
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.scorers import reward_scorer, scorer
from p2o.evaluation.types import QuestionSet, ScoreFn
from p2o.images import COLUMNS, image_columns
from p2o.pico import world
from p2o.tasks import DataError, is_task, load_splits, load_task, questions, verifier_of
from p2o.tasks.image_columns import with_stored_images
from p2o.tasks.named import Verifier
from p2o.thoughts import ThoughtReading, thought_reading
from p2o.verifiers import check_solutions
from p2o.verifiers.rewards import ANSWER_FORMATS


def load_questions(arguments: FrozenArguments, say: Any, *, takes_images: bool = False) -> list[QuestionSet]:
    """The questions that the options name, each task with its scorer.

    Args:
        say: called with a line about what was dropped.
        takes_images: whether the command shows a model the images of questions.

    Raises:
        InputError: no such task or data, or data that cannot be used.
    """
    limit_verifiers(arguments)
    custom = None
    if arguments.reward_func:
        custom = reward_scorer(load_function(arguments.reward_func, "reward_funcs"), arguments.reward_func)
    try:
        if arguments.dataset_name:
            loaded = [_custom_questions(arguments, custom, say)]
            if arguments.shows_images and (not takes_images or arguments.use_vllm):
                field = arguments.image_column or next(name for name in COLUMNS if name in loaded[0].rows[0])
                by, leave = ("--use_vllm", "Leave it out, or remove") if takes_images else ("this command", "Remove")
                raise InputError(
                    f"{arguments.dataset_name} has images, which {by} does not show to a model. {leave} the field "
                    f"`{field}`."
                )
        else:
            loaded = []
            for name in dict.fromkeys(part.strip() for part in str(arguments.tasks).split(",") if part.strip()):
                task = load_task(
                    name, seed=arguments.data_seed, limit=arguments.limit, answer_format=arguments.answer_format
                )
                rows = list(task.dataset)
                if task.verifier == "math" and custom is None:
                    rows = _readable(task.name, rows, say)
                loaded.append(
                    QuestionSet(task.name, rows, custom or scorer(task.verifier), _format(custom, task.verifier))
                )
    except DataError as error:
        raise InputError(str(error)) from error
    if not loaded:
        raise InputError(f"--tasks {arguments.tasks!r} names no task.")
    return loaded


def reading_thoughts(
    tasks: Sequence[QuestionSet], arguments: FrozenArguments, model: FrozenModel
) -> tuple[list[QuestionSet], ThoughtReading]:
    """The questions with scorers that read completions of this model as `--thoughts` has it, and that reading."""
    reading = thought_reading(arguments.thoughts, model.tokenizer, model.template_options)
    return [replace(task, score=reading.given_to(task.score)[0]) for task in tasks], reading


def reward_name(arguments: FrozenArguments, task: str) -> str:
    """The reward function of training that judges as the task is judged here."""
    return arguments.reward_func or (verifier_of(task) if is_task(task) else arguments.verifier or "math")


def _format(custom: ScoreFn | None, verifier: Verifier) -> str:
    return "" if custom is not None else ANSWER_FORMATS.get(verifier, "")


def _custom_questions(arguments: FrozenArguments, custom: ScoreFn | None, say: Any) -> QuestionSet:
    """The questions of `--dataset`, as `p2o train` would have them."""
    name = str(arguments.dataset_name)
    if name == EMBEDDED:
        rows = list(world.train_dataset(arguments.data_seed).remove_columns(WORKED))
        return QuestionSet(EMBEDDED, rows[: arguments.limit], custom or scorer("pico"))
    source, verifier, conflicts, mapping = _source(arguments, name)
    dataset, report = questions(
        source,
        system_prompt=arguments.system_prompt,
        as_chat=arguments.prompts_as_chats,
        conflicts=arguments.conflicts or conflicts,
        name=name,
        **mapping,
        **gold_checks([verifier] if custom is None else [], name),
    )
    if problem := report.error_message():
        raise InputError(problem)
    for line in (*report.notes, *([report.line()] if report.findings else [])):
        say(line)
    if custom is None and "solution" not in dataset.column_names:
        raise InputError(f"{name} has no gold answers; name their column with --solution_column.")
    rows = list(with_stored_images(dataset.select(range(min(len(dataset), arguments.limit or len(dataset))))))
    arguments.shows_images = bool(image_columns(dataset))
    return QuestionSet(name, rows, custom or scorer(verifier), _format(custom, verifier))


def _source(arguments: FrozenArguments, name: str) -> tuple[Dataset, Verifier, str, dict[str, Any]]:
    """The rows of `--dataset`, their verifier, what to do about conflicts, and how columns are mapped.

    A named set is what `p2o train` trains on under that name: of reasoning-gym its training split, which `--tasks`,
    for evaluation, does not have.

    Raises:
        InputError: `--verifier` for a named set, which brings its own; no such split.
        DataError: no such data.
    """
    if is_task(name):
        if arguments.verifier:
            raise InputError(f"--verifier is for data of your own; {name} brings its own.")
        drawn: dict[str, Any] = {
            "seed": arguments.data_seed,
            "limit": arguments.limit,
            "answer_format": arguments.answer_format,
        }
        task = load_task(name, split="train", **drawn)
        return task.dataset, task.verifier, "drop", {}
    splits = load_splits(name, arguments.dataset_config, arguments.dataset_revision, arguments.image_column)
    mapping = {
        "prompt_column": arguments.prompt_column,
        "solution_column": arguments.solution_column,
        "image_column": arguments.image_column,
        "answer_format": arguments.answer_format,
        "cut_last_answer": arguments.cut_last_answer,
    }
    verifier = cast(Verifier, arguments.verifier or "math")
    return split_of(splits, arguments.dataset_split, name), verifier, "stop", mapping


def _readable(name: str, rows: list[dict[str, Any]], say: Any) -> list[dict[str, Any]]:
    """The rows whose gold answers can be verified against; `say` is called with a line about the others."""
    bad = set(check_solutions([row["solution"] for row in rows]))
    if bad:
        shown = ", ".join(map(str, sorted(bad)[:5])) + (", …" if len(bad) > 5 else "")
        say(f"{name}: {len(bad)} of {len(rows)} questions dropped: their gold answers cannot be parsed (rows {shown}).")
    return [row for index, row in enumerate(rows) if index not in bad]
