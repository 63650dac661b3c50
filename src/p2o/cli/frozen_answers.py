"""n scored answers to every question by a frozen model: what `p2o eval` and `p2o profile` have in common."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from p2o.cli.console import Meter
from p2o.cli.frozen import load_model, model_settings, open_directory, refuse_long_questions
from p2o.cli.frozen_options import FrozenArguments
from p2o.cli.frozen_questions import load_questions, reading_thoughts
from p2o.evaluation.evaluate import evaluate
from p2o.evaluation.results import question_key, questions_digest
from p2o.evaluation.types import QuestionSet, Sample
from p2o.options import check_ranges
from p2o.ranks import Ranks

TRANSCRIPTS = "transcripts.jsonl"


@dataclass
class AnswerArguments(FrozenArguments):
    """How many answers to each question, and how many questions at once."""

    n: int = field(default=8, metadata={"help": "Answers to each question.", "aliases": ["--answers"]})
    questions_per_batch: int = field(
        default=16,
        metadata={"help": "Results are saved every this many questions; at most so many are lost when killed."},
    )

    def check(self) -> None:
        super().check()
        check_ranges(self, {"n": 1, "questions_per_batch": 1})
        if self.n > 1 and not self.temperature:
            raise ValueError("At --temperature 0 all answers to a question are the same: evaluate with --n 1.")


@dataclass(frozen=True)
class Answers:
    """The scored answers of one command.

    Args:
        directory: that of the command, with the transcripts.
        settings: under which they were sampled and scored; a directory is only resumed under the same ones.
        samples: of each task, of each question, its n answers.
    """

    directory: Path
    settings: dict[str, Any]
    tasks: list[QuestionSet]
    samples: dict[str, list[list[Sample]]]


def answer_all(
    arguments: AnswerArguments,
    console: Console,
    ranks: Ranks,
    kind: str,
    instruction: str = "",
    position: str = "user",
) -> Answers:
    """Samples and scores n answers to every question that the options name, or resumes.

    Args:
        kind: the command's name, also that of the folder of its directories.
        instruction: of each question; "" for bare ones.
        position: where it stands, see `apply_template`.

    Raises:
        InputError: a model, questions or a directory that cannot be used.
        GenerationError: completions that could not be had; what was finished before is kept.
    """
    tasks = load_questions(arguments, console.print, takes_images=True)
    settings = answer_settings(arguments, tasks)
    if instruction:
        settings |= {"instruction": instruction, "template_position": position}
        tasks = [replace(task, instruction=instruction, template_position=position) for task in tasks]
    directory = open_directory(arguments.output_dir, kind, arguments.model, settings)
    return answer_in(directory, settings, tasks, arguments, console, ranks)


def answer_settings(arguments: AnswerArguments, tasks: list[QuestionSet]) -> dict[str, Any]:
    """What answers depend on; a directory is only resumed under the same ones."""
    return {
        **model_settings(arguments),
        "sampling": asdict(arguments.sampling()),
        "n": arguments.n,
        "seed": arguments.seed,
        "questions_per_batch": arguments.questions_per_batch,
        "verifier": arguments.verifier,
        "reward_func": arguments.reward_func,
        "questions": {task.name: questions_digest([question_key(row) for row in task.rows]) for task in tasks},
    }


def answer_in(
    directory: Path,
    settings: dict[str, Any],
    tasks: list[QuestionSet],
    arguments: AnswerArguments,
    console: Console,
    ranks: Ranks,
) -> Answers:
    """Samples and scores n answers to every question of the tasks, or resumes from the directory's transcripts.

    Raises:
        InputError: a model or questions that cannot be used.
        GenerationError: completions that could not be had; what was finished before is kept.
    """
    model = load_model(arguments, ranks)
    tasks, _ = reading_thoughts(tasks, arguments, model)
    refuse_long_questions(tasks, model, arguments.sampling())
    count = sum(len(task.rows) for task in tasks)
    console.print(f"{count} questions × {arguments.n} answers by {arguments.model} · {directory}", markup=False)
    with Meter(console) as meter:
        samples = evaluate(
            tasks,
            model,
            arguments.sampling(),
            n=arguments.n,
            seed=arguments.seed,
            transcripts=directory / TRANSCRIPTS,
            questions_per_batch=arguments.questions_per_batch,
            on_progress=lambda done, total: meter.update("answers", done, total),
        )
    return Answers(directory, settings, tasks, samples)
