"""Rollouts of evolution by the policy in training: sampled and scored as the policy phase would, by all processes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from trl.data_utils import is_conversational

from p2o.completions import Decoded, in_conversation
from p2o.config import P2OConfig
from p2o.engines.decoding import decode
from p2o.engines.processes import is_sharded, run_in_batches, share
from p2o.policy_phase.rewards import Rewards, Scoring
from p2o.policy_phase.rollouts import contexts_within
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.types import Question, Rollout
from p2o.seeding import derive_seed, random_stream
from p2o.templates import Prompt, Tokenize, apply_template

FeedbackFn = Callable[[str, dict[str, Any]], str]
"""`feedback_func(completion, row)`: what to tell the reflection model.

`completion` is what was said last; `row` is the dataset's plus its `reward` and, of a chat, the `conversation`: the
completion's messages, with calls of tools and what they returned.
"""

Request = tuple[Question, str]
"""A question and the template that it is to be tried under."""


@dataclass(frozen=True)
class Generated:
    """One completion.

    Args:
        conversation: its messages, where there are tools.
        written: tokens of it that the policy wrote, where others are what tools returned; None for all of them.
        fields: what a user's `rollout_func` returned beside it, for reward functions.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    conversation: list[dict[str, Any]] | None = None
    written: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> tuple[int, int]:
        """Read, and written by the policy."""
        length = len(self.completion_ids)
        written = length if self.written is None else self.written
        return len(self.prompt_ids) + length - written, written


