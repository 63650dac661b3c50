"""The data of a prompt phase: what goes into it, what comes out. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from p2o.completions import Completion
from p2o.ledger import Ledger
from p2o.prompt_phase.selection import Trial, within_noise
from p2o.templates import Template

COMPONENT = "template"  # the one text of a GEPA candidate

Stage = Literal["seed", "feedback", "minibatch", "dev", "done"]

Reflection = Completion
"""What a reflection model answers: a completion of a reflection prompt. One with an `error` costs its proposal only."""


@dataclass(frozen=True)
class Question:
    """A hard question.

    Args:
        id: row in the training set.
        text: the bare question, for reflection and the guard.
        solution: gold answer as text, "" when the data has none.
        marked: the text with a mark in the place of each image, see [`p2o.images.marked_text`]; None without images,
            which stay in the training set.
    """

    id: int
    text: str
    solution: str
    marked: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the journal's fingerprint has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class _MadeOnce:
    """A text, or a function that makes it when it is first read: of most rollouts nobody reads what to say of them."""

    def __get__(self, owner: Any, kind: type) -> str:
        if owner is None:
            raise AttributeError("feedback has no default")
        value = vars(owner)["feedback"]
        if callable(value):
            vars(owner)["feedback"] = value = value()
        return str(value)

    def __set__(self, owner: Any, value: str | Callable[[], str]) -> None:
        vars(owner)["feedback"] = value


@dataclass(frozen=True)
class Rollout:
    """One completion of one question under one template.

    Args:
        reward: None where nobody could score it. It then counts as the lowest that was seen, so that no template gains
            by it, and nobody reflects on it.
        solved: mining's criterion of success.
        feedback: what to say about it; a function that makes it is called when it is first read.
        template: the one used, "" where the requested one did not fit the question.
        completion_ids: its tokens, where they are wanted for reuse.
    """

    completion: str
    reward: float | None
    solved: bool
    feedback: _MadeOnce = _MadeOnce()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    template: str = ""
    completion_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Success:
    """A rollout of evolution that solved its question, kept for reuse."""

    question: int
    template: str
    completion_ids: list[int]


class ReflectionError(Exception):
    """Raised by a [`ReflectionFn`] that can answer nothing at present: it ends the prompt phase, not the run.

    Any other exception counts as a mistake in the function and ends the run.

    Args:
        reason: what is wrong and what to do, without credentials.
        reflections: those that failed, for what they cost.
    """

    def __init__(self, reason: str, reflections: Sequence[Reflection] = ()) -> None:
        super().__init__(reason)
        self.reflections = list(reflections)


class RolloutFn(Protocol):
    """Samples and scores one completion for each (question, template), from a stream seeded by `seed`."""

    def __call__(self, requests: list[tuple[Question, str]], *, seed: int) -> list[Rollout]: ...


class ReflectionFn(Protocol):
    """Answers each reflection prompt, in their order.

    One with an attribute `sees_images` that is true is given `images=`, too: of each prompt the images that its marks
    ([`p2o.images.MARK`]) stand for, in their order. Others read a line in the place of each.

    Raises:
        ReflectionError: none can be had at present; evolution ends with the candidates that it has.
    """

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]: ...


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of one prompt phase.

    Args:
        budget: preset or number of rollouts, see [`p2o.prompt_phase.budget.metric_call_budget`]. It is checked at the
            start of an iteration: the last one may exceed it by its own 2 · parents · minibatch + accepted · dev
            rollouts. A repeated question under the same template counts, though it is not generated again.
        max_metric_calls: upper limit on top, what is left of a run's budget.
        parents_per_iteration: distinct parents of one iteration.
        feedback_minibatch_size: questions each parent reflects on.
        max_dev_questions: see [`p2o.prompt_phase.budget.split_hard_set`].
        max_template_length: in characters.
        selection_margin: by how much a template's solve rate has to be above the empty one's, in repeated rollouts, to
            be selected; None for the paper's rule, see [`p2o.prompt_phase.selection`].
        selection_rollouts: of every dev question in these, beyond the budget but within `max_metric_calls`.
        reflection_prompt_template: wording with `<curr_param>` and `<side_info>`; GEPA's own when None.
    """

    budget: str | int = "light"
    max_metric_calls: int | None = None
    parents_per_iteration: int = 16
    feedback_minibatch_size: int = 3
    max_dev_questions: int = 300
    max_template_length: int = 2000
    selection_margin: float | None = None
    selection_rollouts: int = 4
    reflection_prompt_template: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A template that GEPA kept; the first is the empty seed. Scores are by dev question."""

    index: int
    text: str
    parents: list[int]
    iteration: int
    dev_rewards: dict[int, float]
    dev_solved: dict[int, bool]

    def as_template(self) -> Template:
        """The template as selection takes it: mean dev reward, and the dev questions that it solves."""
        return Template(
            text=self.text,
            score=sum(self.dev_rewards.values()) / max(len(self.dev_rewards), 1),
            solves=frozenset(question for question, solved in self.dev_solved.items() if solved),
            candidate=self.index,
        )


@dataclass(frozen=True)
class EvolutionResult:
    """What a prompt phase found and what it spent.

    Args:
        rejections: reflections that became no candidate, by reason.
        events: counted incidents that lost nothing else.
        selected: templates for the next epoch, best first.
        trials: by candidate, the repeated rollouts that selection asked for; empty by the paper's rule.
        ended_early: why evolution ended before the budget was spent; None when it did not.
    """

    feedback_ids: list[int]
    dev_ids: list[int]
    candidates: list[Candidate]
    spent: Ledger
    iterations: int
    rejections: dict[str, int] = field(default_factory=dict)
    successes: list[Success] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    ended_early: str | None = None
    selected: list[Template] = field(default_factory=list)
    trials: dict[int, Trial] = field(default_factory=dict)

    def solved(self, candidate: int) -> dict[int, float]:
        """By dev question, the share of rollouts that solved it: of the trial where there was one, else of the one
        that evolution made."""
        if candidate in self.trials:
            return self.trials[candidate].solved
        return {question: float(solved) for question, solved in self.candidates[candidate].dev_solved.items()}

    @property
    def within_noise(self) -> bool:
        """Whether the selected set solves no more dev questions than the empty template but by chance."""
        compared = len(self.trials or self.candidates) - 1
        chosen = [self.solved(template.candidate) for template in self.selected]
        return bool(chosen) and within_noise(self.solved(0), chosen, compared)

    @property
    def metric_calls(self) -> int:
        return self.spent.metric_calls

    @property
    def reflections(self) -> int:
        return self.spent.rollouts["reflection"]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON, without the tokens of successes and the selected set, which is recorded beside it."""
        return {name: value for name, value in asdict(self).items() if name not in ("successes", "selected")}


@dataclass(frozen=True)
class EvolutionProgress:
    """Where evolution stands; `best_dev_score` is a mean reward over the dev questions."""

    stage: Stage
    iteration: int
    metric_calls: int
    max_metric_calls: int
    candidates: int
    best_dev_score: float
    best_template: str
    rejected: int
