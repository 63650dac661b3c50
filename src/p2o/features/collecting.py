"""Samples rollouts of a model and writes their activations to shards; interrupted, it goes on at the next shard."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.completions import Sampling, decoded
from p2o.engines.frozen import encode, transformers_frozen
from p2o.evaluation.types import QuestionSet
from p2o.features.activations import read_activations
from p2o.features.shards import Passage, write_shard
from p2o.seeding import derive_seed
from p2o.templates import apply_template

Instruct = Callable[[dict[str, Any], random.Random], str]
"""`instruct(row, rng)`: an instruction for the question of a row."""


@dataclass(frozen=True)
class Source:
    """A model and how it is sampled.

    Args:
        layer: name of the module whose output is read.
        n: rollouts of each question.
        batch_size: rollouts that are sampled, or read, at once.
        template_options: of the chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: str
    sampling: Sampling
    n: int
    batch_size: int
    seed: int
    template_options: dict[str, Any]

    def rollouts(
        self, task: QuestionSet, rows: Sequence[int], first: int, instruct: Instruct | None = None, instructed: int = 0
    ) -> list[Passage]:
        """n scored rollouts of each of these rows of a task.

        Args:
            first: number of the task's first question among all.
            instructed: so many of the n are sampled under an instruction.
        """
        places = [(row, number) for row in rows for number in range(self.n)]
        rng = random.Random(derive_seed(self.seed, "instructions", task.name, rows[0]))
        prompts = []
        for row, number in places:
            prompt = task.rows[row]["prompt"]
            if instruct is not None and number < instructed:
                prompt = apply_template(prompt, instruct(task.rows[row], rng))
            prompts.append(prompt)
        options = self.template_options
        frozen = transformers_frozen(self.model, self.tokenizer, self.batch_size, options)
        seed = derive_seed(self.seed, "rollouts", task.name, rows[0])
        said = [
            decoded(completion, prompt)
            for completion, prompt in zip(
                frozen.complete(prompts, sampling=self.sampling, seed=seed), prompts, strict=True
            )
        ]
        verdicts = task.score(said, [task.rows[row] for row, _ in places])
        passages = []
        for (row, number), one, verdict, prompt in zip(
            places, said, verdicts, encode(self.tokenizer, prompts, **options), strict=True
        ):
            passages.append(
                Passage(
                    ids=[*prompt[-1:], *map(int, one.ids or ())],
                    context=prompt[:-1],
                    question=first + row,
                    text=one.text,
                    reward=None if verdict.reward is None else float(verdict.reward),
                    instructed=number < instructed,
                    family=task.rows[row].get("family"),
                )
            )
        return passages


def collect(
    directory: Path,
    tasks: Sequence[QuestionSet],
    source: Source,
    *,
    instruct: Instruct | None,
    instructed: int,
    questions_per_shard: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the shards of all questions that are not there yet; those that are must be of the same source.

    Args:
        instructed: of the n rollouts of a question, so many are sampled under an instruction by `instruct`.
        on_progress: called with the number of rollouts done and of all.

    Raises:
        DictionaryError: activations that cannot be stored.
        OSError: a shard cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    total = source.n * sum(len(task.rows) for task in tasks)
    done = first = shard = 0
    for task in tasks:
        for start in range(0, len(task.rows), questions_per_shard):
            rows = range(start, min(start + questions_per_shard, len(task.rows)))
            path = directory / f"{shard:05d}"
            if not path.with_suffix(".json").exists():
                passages = source.rollouts(task, rows, first, instruct, instructed)
                read = read_activations(source.model, source.layer, passages, source.batch_size)
                write_shard(path, passages, torch.cat(read))
            shard, done = shard + 1, done + source.n * len(rows)
            on_progress(done, total)
        first += len(task.rows)
