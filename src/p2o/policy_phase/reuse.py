"""Reuse of rollouts: successes of the prompt phase take the place of rollouts in the next epoch's groups.

Evolution samples hard questions with the present policy and sometimes solves one. Such a rollout is older than the
batch it joins: the policy has moved since. So it brings the log-probabilities of the policy that sampled it, under both
contexts, and its policy ratio does not start at 1.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from p2o.policy_phase.logprobs import CompletionLogprobs
from p2o.prompt_phase.types import Success
from p2o.templates import Tokenize, apply_template

REUSE_FILE = "p2o_reuse.pt"


@dataclass(frozen=True)
class KeptRollout:
    """A rollout of the prompt phase, kept for the next epoch.

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


Kept = dict[int, list[KeptRollout]]
"""Kept rollouts by question (row of the training set)."""


def draw_successes(successes: Iterable[Success], per_question: int, rng: random.Random) -> list[Success]:
    """Up to `per_question` different successes of each question, drawn at random; questions in ascending order."""
    by_question: dict[int, dict[tuple[int, ...], Success]] = {}
    for success in successes:
        by_question.setdefault(success.question, {}).setdefault(tuple(success.completion_ids), success)
    return [
        success
        for _, found in sorted(by_question.items())
        for success in rng.sample(list(found.values()), min(per_question, len(found)))
    ]


def keep(
    successes: Sequence[Success],
    dataset: Any,
    tokenize: Tokenize,
    logprobs: CompletionLogprobs,
    *,
    batch_size: int,
    position: str = "user",
) -> Kept:
    """The successes with the log-probabilities of the present policy, which has just sampled them.

    Args:
        dataset: the training set.
        batch_size: rollouts of one pass.
        position: of templates in their prompts.
    """
    kept: Kept = {}
    for start in range(0, len(successes), batch_size):
        part = successes[start : start + batch_size]
        prompts = [dataset[success.question]["prompt"] for success in part]
        under = zip(prompts, part, strict=True)
        templated = [apply_template(prompt, success.template, position) for prompt, success in under]
        completions = [success.completion_ids for success in part]
        both = [logprobs.of(tokenize(asked), completions) for asked in (prompts, templated)]
        for row, success in enumerate(part):
            end = len(success.completion_ids)
            logps = [values[row, :end].float().cpu().clone() for values in both]
            kept.setdefault(success.question, []).append(KeptRollout(success.template, success.completion_ids, *logps))
    return kept


def padded(rows: Sequence[Float[Tensor, " completion"]], width: int) -> Float[Tensor, "rows width"]:
    """Rows of different lengths, with zeros behind them."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])


def save_kept(kept: Kept, checkpoint: Path) -> None:
    if kept:
        torch.save({q: [k.to_dict() for k in rollouts] for q, rollouts in kept.items()}, checkpoint / REUSE_FILE)


def load_kept(checkpoint: Path) -> Kept:
    path = checkpoint / REUSE_FILE
    found = torch.load(path, weights_only=True) if path.exists() else {}
    return {question: [KeptRollout(**rollout) for rollout in rollouts] for question, rollouts in found.items()}
