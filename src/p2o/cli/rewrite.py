"""`p2o rewrite`: backward rewrites of the questions of a data set, verified as far as they can be, to train on."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from p2o.cli.errors import InputError
from p2o.cli.frozen import open_directory, run
from p2o.cli.frozen_answers import AnswerArguments, answer_in, answer_settings
from p2o.cli.frozen_options import parse
from p2o.cli.frozen_questions import load_questions, reward_name
from p2o.difficulty.profile import ProfileError, read_profile
from p2o.difficulty.rewrites import WORDINGS
from p2o.difficulty.rewriting import (
    Rejected,
    Rewritten,
    judged_by_model,
    reasons,
    rewritten,
    without_repetitions,
)
from p2o.difficulty.selection import parse_selection, rows_among
from p2o.evaluation.results import question_key, questions_digest
from p2o.evaluation.types import QuestionSet
from p2o.files import write_whole
from p2o.options import check_ranges
from p2o.ranks import Ranks
from p2o.state import write_json
from p2o.tasks.gym import ANSWER
from p2o.tasks.named import BOXED
from p2o.verifiers.rewards import ANSWER_FORMATS

REWRITES, REJECTED, SUMMARY = "rewrites.jsonl", "rejected.jsonl", "rewrites.json"
UNVERIFIED = "nothing verified that it is determined"


@dataclass
class RewriteArguments(AnswerArguments):
    """Options of `p2o rewrite`; those of a model are of the one that verifies."""

    difficulty_profile: str | None = field(
        default=None,
        metadata={"help": "Profile of the questions that `p2o profile` wrote: the file, or its directory."},
    )
    difficulty: str | None = field(
        default=None,
        metadata={
            "help": "Which of the profile's questions to rewrite, as in training: 'hard', '0.1-0.6', 'row:17', …"
        },
    )
    wordings: int = field(default=len(WORDINGS), metadata={"help": "Rewrites of each number, from 1 to 2."})
    repeated: bool = field(
        default=False,
        metadata={"help": "Whether to ask for numbers whose value the question states a second time."},
    )
    agreement: float = field(
        default=0.5,
        metadata={
            "help": "Least share of the answers of --model that have to be the number, in (0, 1], where no solver can "
            "tell whether it is determined; no other answer may be more frequent."
        },
    )
    keep_unverified: bool = field(
        default=False, metadata={"help": "Whether to keep rewrites that neither a solver nor a model verified."}
    )

    def check(self) -> None:
        super().check()
        check_ranges(self, {"agreement": "(0, 1]"})
        if not 1 <= self.wordings <= len(WORDINGS):
            raise ValueError(f"wordings={self.wordings} must be from 1 to {len(WORDINGS)}.")
        if (self.difficulty is None) != (self.difficulty_profile is None):
            raise ValueError("--difficulty and --difficulty_profile, the file of `p2o profile`, go together.")
        if self.difficulty is not None:
            parse_selection(self.difficulty)


def rewrite(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: nothing to train on, 2: bad input, 130: interrupted)."""
    return run(_rewrite, argv)


@dataclass(frozen=True)
class Found:
    """What became of the questions.

    Args:
        kept, open: rewrites that are verified, and those that are not yet.
    """

    kept: list[Rewritten]
    open: list[Rewritten]
    rejected: list[Rejected]


def _rewrite(argv: list[str], console: Console, ranks: Ranks) -> int:
    arguments = parse(
        RewriteArguments,
        argv,
        prog="p2o rewrite",
        description="Writes backward rewrites of questions: a number is replaced by a letter, the answer is stated, "
        "and the number is asked for. Those of which it is shown that the number is determined can be trained on.",
        takes_dataset=True,
        needs_model=False,
    )
    tasks = load_questions(arguments, console.print)
    if len(tasks) > 1:
        raise InputError("p2o rewrite takes one set of questions at a time: its file is trained on with one verifier.")
    task = tasks[0]
    selected = _selected(task, arguments)
    found = _found(task, selected, arguments)
    unsolved = replace(task, rows=[one.row for one in found.open])
    settings = _settings(task, unsolved, selected, arguments)
    directory = open_directory(
        arguments.output_dir, "rewrite", arguments.model or task.name.replace(":", "-"), settings
    )
    if found.open and arguments.model:
        samples = answer_in(directory, settings, [unsolved], arguments, console, ranks).samples[task.name]
        agreed, refused = judged_by_model(found.open, samples, arguments.agreement)
        found = Found([*found.kept, *agreed], [], [*found.rejected, *refused])
    if found.open and not arguments.keep_unverified:
        refused = [Rejected(one.of_row, one.text, one.asked_for, UNVERIFIED) for one in found.open]
        found = Found(found.kept, [], [*found.rejected, *refused])
    code = _write(directory, task.name, len(selected), found, console)
    if not code:
        advice = f"p2o train --dataset {directory / REWRITES} --reward_funcs {reward_name(arguments, task.name)}"
        console.print(f"Train on them: {advice}", markup=False, soft_wrap=True)
    return code


