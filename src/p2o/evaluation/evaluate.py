"""Samples and scores n answers to every question; an interrupted evaluation resumes from the transcripts.

The transcripts are an append-only file with every answer. Questions are processed in batches; a batch is written at
once, and its seed depends only on its position. So a killed evaluation resumes after the last complete batch and gives
the same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2o.completions import GenerationError, Sampling, decoded
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.types import QuestionSet, Sample
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
    done, recorded = 0, True
    with JsonLines(transcripts) as journal:
        for task in tasks:
            for start in range(0, len(task.rows), questions_per_batch):
                rows = task.rows[start : start + questions_per_batch]
                keys = [(task.name, start + i, s) for i in range(len(rows)) for s in range(n)]
                samples = _recorded(journal.records[done : done + len(keys)], keys) if recorded else None
                if samples is None:
                    recorded = False
                    seed_of_batch = derive_seed(seed, "evaluation", task.name, start)
                    samples = _sample(task, rows, keys, model, sampling, seed_of_batch)
                    journal.append(map(asdict, samples), after=done)
                results[task.name] += [samples[i : i + n] for i in range(0, len(samples), n)]
                done += len(samples)
                on_progress(done, total)
    return results


def _sample(
    task: QuestionSet,
    rows: list[dict[str, Any]],
    keys: list[tuple[str, int, int]],
    model: FrozenModel,
    sampling: Sampling,
    seed: int,
) -> list[Sample]:
    repeated = [row for row in rows for _ in range(len(keys) // len(rows))]
    try:
        completions = model.complete([row["prompt"] for row in repeated], sampling=sampling, seed=seed)
    except GenerationError as error:
        raise GenerationError(f"{task.name}, questions {keys[0][1]} to {keys[-1][1]}: {error}") from None
    said = [decoded(c, row["prompt"]) for c, row in zip(completions, repeated, strict=True)]
    verdicts = task.score(said, repeated)
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
