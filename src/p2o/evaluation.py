"""Evaluation: n answers to every question of some tasks, what they say about the model, and two models compared.

Every answer is in the transcripts, an append-only file that is also the journal: work is done in batches of questions,
a batch is written whole, and the stream it is sampled from depends on its place alone. Killed and called again,
evaluation goes on after the last whole batch, to the same numbers.
"""

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from p2o.generation import FrozenModel, GenerationError, Sampling
from p2o.seeding import derive_seed
from p2o.state import differences
from p2o.statistics import average, maj_at_k, mcnemar, paired_bootstrap, pass_at_k
from p2o.templates import question_text

logger = logging.getLogger(__name__)

RIGHT = "right"
SHOWN_CHARACTERS = 300  # of a question, in results


class Judged(Protocol):
    """What a verifier says of one completion: `reason` is "right" where it is, `reward` None where it is unscored."""

    @property
    def reward(self) -> float | None: ...
    @property
    def extracted(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


ScoreFn = Callable[[list[str], list[dict[str, Any]]], Sequence[Judged]]


@dataclass(frozen=True)
class Questions:
    """A task as evaluation takes it: rows with `prompt`, and who judges the answers to them.

    Args:
        answer_format: what that expects of an answer's form, for the feedback on one without; empty where unknown.
    """

    name: str
    rows: list[dict[str, Any]]
    score: ScoreFn
    answer_format: str = ""


@dataclass(frozen=True)
class Sample:
    """One line of the transcripts.

    Args:
        question: row of the task.
        sample: which of the n it is.
        extracted: the answer that was found in it.
        reward: None where nobody could score it, which is no wrong answer.
        prompt_tokens, completion_tokens: None where a server did not tell.
        truncated: whether the limit on its length ended it.
        cost: US dollars, as far as prices are known.
    """

    task: str
    question: int
    sample: int
    completion: str
    extracted: str | None
    reward: float | None
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    truncated: bool
    cost: float = 0.0


def evaluate(
    tasks: Sequence[Questions],
    model: FrozenModel,
    sampling: Sampling,
    *,
    n: int,
    seed: int,
    transcripts: Path,
    questions_per_batch: int = 16,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[list[Sample]]]:
    """Samples and scores n answers to every question; what the transcripts hold already is not sampled again.

    Args:
        transcripts: JSON Lines of [`Sample`]; they must be of the same model and settings.
        questions_per_batch: what a kill loses at most. The draws depend on it.
        on_progress: called with the answers there are and the answers there will be.

    Returns:
        Of each task, of each question, its samples.

    Raises:
        GenerationError: completions that could not be had; what was finished before is kept.
        ValueError: two tasks of one name.
    """
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError("A task is named twice.")
    total = n * sum(len(task.rows) for task in tasks)
    results: dict[str, list[list[Sample]]] = {task.name: [] for task in tasks}
    with _Transcripts(transcripts) as journal:
        done = 0
        for task in tasks:
            for start in range(0, len(task.rows), questions_per_batch):
                rows = task.rows[start : start + questions_per_batch]
                keys = [(task.name, start + i, s) for i in range(len(rows)) for s in range(n)]
                samples = journal.next(keys)
                if samples is None:
                    stream = derive_seed(seed, "evaluation", task.name, start)
                    samples = _sample(task, rows, keys, model, sampling, stream)
                    journal.append(samples)
                results[task.name] += [samples[i : i + n] for i in range(0, len(samples), n)]
                done += len(samples)
                on_progress(done, total)
    return results


def _sample(
    task: Questions,
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
    verdicts = task.score([c.text for c in completions], repeated)
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


class _Transcripts:
    """Samples in the order of evaluation; from the first that is torn or not what was asked for, they are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[bytes] = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.position = 0
        self.file: Any = None

    def __enter__(self) -> "_Transcripts":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()

    def next(self, keys: list[tuple[str, int, int]]) -> list[Sample] | None:
        """The recorded batch with these keys, or None, after which there are no more."""
        if self.file is not None:
            return None
        try:
            recorded = [Sample(**json.loads(line)) for line in self.lines[self.position : self.position + len(keys)]]
        except (ValueError, TypeError):
            logger.warning("%s is damaged after line %d; going on from there.", self.path, self.position)
            return None
        if [(s.task, s.question, s.sample) for s in recorded] != keys:
            return None
        self.position += len(keys)
        return recorded

    def append(self, samples: list[Sample]) -> None:
        """Writes a batch whole: a kill tears at most the one under way."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab")  # noqa: SIM115 (closed in __exit__)
            self.file.truncate(sum(len(line) + 1 for line in self.lines[: self.position]))
        self.file.write(b"".join(json.dumps(asdict(sample)).encode() + b"\n" for sample in samples))
        self.file.flush()
        os.fsync(self.file.fileno())


# -- what came out -----------------------------------------------------------------------------------------------------


def default_ks(n: int) -> list[int]:
    """1, 2, 4, … and n."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def question_key(row: Mapping[str, Any]) -> str:
    """Tells questions apart: by prompt, gold answer and what a scorer needs."""
    asked = json.dumps([row["prompt"], row.get("solution"), row.get("entry")], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def summarise(samples: Sequence[Sequence[Sample]], ks: Sequence[int]) -> dict[str, Any]:
    """The numbers of one task, over its questions' scored samples; `unscored` counts the others.

    Questions without a scored sample count nowhere else; pass@k and maj@k leave out those with fewer than k, too. What
    nothing is left for is None. `avg` is avg@n, `standard_error` clustered by question (None for one question),
    `pass@k` and `maj@k` means over questions by k; `maj@k` None where no answers were extracted. `mean_length` is in
    tokens, None where a server did not tell; `truncated` the share of answers cut off at the limit; `reasons` counts
    what the verifier said.
    """
    scored = [group for group in ([s for s in group if s.reward is not None] for group in samples) if group]
    rewards = [[s.reward for s in group if s.reward is not None] for group in scored]
    right = [[s.reason == RIGHT for s in group] for group in scored]
    answers = [[s.extracted for s in group] for group in scored]
    flat = [s for group in samples for s in group]
    lengths = [s.completion_tokens for s in flat if s.completion_tokens is not None]
    middle, error = average(rewards) if rewards else (None, math.nan)
    voted = any(answer is not None for group in answers for answer in group)
    return {
        "questions": len(samples),
        "n": len(samples[0]),
        "avg": middle,
        "standard_error": None if math.isnan(error) else error,
        "pass@k": {str(k): _mean([pass_at_k(len(r), sum(r), k) for r in right if len(r) >= k]) for k in ks},
        "maj@k": {
            str(k): _mean([maj_at_k(a, r, k) for a, r in zip(answers, right, strict=True) if voted and len(r) >= k])
            for k in ks
        },
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
        "truncated": sum(s.truncated for s in flat) / len(flat),
        "unscored": sum(s.reward is None for s in flat),
        "reasons": dict(Counter(s.reason for s in flat).most_common()),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _scored_mean(rewards: Sequence[float | None]) -> float:
    scored = [reward for reward in rewards if reward is not None]
    return math.fsum(scored) / len(scored)


def by_question(rows: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[Sample]]) -> list[dict[str, Any]]:
    """What a comparison needs of each question."""
    return [
        {
            "question": number,
            "key": question_key(row),
            "text": question_text(row["prompt"])[:SHOWN_CHARACTERS],
            "rewards": [s.reward for s in group],
            "right": sum(s.reason == RIGHT for s in group),
        }
        for number, (row, group) in enumerate(zip(rows, samples, strict=True))
    ]


# -- two of them -------------------------------------------------------------------------------------------------------


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, seed: int = 0, resamples: int = 10_000) -> Any:
    """The second evaluation against the first, question by question.

    The difference of avg@n has a paired bootstrap over questions; with n = 1 there is an exact McNemar test as well.

    Args:
        first, second: results as `p2o eval` writes them.
        seed: of the bootstrap.

    Returns:
        By task: `first` and `second` avg@n, `difference`, `low`, `high` (95 %), `p_value`, with n = 1 `mcnemar` with
        `gained`, `lost` and `p_value`, `unscored` questions, left out because one of the two has no scored answer, and
        `questions` with their difference, largest first.

    Raises:
        ValueError: evaluations of different questions, or under settings that make their numbers differ.
    """
    changed = differences(first["settings"]["sampling"], second["settings"]["sampling"])
    if changed:
        raise ValueError(f"The two were sampled differently: {changed}. Evaluate both in the same way.")
    tasks = (first["tasks"], second["tasks"])
    if set(tasks[0]) != set(tasks[1]):
        only = [", ".join(sorted(set(one) - set(other))) or "nothing" for one, other in (tasks, tasks[::-1])]
        raise ValueError(f"They are of different tasks: only the first has {only[0]}, only the second {only[1]}.")
    compared = {}
    for name in tasks[0]:
        asked = _paired(name, tasks[0][name]["by_question"], tasks[1][name]["by_question"])
        pairs = [pair for pair in asked if all(any(r is not None for r in q["rewards"]) for q in pair)]
        if not pairs:
            raise ValueError(f"{name}: there is no question of which both have a scored answer.")
        means = [tuple(_scored_mean(q["rewards"]) for q in pair) for pair in pairs]
        changes = [b - a for a, b in means]
        found = paired_bootstrap(changes, seed=derive_seed(seed, "comparison", name), resamples=resamples)
        entry: dict[str, Any] = {
            "first": math.fsum(a for a, _ in means) / len(means),
            "second": math.fsum(b for _, b in means) / len(means),
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "unscored": len(asked) - len(pairs),
            "questions": sorted(
                (
                    {"question": a["question"], "text": a["text"], "first": before, "second": after}
                    for (a, _), (before, after) in zip(pairs, means, strict=True)
                    if before != after
                ),
                key=lambda q: -abs(q["second"] - q["first"]),
            ),
        }
        if len(pairs[0][0]["rewards"]) == 1:
            gained, lost = (sum(pair[i]["right"] > pair[1 - i]["right"] for pair in pairs) for i in (1, 0))
            entry["mcnemar"] = {"gained": gained, "lost": lost, "p_value": mcnemar(gained, lost)}
        compared[name] = entry
    return compared


def _paired(name: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[Any]:
    if len(first) != len(second):
        raise ValueError(f"{name}: the first has {len(first)} questions, the second {len(second)}.")
    pairs = list(zip(first, second, strict=True))
    other = [a["question"] for a, b in pairs if a["key"] != b["key"]]
    if other:
        raise ValueError(
            f"{name}: {len(other)} of {len(pairs)} questions are not the same, question {other[0]} the first of them. "
            "The task was loaded with other options or from another version."
        )
    uneven = [a["question"] for a, b in pairs if len(a["rewards"]) != len(b["rewards"])]
    if uneven:
        a, b = pairs[uneven[0]]
        raise ValueError(
            f"{name}: n = {len(a['rewards'])} in the first and {len(b['rewards'])} in the second. Evaluate both with "
            "the same --n."
        )
    return pairs
