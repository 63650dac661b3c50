"""`p2o profile`: how hard each question is for a model, and what that means for training on them."""

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from p2o.cli.frozen import run
from p2o.cli.frozen_answers import TRANSCRIPTS, AnswerArguments, Answers, answer_all
from p2o.cli.frozen_options import parse
from p2o.cli.frozen_questions import reward_name
from p2o.cli.functions import load_function
from p2o.difficulty.buckets import MEDIUM, Cutoffs
from p2o.difficulty.profile import PROFILE, Profile, Question, profiled, reward_identity
from p2o.difficulty.summary import RULE, summarise
from p2o.prompt_phase.options import BudgetOptions
from p2o.ranks import Ranks
from p2o.reports.difficulty import buckets_table, draw, groups_table
from p2o.state import write_json

SUMMARY, PICTURE = "difficulty.json", "difficulty.svg"


@dataclass
class ProfileArguments(AnswerArguments, BudgetOptions):
    """Options of `p2o profile`; those of the prompt phase are the same as for training."""

    hard_at_most: float = field(
        default=Cutoffs.hard_at_most, metadata={"help": "The greatest pass rate of a hard question, in [0, 1)."}
    )
    easy_at_least: float = field(
        default=Cutoffs.easy_at_least,
        metadata={"help": "The least pass rate of an easy question, in (0, 1]. What lies between the two is medium."},
    )
    success_threshold: float = field(
        default=0.0, metadata={"help": "A rollout is a success when its reward is greater than this."}
    )

    def check(self) -> None:
        super().check()
        if self.n < 2:
            raise ValueError(
                f"--n {self.n}: one rollout of a question tells nothing about a group of them. Profile with as many as "
                "you would train with, such as --n 8."
            )
        self.check_budget()
        self.cutoffs  # raises  # noqa: B018

    @property
    def cutoffs(self) -> Cutoffs:
        return Cutoffs(self.hard_at_most, self.easy_at_least)


def profile(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    return run(_profile, argv)


def _profile(argv: list[str], console: Console, ranks: Ranks) -> int:
    arguments = parse(
        ProfileArguments,
        argv,
        prog="p2o profile",
        description="Samples n rollouts of every question, and says which questions are worth training on, how many "
        "groups would collapse, and which num_generations to choose.",
        takes_dataset=True,
    )
    found = answer_all(arguments, console, ranks, "profile")
    made = _profile_of(arguments, found)
    summary = summarise(made, arguments)
    directory = found.directory
    write_json(directory / PROFILE, made.to_dict())
    write_json(directory / SUMMARY, summary)
    draw(made, summary, directory / PICTURE)
    _print(made, summary, console)
    files = " · ".join(str(directory / name) for name in (SUMMARY, PICTURE, TRANSCRIPTS))
    console.print(files, markup=False, soft_wrap=True)
    if MEDIUM in made.buckets:
        advice = f"Train on a part: p2o train --difficulty_profile {directory / PROFILE} --difficulty {MEDIUM}"
        console.print(advice, markup=False, soft_wrap=True)
    return 0


def _profile_of(arguments: ProfileArguments, found: Answers) -> Profile:
    questions: list[Question] = []
    for task in found.tasks:
        questions += profiled(
            task.name, task.rows, found.samples[task.name], arguments.success_threshold, len(questions)
        )
    judged_by = {task.name: load_function(reward_name(arguments, task.name), "reward_funcs") for task in found.tasks}
    return Profile(
        model=arguments.model,
        settings=found.settings,
        success_threshold=arguments.success_threshold,
        rewards={task: reward_identity(function) for task, function in judged_by.items()},
        cutoffs=arguments.cutoffs,
        questions=tuple(questions),
    )


def _print(made: Profile, summary: dict[str, Any], console: Console) -> None:
    console.print(buckets_table(summary))
    console.print(f"Buckets by pass rate: {made.cutoffs}.", markup=False)
    if not summary["groups"]:
        console.print("No rollout could be scored, so nothing is known about groups: see the transcripts.")
        return
    console.print(groups_table(summary))
    console.print(f"Recommended num_generations: {summary['recommended_num_generations']}, {RULE}.")
    if any(not group["is_unbiased"] for group in summary["groups"].values()):
        console.print(
            f"≈: of groups larger than the {made.k} rollouts made; an estimate by a fitted distribution of pass rates."
        )
