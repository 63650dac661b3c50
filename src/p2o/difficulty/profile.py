"""The profile of a set of questions: what a model made of each, with all that says what it is a profile of. Pure."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from p2o.difficulty.buckets import Cutoffs
from p2o.evaluation.results import SHOWN_CHARACTERS, question_key, questions_digest
from p2o.evaluation.statistics import wilson
from p2o.evaluation.types import Sample
from p2o.prompt_phase.hard_samples import Outcome
from p2o.templates import question_text

PROFILE = "profile.json"
KIND, VERSION = "p2o difficulty profile", 1


class ProfileError(ValueError):
    """A profile that cannot be used; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class RewardIdentity:
    """What a reward function is recognised by.

    Args:
        function: `module:name`.
        source: digest of its own lines; None where they come with a release of P²O or TRL, or cannot be read.
    """

    function: str
    source: str | None = None


def reward_identity(function: Any) -> RewardIdentity:
    """Of a function, an object that is called like one, or a reward model, which is named or has a path."""
    if isinstance(function, str):
        return RewardIdentity(function)
    while isinstance(function, partial):
        function = function.func
    named = function if inspect.isroutine(function) else type(function)
    module, name = str(getattr(named, "__module__", "")), getattr(named, "__qualname__", repr(named))
    source = None
    if module.partition(".")[0] not in ("p2o", "trl"):
        try:
            source = hashlib.sha256(inspect.getsource(named).encode()).hexdigest()[:16]
        except (OSError, TypeError):  # typed in at a prompt, or not written in Python
            source = None
    return RewardIdentity(f"{module}:{name}", source)