def _selected(task: QuestionSet, arguments: RewriteArguments) -> list[int]:
    """Rows of the questions to rewrite.

    Raises:
        InputError: a profile that cannot be used, or of other questions.
    """
    if arguments.difficulty is None or arguments.difficulty_profile is None:
        return list(range(len(task.rows)))
    try:
        profile = read_profile(arguments.difficulty_profile)
        wanted = parse_selection(arguments.difficulty).rows_of(profile)
        again = f"Name them as you did for `p2o profile {profile.model}`."
        keys = list(map(question_key, task.rows))
        return rows_among(keys, profile, wanted, arguments.difficulty_profile, "data set", again)
    except ProfileError as error:
        raise InputError(str(error)) from None


def _found(task: QuestionSet, selected: Sequence[int], arguments: RewriteArguments) -> Found:
    """Rewrites of the selected questions, with the verdict of a solver where there is one."""
    endings = [text for text in (arguments.answer_format, BOXED, ANSWER, *ANSWER_FORMATS.values()) if text]
    made: list[Rewritten] = []
    rejected: list[Rejected] = []
    for row in selected:
        mine, refused = rewritten(
            task.rows[row], row, endings=endings, wordings=arguments.wordings, repeated=arguments.repeated
        )
        made += mine
        rejected += refused
    made, again = without_repetitions(made)
    solved = [one for one in made if one.verified_by]
    return Found(solved, [one for one in made if not one.verified_by], [*rejected, *again])


def _settings(
    task: QuestionSet, unsolved: QuestionSet, selected: Sequence[int], arguments: RewriteArguments
) -> dict[str, Any]:
    """What the files depend on; a directory is only written again under the same settings."""
    own = {
        "rewritten": {task.name: questions_digest([question_key(task.rows[row]) for row in selected])},
        **{name: getattr(arguments, name) for name in ("wordings", "repeated", "agreement", "keep_unverified")},
    }
    return {**answer_settings(arguments, [unsolved]), **own} if arguments.model else own


def _write(directory: Path, name: str, questions: int, found: Found, console: Console) -> int:
    """Writes and prints what was found; returns the exit code."""
    kept = sorted([*found.kept, *found.open], key=lambda one: one.of_row)
    verified = Counter(one.verified_by or "nothing" for one in kept)
    able, rejected = len({one.of_row for one in kept}), dict(reasons(found.rejected))
    summary = {"questions": questions, "with_rewrites": able, "rewrites": len(kept)}
    write_whole(directory / REWRITES, _lines(one.to_row() for one in kept))
    write_whole(directory / REJECTED, _lines(map(asdict, sorted(found.rejected, key=lambda one: one.row))))
    write_json(directory / SUMMARY, {**summary, "verified_by": dict(verified), "rejected": rejected})
    said = ", ".join(f"{count} verified by {'a ' * (by != 'nothing')}{by}" for by, count in verified.items())
    made_of = f"{able} of {questions} questions of {name}"
    console.print(f"{len(kept)} rewrites of {made_of}{f' ({said})' if said else ''}.", markup=False)
    table = Table(title="Rejected")
    table.add_column("reason")
    table.add_column("times", justify="right")
    for reason, count in rejected.items():
        table.add_row(reason, str(count))
    if found.rejected:
        console.print(table)
    files = " · ".join(str(directory / file) for file in (REWRITES, REJECTED, SUMMARY))
    console.print(files, markup=False, soft_wrap=True)
    if UNVERIFIED in rejected:
        console.print(
            f"{UNVERIFIED[0].upper()}{UNVERIFIED[1:]} of some: name a --model whose answers tell, or keep them with "
            "--keep_unverified true."
        )
    return 0 if kept else 1


def _lines(records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
