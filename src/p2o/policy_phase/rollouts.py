"""Who is sampled under what: the plan of a generation batch, made where the batch begins and never changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from p2o.policy_phase.policy_tokens import policy_tokens
from p2o.policy_phase.reuse import Kept, KeptRollout, padded
from p2o.policy_phase.rewards import Rewards
from p2o.templates import Prompt, Template, Tokenize, apply_template

Completions = tuple[list[list[int]], list[list[float]] | None]
"""Tokens, and the log-probabilities that they were sampled with, where the engine returns them."""


@dataclass(frozen=True)
class RolloutPlan:
    """What each row of this process's part of a batch is sampled under.

    Args:
        questions: of all processes' rows, as rows of the training set; K consecutive ones are a group. Empty in
            evaluation.
        templates: of each row of this process; "" for a bare rollout.
        kept: the rollout that takes the place of a sampled one; None where one is sampled.
        contexts: tokens of T(x, z); empty where no process has rows of two contexts, and TRL generates from x.
        repeats: rows at the end that only fill up a batch of an evaluation.
        position: of templates in their prompts.
    """

    questions: tuple[int, ...]
    templates: tuple[str, ...]
    kept: tuple[KeptRollout | None, ...]
    contexts: tuple[list[int], ...] = ()
    repeats: int = 0
    position: str = "user"

    @classmethod
    def bare(cls, questions: Sequence[int], rows: int) -> "RolloutPlan":
        """Plain GRPO, and evaluation: all of the `rows` are sampled from x."""
        return cls(tuple(questions), ("",) * rows, (None,) * rows)

    @classmethod
    def draw(
        cls,
        questions: Sequence[int],
        mine: slice,
        *,
        num_generations: int,
        assignment: Mapping[int, Sequence[int | None]],
        templates: Sequence[Template],
        kept: Kept,
        position: str = "user",
    ) -> "RolloutPlan":
        """The assignment of this epoch for this process's rows, `mine`; without contexts yet.

        The last rollouts of a group are kept ones, as far as there are any.
        """
        drawn_templates, drawn_kept = [], []
        for row, question in enumerate(questions[mine], start=mine.start):
            place = row % num_generations
            stock, from_end = kept.get(question, []), num_generations - 1 - place
            reused = stock[from_end] if from_end < len(stock) else None
            index = assignment[question][place] if question in assignment else None
            template = reused.template if reused else "" if index is None else templates[index].text
            drawn_templates.append(template)
            drawn_kept.append(reused)
        return cls(tuple(questions), tuple(drawn_templates), tuple(drawn_kept), position=position)

    def fitted(self, prompts: Sequence[Prompt], tokenize: Tokenize, max_length: int | None) -> "RolloutPlan":
        """With the contexts of these prompts, and without templates that do not fit their question."""
        contexts, used = contexts_within(prompts, self.templates, tokenize, max_length, self.position)
        return replace(self, templates=tuple(used), contexts=tuple(contexts))

    @property
    def two_contexts(self) -> bool:
        """Whether rows of the batch, of whichever process, may be sampled under another context than x."""
        return bool(self.contexts)

    def templates_in_use(self) -> int:
        """Rows with a template."""
        return sum(map(bool, self.templates))

    def prompts(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """T(x, z) of each row."""
        return [apply_template(*row, self.position) for row in zip(prompts, self.templates, strict=True)]

    def sampled_rows(self) -> list[int]:
        """Rows whose rollout is sampled now."""
        return [row for row, kept in enumerate(self.kept) if kept is None]

    def is_sampled(self, device: torch.device) -> Bool[Tensor, " batch"]:
        real = len(self.kept) - self.repeats
        return torch.tensor([kept is None and row < real for row, kept in enumerate(self.kept)], device=device)

    def is_templated(self, device: torch.device) -> Bool[Tensor, " batch"]:
        """Rows of two contexts: kept ones, too, since it is another policy that has sampled them."""
        rows = zip(self.templates, self.kept, strict=True)
        return torch.tensor([bool(z) or kept is not None for z, kept in rows], device=device)

    def with_kept_rollouts(
        self, completion_ids: Sequence[list[int]], logprobs: Sequence[list[float]] | None
    ) -> Completions:
        """Completions of all rows, and their log-probabilities: the sampled ones, given in order, and the kept ones."""
        ids = iter(completion_ids)
        all_ids = [next(ids) if k is None else k.completion_ids for k in self.kept]
        if logprobs is None:
            return all_ids, None
        sampled = iter(logprobs)
        return all_ids, [next(sampled) if k is None else k.sampled_logps.tolist() for k in self.kept]

    def fill_kept(self, logps: Float[Tensor, "batch completion"], of: str) -> None:
        """Puts those of the kept rollouts, their `bare_logps` or `sampled_logps`, into their rows."""
        rows = ~self.is_sampled(logps.device)
        if rows.any():
            values = [getattr(kept, of) for kept in self.kept if kept is not None]
            logps[rows] = padded(values, logps.size(1)).to(logps)

    def tokens_spent(self, batch: dict[str, Tensor]) -> tuple[int, int]:
        """Prompt and completion tokens of the sampled rows. A kept one was paid for when it was sampled.

        What tools returned was read, not written.
        """
        sampled = self.is_sampled(batch["prompt_mask"].device)
        if self.contexts:
            read = sum(len(self.contexts[row]) for row in self.sampled_rows())
        else:
            read = int(batch["prompt_mask"][sampled].sum())
        lengths = batch["completion_mask"].sum(1)
        # Truncated completions, whose mask TRL clears on request, have the full length.
        lengths[lengths == 0] = batch["completion_mask"].size(1)
        returned = (batch["completion_mask"] - policy_tokens(batch)).sum(1)
        return read + int(returned[sampled].sum()), int((lengths - returned)[sampled].sum())


@dataclass(frozen=True)
class Batch:
    """The generation batch under way: its plan, and once it is scored what all processes' rows earned."""

    plan: RolloutPlan
    rewards: Rewards | None = None

    def plan_and_rewards(self) -> tuple[RolloutPlan, Rewards]:
        assert self.rewards is not None, "TRL scores a batch that it has generated"
        return self.plan, self.rewards


def contexts_within(
    prompts: Sequence[Prompt],
    templates: Sequence[str],
    tokenize: Tokenize,
    max_length: int | None,
    position: str = "user",
) -> tuple[list[list[int]], list[str]]:
    """Tokens of T(x, z) for each prompt, and the template really used: "" where it would exceed `max_length` tokens."""
    used = list(templates)
    contexts = [
        list(ids) for ids in tokenize([apply_template(p, z, position) for p, z in zip(prompts, used, strict=True)])
    ]
    long = [row for row, ids in enumerate(contexts) if used[row] and max_length is not None and len(ids) > max_length]
    if long:
        # All of them: with environments it depends on the place of a prompt which tools are described in it.
        bare = tokenize(list(prompts))
        for row in long:
            contexts[row], used[row] = list(bare[row]), ""
    return contexts, used