@dataclass(frozen=True)
class Question:
    """What the model made of one question.

    Args:
        row: in the profile, from 0.
        task, place: the set that it belongs to, and its row there.
        key: a digest of prompt and gold answer, by which it is found among training questions.
        text: of the question, its beginning.
        rollouts: sampled, k.
        scored: of these.
        successes: of those scored, with a reward above the threshold.
        mean_length: tokens of a rollout; None where a server does not report them.
        cut_off: rollouts that reached the length limit.
    """

    row: int
    task: str
    place: int
    key: str
    text: str
    rollouts: int
    scored: int
    successes: int
    mean_length: float | None
    cut_off: int

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.successes, self.scored)

    @property
    def pass_rate(self) -> float | None:
        """In [0, 1], of the scored rollouts; None where there are none."""
        return self.successes / self.scored if self.scored else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the pass rate (Wilson); (0, 1) where nothing is known."""
        return wilson(self.pass_rate or 0.0, self.scored)

    def to_dict(self, cutoffs: Cutoffs) -> dict[str, Any]:
        low, high = self.interval
        derived = {"pass_rate": self.pass_rate, "low": low, "high": high, "bucket": cutoffs.bucket(self.outcome)}
        return {**asdict(self), **derived}


@dataclass(frozen=True)
class Profile:
    """Questions with what a model made of them.

    Args:
        model: as it was named.
        settings: under which it was sampled, as `p2o profile` records them; `n` and `questions` among them.
        success_threshold: a rollout succeeds when its reward is greater.
        rewards: of each task, what judged it.
    """

    model: str
    settings: Mapping[str, Any]
    success_threshold: float
    rewards: Mapping[str, RewardIdentity]
    cutoffs: Cutoffs
    questions: tuple[Question, ...] = field(repr=False)

    @property
    def k(self) -> int:
        """Rollouts of each question."""
        return int(self.settings["n"])

    @cached_property
    def buckets(self) -> tuple[str, ...]:
        """Of each question."""
        return tuple(self.cutoffs.bucket(question.outcome) for question in self.questions)

    @property
    def outcomes(self) -> list[Outcome]:
        return [question.outcome for question in self.questions]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "version": VERSION,
            "model": self.model,
            "settings": dict(self.settings),
            "success_threshold": self.success_threshold,
            "rewards": {task: asdict(reward) for task, reward in self.rewards.items()},
            "cutoffs": asdict(self.cutoffs),
            "questions": [question.to_dict(self.cutoffs) for question in self.questions],
        }


def profiled(
    name: str, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[Sample]], threshold: float, first: int
) -> list[Question]:
    """The questions of one task.

    Args:
        rows, samples: by question.
        threshold: a rollout succeeds when its reward is greater; one without a reward does not count.
        first: row of the first question in the profile.
    """
    made = []
    for place, (row, group) in enumerate(zip(rows, samples, strict=True)):
        rewards = [sample.reward for sample in group if sample.reward is not None]
        lengths = [sample.completion_tokens for sample in group if sample.completion_tokens is not None]
        made.append(
            Question(
                row=first + place,
                task=name,
                place=place,
                key=question_key(row),
                text=question_text(row["prompt"])[:SHOWN_CHARACTERS],
                rollouts=len(group),
                scored=len(rewards),
                successes=sum(reward > threshold for reward in rewards),
                mean_length=sum(lengths) / len(lengths) if lengths else None,
                cut_off=sum(sample.truncated for sample in group),
            )
        )
    return made


def read_profile(path: str | Path) -> Profile:
    """The profile in a file, or in a directory of `p2o profile`.

    Raises:
        ProfileError: no such file, not a profile, damaged or edited, or of a single rollout a question.
    """
    file = Path(path) / PROFILE if Path(path).is_dir() else Path(path)
    again = "Write it again: the same `p2o profile` command does, without sampling anew."
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise ProfileError(
            f"Cannot read the difficulty profile {file}: {error.strerror}. `p2o profile MODEL --dataset …` writes one "
            f"when it has finished, as {PROFILE} in its output directory."
        ) from None
    except ValueError as error:
        raise ProfileError(f"The difficulty profile {file} is damaged: {error}. {again}") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ProfileError(f"{file} is not a difficulty profile. `p2o profile MODEL --dataset …` writes {PROFILE}.")
    if data.get("version") != VERSION:
        raise ProfileError(f"{file} is of version {data.get('version')}, this release reads {VERSION}. {again}")
    try:
        profile = _of_dict(data)
        fault = _fault(profile, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        raise ProfileError(f"The difficulty profile {file} is damaged: {fault}. {again}")
    if profile.k < 2:
        raise ProfileError(
            f"{file} has one rollout of each question (k = 1), which tells nothing about groups. Profile again with "
            "--n 8."
        )
    return profile


def _of_dict(data: Mapping[str, Any]) -> Profile:
    derived = ("pass_rate", "low", "high", "bucket")
    return Profile(
        model=data["model"],
        settings=data["settings"],
        success_threshold=float(data["success_threshold"]),
        rewards={task: RewardIdentity(**reward) for task, reward in data["rewards"].items()},
        cutoffs=Cutoffs(**data["cutoffs"]),
        questions=tuple(Question(**{k: v for k, v in row.items() if k not in derived}) for row in data["questions"]),
    )


def _fault(profile: Profile, data: Mapping[str, Any]) -> str | None:
    """What does not agree within a profile, in words; None where all does."""
    for number, (question, row) in enumerate(zip(profile.questions, data["questions"], strict=True)):
        if not 0 <= question.successes <= question.scored <= question.rollouts:
            return (
                f"question {number} has {question.successes} successes in {question.scored} scored of "
                f"{question.rollouts} rollouts"
            )
        if question.row != number or question.task not in profile.rewards:
            return f"question {number} is row {question.row} of {question.task!r}, which is not its place"
        if row["bucket"] != profile.buckets[number] or row["pass_rate"] != question.pass_rate:
            return (
                f"question {number} is written down as {row['bucket']} with a pass rate of {row['pass_rate']}, but its "
                f"{question.successes} successes in {question.scored} are {profile.buckets[number]} by its cut-offs"
            )
    for task, recorded in profile.settings["questions"].items():
        keys = [question.key for question in profile.questions if question.task == task]
        if questions_digest(keys) != recorded:
            return f"its questions of {task!r} are not those that its fingerprint ({recorded}) was made of"
    return None
