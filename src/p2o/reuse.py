"""Reuse of rollouts: successes of the prompt phase take the place of rollouts in the next epoch's groups.

Evolution samples hard questions with the present policy and, now and then, solves one; by itself it throws that away.
Such a rollout is older than the batch it joins: the policy has moved since. So it brings the log-probabilities of the
policy that sampled it, under both contexts, and its policy ratio does not start at 1.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from p2o.prompt_phase.types import Success


@dataclass(frozen=True)
class KeptRollout:
    """
    Args:
        template: under which it was sampled; "" for none.
        completion_ids: its tokens.
        bare_logps: log π(y_t|x, y_<t) of the policy that sampled it.
        sampled_logps: log π(y_t|T(x, z), y_<t) of the same policy.
    """

    template: str
    completion_ids: list[int]
    bare_logps: Float[Tensor, " completion"]
    sampled_logps: Float[Tensor, " completion"]

    def to_dict(self) -> dict[str, Any]:
        """Strings, lists and tensors only, as `torch.load(weights_only=True)` reads them."""
        return dict(vars(self))


def draw_successes(successes: Iterable[Success], per_question: int, rng: random.Random) -> dict[int, list[Success]]:
    """Up to `per_question` different successes of each question, drawn at random; questions in ascending order."""
    by_question: dict[int, dict[tuple[int, ...], Success]] = {}
    for success in successes:
        by_question.setdefault(success.question, {}).setdefault(tuple(success.completion_ids), success)
    return {
        question: rng.sample(list(found.values()), min(per_question, len(found)))
        for question, found in sorted(by_question.items())
    }


def padded(rows: Sequence[Float[Tensor, " completion"]], width: int) -> Float[Tensor, "rows width"]:
    """Rows of different lengths, zeros behind them."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
