"""The data of an evaluation. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from p2o.completions import Decoded
from p2o.images import question_prompt
from p2o.templates import Prompt, apply_template

RIGHT = "right"
UNSCORED = "unscored"


class Judgement(Protocol):
    """The result of scoring one completion, such as a [`p2o.verifiers.Verdict`].

    `reason` is "right" for a right answer, `reward` is None if it could not be scored.
    """

    @property
    def reward(self) -> float | None: ...
    @property
    def extracted(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Score:
    """A [`Judgement`] of a scorer that is not a verifier."""

    reward: float | None
    extracted: str | None
    reason: str


ScoreFn = Callable[[Sequence[Decoded], list[dict[str, Any]]], Sequence[Judgement]]
"""`score(completions, rows)`: a judgement of each completion of the question in its row."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one task with the scorer of the answers to them.

    Args:
        rows: with the column `prompt` and what `score` needs.
        answer_format: the form of an answer that the scorer expects, for feedback; "" where unknown.
        instruction: in front of every question, as a template in training; "" for none.
        template_position: where it stands, see `apply_template`.
    """

    name: str
    rows: list[dict[str, Any]]
    score: ScoreFn
    answer_format: str = ""
    instruction: str = ""
    template_position: str = "user"

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        """What a model is asked in these rows of it, images and instruction included.

        Raises:
            ValueError: a text, which has no system message for the instruction.
        """
        return [apply_template(question_prompt(row), self.instruction, self.template_position) for row in rows]


@dataclass(frozen=True)
class Sample:
    """One answer to one question, a line of the transcripts.

    Args:
        question: row of the task.
        sample: which of the n it is.
        extracted: the answer that was found in it.
        reward: None if it could not be scored, which does not count as wrong.
        prompt_tokens, completion_tokens: None where a server does not report them.
        truncated: whether the length limit cut it off.
        cost: US dollars, as far as prices are known.
    """

    task: str
    question: int
    sample: int
    completion: str
    extracted: str | None
    reward: float | None
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    truncated: bool
    cost: float = 0.0