@dataclass(frozen=True)
class PolicyRollouts:
    """Generates and scores one completion a request, from random streams of its own.

    All processes call it and take part in it; only the first, which evolves, gets something back.

    Args:
        dataset: the training set.
        tokenizer: decodes completions.
        max_prompt_length: of T(x, z), in tokens; None for no limit.
        tokenize: prompts, as they are generated from.
        generate: one completion for each prompt; gets T(x, z) and its tokens.
        judge: `judge(rows, prompts, completions, completion_ids)`: what each reward function says, over all processes.
        scoring: what that means.
        feedback: `feedback(completion, row)`: what to say about it to the reflection model.
        count: `count(event, times)`: takes note of an incident.
    """

    args: P2OConfig
    accelerator: Accelerator
    dataset: Any
    tokenizer: Any
    max_prompt_length: int | None
    tokenize: Tokenize
    generate: Callable[[list[Prompt], list[list[int]]], list[Generated]]
    judge: Callable[..., Tensor]
    scoring: Scoring
    feedback: FeedbackFn
    count: Callable[[str, int], None]

    def __call__(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        rows = [dict(self.dataset[question.id]) for question, _ in requests]
        prompts, asked = [row["prompt"] for row in rows], [template for _, template in requests]
        contexts, used = contexts_within(prompts, asked, self.tokenize, self.max_prompt_length)
        self.count("template_too_long_for_question", sum(map(bool, asked)) - sum(map(bool, used)))
        templated = [apply_template(prompt, template) for prompt, template in zip(prompts, used, strict=True)]
        generated = self._generate(templated, contexts, seed)
        for row, one in zip(rows, generated, strict=True):
            row.update(one.fields)
        mine = share(self.accelerator, len(rows))
        # Each is decoded once, by the process that scores it: of thousands of tokens that takes longer than all else.
        decoded = self._decode([generated[i] for i in mine], chat=is_conversational({"prompt": prompts[0]}))
        rewards = self._score([rows[i] for i in mine], [generated[i] for i in mine], decoded, len(rows), seed)
        texts = [(one.text, one.answer, _notes(one)) for one in decoded]
        if self.accelerator.num_processes > 1:
            texts = gather_object(texts)
        if not self.accelerator.is_main_process:
            return []
        # Without the reward that decides success a rollout is not scored, whatever the others say.
        totals = rewards.total.masked_fill(rewards.unscored, torch.nan).tolist()
        earned = [None if math.isnan(total) else total for total in totals]
        solved = rewards.successes.tolist()
        return [
            Rollout(
                completion=text,
                reward=earned[i],
                solved=solved[i],
                feedback=""
                if earned[i] is None
                else partial(self.feedback, answer, {**rows[i], **note, "reward": earned[i]}),
                prompt_tokens=one.tokens[0],
                completion_tokens=one.tokens[1],
                template=used[i],
                completion_ids=list(one.completion_ids) if self.args.reused_rollouts_per_group else [],
            )
            for i, ((text, answer, note), one) in enumerate(zip(texts[: len(generated)], generated, strict=True))
        ]

    def _generate(self, prompts: list[Prompt], contexts: list[list[int]], seed: int) -> list[Generated]:
        # vLLM makes its own batches, the larger its queue the better.
        everything = len(share(self.accelerator, len(prompts)))
        with torch.no_grad():
            return run_in_batches(
                self.accelerator,
                lambda rows, stream: self.generate([prompts[i] for i in rows], [contexts[i] for i in rows]),
                list(range(len(prompts))),
                batch_size=everything if self.args.use_vllm else self.args.prompt_phase_batch_size,
                seed=seed,
                halve=not self.args.use_vllm and not is_sharded(self.accelerator),
                count=self.count,
            )

    def _decode(self, generated: list[Generated], *, chat: bool) -> list[Decoded]:
        ids = [one.completion_ids for one in generated]
        decoded = decode(self.tokenizer, [one.prompt_ids for one in generated], ids, [chat] * len(ids))
        return [
            one if of.conversation is None else in_conversation(one, of.conversation)
            for one, of in zip(decoded, generated, strict=True)
        ]

    def _score(
        self, rows: list[dict[str, Any]], generated: list[Generated], decoded: list[Decoded], total: int, seed: int
    ) -> Rewards:
        """Rewards of all processes' requests, `total` without padding, of which this process scores these.

        A reward model is given as many at once as in the policy phase, for which its memory has to suffice.
        """
        prompts, completions = [row["prompt"] for row in rows], [one.completion for one in decoded]
        columns = (rows, prompts, completions, [one.completion_ids for one in generated])
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        batches = [slice(start, start + size) for start in range(0, len(rows), size)]
        with random_stream(derive_seed(seed, "rewards")):
            judged = [self.judge(*(column[batch] for column in columns)) for batch in batches]
        # Each has the rows of the first process, then those of the second; in all, a process's rows follow each other.
        processes = self.accelerator.num_processes
        by_process = [by_function.chunk(processes) for by_function in judged]
        parts = [chunks[process] for process in range(processes) for chunks in by_process]
        return self.scoring.rewards(torch.cat(parts)[:total])


def _notes(decoded: Decoded) -> dict[str, Any]:
    """What feedback is told of a completion beside its text."""
    notes: dict[str, Any] = {"thought_taken_out": decoded.thought_taken_out}
    return notes if isinstance(decoded.completion, str) else {**notes, "conversation": decoded.completion}


def generated_by(output: dict[str, Any], count: int) -> list[Generated]:
    """What a user's `rollout_func` returned for `count` prompts; its further fields as TRL deals them out.

    Raises:
        ValueError: it lacks something, or has not one completion a prompt.
    """
    missing = {"prompt_ids", "completion_ids"} - output.keys()
    if missing:
        raise ValueError(f"rollout_func must return {sorted(missing)} in its output dict.")
    if len(output["completion_ids"]) != count:
        raise ValueError(
            f"rollout_func returned {len(output['completion_ids'])} completions for {count} prompts. In the prompt "
            "phase every prompt is another one: return one completion for each, in their order."
        )
    own = ("prompt_ids", "completion_ids", "logprobs", "env_mask")
    further = {name: values for name, values in output.items() if name not in own}
    generated = []
    for i, ids in enumerate(output["completion_ids"]):
        fields = {
            n: v[i] if isinstance(v, list) else v for n, v in further.items() if not isinstance(v, list) or i < len(v)
        }
        generated.append(Generated(list(output["prompt_ids"][i]), list(ids), fields=fields))
    return generated


def default_feedback(solution_column: str) -> FeedbackFn:
    """Wrong or right, the gold answer of this column, the reward."""

    def feedback(completion: str, row: dict[str, Any]) -> str:
        solution = str(row.get(solution_column, ""))
        return rollout_feedback(reward=row["reward"], extracted=completion, solution=solution)

    return feedback
