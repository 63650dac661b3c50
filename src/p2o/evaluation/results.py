"""The numbers of an evaluation. Pure."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from p2o.evaluation.statistics import average, maj_at_k, pass_at_k
from p2o.evaluation.types import RIGHT, Sample
from p2o.images import image_key, images_of
from p2o.templates import question_text

SHOWN_CHARACTERS = 300  # of a question, in results


def default_ks(n: int) -> list[int]:
    """1, 2, 4, … and n."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def question_key(row: Mapping[str, Any]) -> str:
    """A digest of the question: prompt, gold answer, what a scorer needs, and images."""
    parts = [row["prompt"], row.get("solution"), row.get("entry"), *map(image_key, images_of(row))]
    question = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def questions_digest(keys: Sequence[str]) -> str:
    """How many questions and a digest of their keys, in order: what a set of questions is recognised by."""
    return f"{len(keys)} questions {hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}"


def summarise(samples: Sequence[Sequence[Sample]], ks: Sequence[int]) -> dict[str, Any]:
    """The numbers of one task, over its questions' scored samples; `unscored` counts the others.

    Questions without a scored sample count nowhere else; pass@k and maj@k leave out those with fewer than k, too. What
    nothing is left for is None. `avg` is avg@n, `standard_error` clustered by question (None for one question),
    `pass@k` and `maj@k` means over questions by k; `maj@k` None where no answers were extracted. `mean_length` is in
    tokens, None where a server does not report it; `truncated` the share of answers cut off at the limit; `reasons`
    counts the verifier's reasons.
    """
    scored = [group for group in ([s for s in group if s.reward is not None] for group in samples) if group]
    rewards = [[s.reward for s in group if s.reward is not None] for group in scored]
    right = [[s.reason == RIGHT for s in group] for group in scored]
    answers = [[s.extracted for s in group] for group in scored]
    flat = [s for group in samples for s in group]
    lengths = [s.completion_tokens for s in flat if s.completion_tokens is not None]
    middle, error = success(rewards).values() if rewards else (None, None)
    voted = any(answer is not None for group in answers for answer in group)
    return {
        "questions": len(samples),
        "n": len(samples[0]),
        "avg": middle,
        "standard_error": error,
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


def success(rates: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """The mean of the samples' rates, given by question, and its standard error, None for a single question."""
    middle, error = average(rates)
    return {"success": middle, "standard_error": None if math.isnan(error) else error}


def by_question(rows: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[Sample]]) -> list[dict[str, Any]]:
    """Of each question what a comparison needs."""
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
