"""Scorers of answers: verifiers, the embedded world's own, reward functions."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from p2o.completions import Decoded
from p2o.evaluation.types import UNSCORED, Judgement, Score, ScoreFn
from p2o.images import COLUMNS, opened, question_prompt
from p2o.pico import world
from p2o.tasks.named import Verifier
from p2o.thoughts import MARKED, ThoughtReading
from p2o.verifiers import verify
from p2o.verifiers.rewards import texts_to_verify

TRLS_OWN = ("prompt", "completion", "completion_ids")
"""Columns that TRL hands to reward functions from elsewhere than the rows."""


class ScoringError(ValueError):
    """A scorer that gives no verdict on an answer; the message says which and why."""


def scorer(verifier: Verifier) -> ScoreFn:
    """The verifier of this name, the same as in training.

    Raises:
        SolutionError: when called, a gold answer that cannot be read.
    """
    if verifier == "pico":
        return _score_embedded

    def score(
        completions: Sequence[Decoded], rows: list[dict[str, Any]], thought_reading: ThoughtReading = MARKED
    ) -> Sequence[Judgement]:
        texts = texts_to_verify([c.completion for c in completions], _ids(completions), thought_reading)
        return verify(texts, rows, verifier, reading=thought_reading)

    return score


def _ids(completions: Sequence[Decoded]) -> list[Sequence[int]] | None:
    """Their tokens; None where a server returned texts."""
    ids = [c.ids for c in completions if c.ids is not None]
    return ids if len(ids) == len(completions) else None


def _score_embedded(completions: Sequence[Decoded], rows: list[dict[str, Any]]) -> list[Score]:
    scores = []
    for completion, row in zip(completions, rows, strict=True):
        answer = world.extract_answer(completion.content)
        right = world.is_correct(completion.content, row["family"], row["entry"])
        scores.append(Score(float(right), answer, "right" if right else "wrong" if answer else "no answer"))
    return scores


def reward_scorer(function: Callable[..., Any], name: str) -> ScoreFn:
    """A reward function by TRL's convention as a scorer: more than 0 is right, None or NaN is not scored.

    Args:
        name: of the function, for messages.

    Raises:
        ScoringError: when called, rewards that are neither numbers nor None.
    """

    def score(
        completions: Sequence[Decoded], rows: list[dict[str, Any]], thought_reading: ThoughtReading = MARKED
    ) -> list[Score]:
        (read,) = thought_reading.given_to(function)
        columns: dict[str, Any] = {key: [row.get(key) for row in rows] for key in rows[0] if key not in TRLS_OWN}
        columns |= {key: list(map(_read, columns[key])) for key in COLUMNS if key in columns}
        if (ids := _ids(completions)) is not None and _takes(function, "completion_ids"):
            columns["completion_ids"] = ids
        prompts = list(map(question_prompt, rows))
        rewards = read(prompts=prompts, completions=[c.completion for c in completions], **columns)
        if len(rewards) != len(rows) or any(not (r is None or isinstance(r, int | float)) for r in rewards):
            raise ScoringError(
                f"--reward_func {name}: {len(rows)} numbers are wanted, one a completion; got {rewards!r:.200}"
            )
        return [_score(reward) for reward in rewards]

    return score


def _read(images: Any) -> Any:
    """The images of a row, or the one, as reward functions get them in training."""
    return list(map(opened, images)) if isinstance(images, list) else images and opened(images)


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes an argument of this name; true where it does not say."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return True
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _score(reward: float | None) -> Score:
    if reward is None or math.isnan(reward):
        return Score(None, None, UNSCORED)
    return Score(float(reward), None, "right" if reward > 0 else "wrong")
