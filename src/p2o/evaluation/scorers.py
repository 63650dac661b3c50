"""Scorers of answers: verifiers, the embedded world's own, reward functions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from p2o.evaluation.types import UNSCORED, Judgement, Score, ScoreFn
from p2o.pico import world
from p2o.tasks.named import Verifier
from p2o.thoughts import MARKED, ThoughtReading
from p2o.verifiers import verify


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
        completions: list[str], rows: list[dict[str, Any]], thought_reading: ThoughtReading = MARKED
    ) -> Sequence[Judgement]:
        return verify(completions, rows, verifier, reading=thought_reading)

    return score


def _score_embedded(completions: list[str], rows: list[dict[str, Any]]) -> list[Score]:
    scores = []
    for completion, row in zip(completions, rows, strict=True):
        answer = world.extract_answer(completion)
        right = world.is_correct(completion, row["family"], row["entry"])
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
        completions: list[str], rows: list[dict[str, Any]], thought_reading: ThoughtReading = MARKED
    ) -> list[Score]:
        (read,) = thought_reading.given_to(function)
        columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
        prompts = [row["prompt"] for row in rows]
        answers: list[Any] = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for text, prompt in zip(completions, prompts, strict=True)
        ]
        rewards = read(prompts=prompts, completions=answers, **columns)
        if len(rewards) != len(rows) or any(not (r is None or isinstance(r, int | float)) for r in rewards):
            raise ScoringError(
                f"--reward_func {name}: {len(rows)} numbers are wanted, one a completion; got {rewards!r:.200}"
            )
        return [_score(reward) for reward in rewards]

    return score


def _score(reward: float | None) -> Score:
    if reward is None or math.isnan(reward):
        return Score(None, None, UNSCORED)
    return Score(float(reward), None, "right" if reward > 0 else "wrong")
