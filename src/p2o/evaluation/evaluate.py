"""Samples and scores n answers to every question; an interrupted evaluation resumes from the transcripts.

The transcripts are an append-only file with every answer. Questions are processed in batches; a batch is written at
once, and its seed depends only on its position. So a killed evaluation resumes after the last complete batch and gives
the same numbers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2o.completions import Call, Completion, GenerationError, Sampling, decoded
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.types import Judgement, QuestionSet, Sample
from p2o.journal import JsonLines
from p2o.seeding import derive_seed


def evaluate(
    tasks: Sequence[QuestionSet],
    model: FrozenModel,
    sampling: Sampling,
    *,
    n: int,
    seed: int,
    transcripts: Path,
    questions_per_batch: int = 16,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[list[Sample]]]:
    """n scored answers to every question; those in the transcripts are not sampled again.

    Args:
        transcripts: JSON Lines of [`Sample`]; they must be of the same model and settings.
        questions_per_batch: at most so many questions are lost when killed. The samples depend on it.
        on_progress: called with the number of answers so far and in all.

    Returns:
        For each task, for each question, its samples.

    Raises:
        GenerationError: completions that could not be had; what was finished before is kept.
        ValueError: two tasks of one name.
    """
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError("A task is named twice.")
    total = n * sum(len(task.rows) for task in tasks)
    results: dict[str, list[list[Sample]]] = {task.name: [] for task in tasks}
    done = 0
    with JsonLines(transcripts) as journal:
        left: deque[_Batch] = deque()
        for task in tasks:
            for start in range(0, len(task.rows), questions_per_batch):
                batch = _Batch(task, start, min(questions_per_batch, len(task.rows) - start), n)
                samples = None if left else _recorded(journal.records[done : done + len(batch.keys)], batch.keys)
                if samples is None:
                    left.append(batch)
                    continue
                results[task.name] += [samples[i : i + n] for i in range(0, len(samples), n)]
                done += len(samples)
                on_progress(done, total)
        while left:
            batches = [left.popleft() for _ in range(min(model.calls_at_once, len(left)))]
            for batch, completions in zip(batches, _complete(batches, model, sampling, seed), strict=True):
                samples = batch.scored(completions)
                journal.append(map(asdict, samples), after=done)
                results[batch.task.name] += [samples[i : i + n] for i in range(0, len(samples), n)]
                done += len(samples)
                on_progress(done, total)
    return results


@dataclass(frozen=True)
class _Batch:
    """Questions of a task that are answered at once, n times each.

    Args:
        first: of the questions, as a row of the task.
        count: of the questions.
    """

    task: QuestionSet
    first: int
    count: int
    n: int

    @property
    def keys(self) -> list[tuple[str, int, int]]:
        """Task, question and sample of each answer."""
        return [(self.task.name, self.first + i, s) for i in range(self.count) for s in range(self.n)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of each answer."""
        return [row for row in self.task.rows[self.first : self.first + self.count] for _ in range(self.n)]

    def call(self, sampling: Sampling, seed: int) -> Call:
        stream = derive_seed(seed, "evaluation", self.task.name, self.first)
        return Call(self.task.prompts(self.rows), sampling, stream)

    def scored(self, completions: Sequence[Completion]) -> list[Sample]:
        rows = self.rows
        said = [decoded(completion, row["prompt"]) for completion, row in zip(completions, rows, strict=True)]
        return _samples(self.keys, completions, self.task.score(said, rows))


def _complete(batches: list[_Batch], model: FrozenModel, sampling: Sampling, seed: int) -> list[list[Completion]]:
    try:
        return model.complete_all([batch.call(sampling, seed) for batch in batches])
    except GenerationError as error:
        (task, first, _), (last_task, last, _) = batches[0].keys[0], batches[-1].keys[-1]
        until = last if last_task == task else f"{last} of {last_task}"
        raise GenerationError(f"{task}, questions {first} to {until}: {error}") from None


def _samples(
    keys: list[tuple[str, int, int]], completions: Sequence[Completion], verdicts: Sequence[Judgement]
) -> list[Sample]:
    return [
        Sample(
            *key,
            completion=completion.text,
            extracted=verdict.extracted,
            reward=None if verdict.reward is None else float(verdict.reward),
            reason=verdict.reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            truncated=completion.truncated,
            cost=completion.cost,
        )
        for key, completion, verdict in zip(keys, completions, verdicts, strict=True)
    ]


def _recorded(lines: list[Any], keys: list[tuple[str, int, int]]) -> list[Sample] | None:
    """The samples of these lines, if they are whole and those of the keys."""
    try:
        samples = [Sample(**line) for line in lines]
    except TypeError:
        return None
    return samples if [(s.task, s.question, s.sample) for s in samples] == keys else None
