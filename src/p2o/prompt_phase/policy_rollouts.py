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
from p2o.engines.environments import HUNG, NO_ENVIRONMENT, RAISED, Environments, Episode
from p2o.engines.processes import (
    all_reduce_max,
    is_sharded,
    judge_or_fail_together,
    local_slice,
    run_in_batches,
    share,
)
from p2o.images import question_prompt
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
class Tried:
    """What was said in one rollout.

    Args:
        text: all of it.
        answer: what feedback is about.
        notes: what else feedback is told.
        tokens: read, and written by the policy.
        template: the one used.
    """

    text: str
    answer: str
    notes: dict[str, Any]
    tokens: tuple[int, int]
    template: str
    completion_ids: list[int] = field(default_factory=list)


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
        converses: whether there are tools, so that a completion may have several turns.
        environments: None where there are none.
        bind: says which environments the next rows have that `generate` or `judge` is given, if any.
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
    converses: bool
    environments: Environments | None
    bind: Callable[[list[Episode]], None]

    def __call__(self, requests: Sequence[Request], seed: int) -> list[Rollout]:
        # Read once each: rollouts of a question share its images.
        read = {number: self.dataset[number] for number in {question.id for question, _ in requests}}
        rows = [dict(read[question.id]) for question, _ in requests]
        tried, rewards = (self._complete if self.environments is None else self._play)(requests, rows, seed)
        if not self.accelerator.is_main_process:
            return []
        # Without the reward that decides success a rollout is not scored, whatever the others say.
        totals = rewards.total.masked_fill(rewards.unscored, torch.nan).tolist()
        earned = [None if math.isnan(total) else total for total in totals]
        solved = rewards.successes.tolist()
        return [
            Rollout(
                completion=one.text,
                reward=earned[i],
                solved=solved[i],
                feedback=""
                if earned[i] is None
                else partial(self.feedback, one.answer, {**rows[i], **one.notes, "reward": earned[i]}),
                prompt_tokens=one.tokens[0],
                completion_tokens=one.tokens[1],
                template=one.template,
                completion_ids=one.completion_ids if self.args.reused_rollouts_per_group else [],
            )
            for i, one in enumerate(tried)
        ]

    def asked(self, row: int) -> Prompt:
        """The bare prompt of a row of the training set, with what its environment observes where there is one."""
        values = dict(self.dataset[row])
        if self.environments is None:
            return question_prompt(values)
        with self.environments.episodes([values], [row]) as (episode,):
            return episode.prompt

    def _complete(
        self, requests: Sequence[Request], rows: list[dict[str, Any]], seed: int
    ) -> tuple[list[Tried], Rewards]:
        """All of them are generated, then all of them are scored."""
        prompts, asked = [question_prompt(row) for row in rows], [template for _, template in requests]
        templated, contexts, used = self._templated(prompts, asked)
        self.count("template_too_long_for_question", sum(map(bool, asked)) - sum(map(bool, used)))
        generated = self._generate(templated, contexts, seed)
        for row, one in zip(rows, generated, strict=True):
            row.update(one.fields)
        mine = share(self.accelerator, len(rows))
        # Each is decoded once, by the process that scores it: of thousands of tokens that takes longer than all else.
        decoded = self._decode([generated[i] for i in mine], chat=is_conversational({"prompt": prompts[0]}))
        completions = [one.completion for one in decoded]
        ids = [generated[i].completion_ids for i in mine]
        columns: Any = ([rows[i] for i in mine], [prompts[i] for i in mine], completions, ids)
        by_function = self._score(lambda part: self.judge(*(column[part] for column in columns)), len(mine), seed)
        texts = list(map(_said, decoded))
        if self.accelerator.num_processes > 1:
            texts = gather_object(texts)
        tried = [
            Tried(*text, one.tokens, template, list(one.completion_ids))
            for text, one, template in zip(texts[: len(rows)], generated, used, strict=True)
        ]
        return tried, self.scoring.rewards(by_function[: len(rows)])

    def _templated(
        self, prompts: Sequence[Prompt], templates: Sequence[str]
    ) -> tuple[list[Prompt], list[list[int]], list[str]]:
        """T(x, z) of each, its tokens, and the template really used: "" where it does not fit."""
        where = self.args.template_position
        contexts, used = contexts_within(prompts, templates, self.tokenize, self.max_prompt_length, where)
        return [apply_template(*row, where) for row in zip(prompts, used, strict=True)], contexts, used

    def _generate(self, prompts: list[Prompt], contexts: list[list[int]], seed: int) -> list[Generated]:
        # vLLM makes its own batches, the larger its queue the better.
        everything = len(share(self.accelerator, len(prompts)))

        def generate(rows: list[int], stream: int) -> list[Generated]:
            self.bind([NO_ENVIRONMENT] * len(rows))
            return self.generate([prompts[i] for i in rows], [contexts[i] for i in rows])

        size = everything if self.args.use_vllm else self.args.prompt_phase_batch_size
        return self._in_batches(generate, len(prompts), size, seed)

    @property
    def _take_turns(self) -> bool:
        """Whether processes generate turns, and score episodes, together: none can then begin a batch again alone."""
        together = self.converses or self.environments is not None
        return together and self.accelerator.num_processes > 1

    def _in_batches(self, run: Callable[[list[int], int], list[Any]], count: int, size: int, seed: int) -> list[Any]:
        with torch.no_grad():
            return run_in_batches(
                self.accelerator,
                run,
                list(range(count)),
                batch_size=size,
                seed=seed,
                halve=not self.args.use_vllm and not is_sharded(self.accelerator) and not self._take_turns,
                count=self.count,
            )

    def _decode(self, generated: list[Generated], *, chat: bool) -> list[Decoded]:
        ids = [one.completion_ids for one in generated]
        decoded = decode(self.tokenizer, [one.prompt_ids for one in generated], ids, [chat] * len(ids))
        return [
            one if of.conversation is None else in_conversation(one, of.conversation)
            for one, of in zip(decoded, generated, strict=True)
        ]

    def _score(self, judge: Callable[[slice], Tensor], count: int, seed: int) -> Tensor:
        """Rewards by function of all processes' rows, of which this one has `count`, like every other.

        A reward model is given as many at once as in the policy phase, for which its memory has to suffice.

        Args:
            judge: those of a part of this process's rows, and of the same part of every other's behind each other.
        """
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        with random_stream(derive_seed(seed, "rewards")):
            judged = [judge(slice(start, min(start + size, count))) for start in range(0, count, size)]
        # Each has the rows of the first process, then those of the second; in all, a process's rows follow each other.
        processes = self.accelerator.num_processes
        by_process = [by_function.chunk(processes) for by_function in judged]
        return torch.cat([chunks[process] for process in range(processes) for chunks in by_process])

    # -- with environments: an episode is played and scored where its environment is ----------------------------------

    def _play(self, requests: Sequence[Request], rows: list[dict[str, Any]], seed: int) -> tuple[list[Tried], Rewards]:
        """Batches of episodes, each played, scored and over: there are never more environments than one batch has."""

        def play(numbers: list[int], stream: int) -> list[Any]:
            return self._episodes([requests[i] for i in numbers], [rows[i] for i in numbers], stream)

        played = self._in_batches(play, len(rows), self.args.prompt_phase_batch_size, seed)
        for event in (RAISED, HUNG):
            self.count(event, sum(failure == event for _, _, failure in played))
        dropped = sum(bool(z) and not one.template for (_, z), (one, *_) in zip(requests, played, strict=True))
        self.count("template_too_long_for_question", dropped)
        return [one for one, *_ in played], self.scoring.rewards(torch.tensor([earned for _, earned, _ in played]))

    def _episodes(
        self, requests: Sequence[Request], rows: list[dict[str, Any]], seed: int
    ) -> list[tuple[Tried, list[float], str]]:
        """Of each episode what was said, its rewards by function, and the event that cost them."""
        assert self.environments is not None
        with self.environments.episodes(rows, [question.id for question, _ in requests]) as episodes:
            self.bind(episodes)
            prompts = [episode.prompt for episode in episodes]
            asked = [template for _, template in requests]
            templated, contexts, used = self._templated(prompts, asked)
            generated = self.generate(templated, contexts)
            decoded = self._decode(generated, chat=True)
            columns = (rows, prompts, [d.completion for d in decoded], [one.completion_ids for one in generated])
            earned = self._earned(episodes, columns, seed)
            return [
                (Tried(*_said(said), one.tokens, template), rewards, episode.failure)
                for said, one, template, rewards, episode in zip(
                    decoded, generated, used, earned, episodes, strict=True
                )
            ]

    def _earned(self, episodes: Sequence[Episode], columns: Sequence[list[Any]], seed: int) -> list[list[float]]:
        """Rewards by function; NaN for episodes whose environment failed, which no reward function is given."""
        functions, environments = len(self.scoring.names), self.environments
        rewards = [[math.nan] * functions for _ in episodes]
        whole = [row for row, episode in enumerate(episodes) if not episode.failure]
        count = all_reduce_max(self.accelerator, len(whole))  # processes score equally many, together
        if not count:
            return rewards
        scored = [*whole, *whole[-1:] * (count - len(whole))]

        def judge(part: slice) -> Tensor:
            some = scored[part]
            if not some:  # takes part in the others' scoring
                nothing = torch.full((part.stop - part.start, functions), math.nan, device=self.accelerator.device)
                return judge_or_fail_together(
                    self.accelerator, lambda: self.accelerator.gather(nothing), *nothing.shape
                )
            self.bind([episodes[row] for row in some])
            with environments.scoring([episodes[row] for row in some]):  # type: ignore[union-attr]
                return self.judge(*([column[row] for row in some] for column in columns))

        mine = self._score(judge, count, seed)[local_slice(self.accelerator, count)].tolist()
        for row, earned in zip(whole, mine, strict=False):
            if not episodes[row].failure:
                rewards[row] = earned
        return rewards


def _said(decoded: Decoded) -> tuple[str, str, dict[str, Any]]:
    """The first fields of a [`Tried`]."""
    notes: dict[str, Any] = {"thought_taken_out": decoded.thought_taken_out}
    if not isinstance(decoded.completion, str):
        notes["conversation"] = decoded.completion
    return decoded.text, decoded.answer, notes


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
