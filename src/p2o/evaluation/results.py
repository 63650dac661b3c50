"""The numbers of an evaluation. Pure."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from p2o.evaluation.statistics import average, maj_at_k, pass_at_k
from p2o.evaluation.types import RIGHT, Sample
from p2o.templates import question_text

SHOWN_CHARACTERS = 300  # of a question, in results


def default_ks(n: int) -> list[int]:
    """1, 2, 4, … and n."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def question_key(row: Mapping[str, Any]) -> str:
    """A digest of the question: prompt, gold answer and what a scorer needs."""
    asked = json.dumps([row["prompt"], row.get("solution"), row.get("entry")], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def summarise(samples: Sequence[Sequence[Sample]], ks: Sequence[int]) -> dict[str, Any]:
    """The numbers of one task, over its questions' samples.

    `avg` is avg@n, `standard_error` clustered by question (None for one question), `pass@k` and `maj@k` means over
    questions by k; `maj@k` None where no answers were extracted. `mean_length` is in tokens, None where a server does
    not report it; `truncated` the share of answers cut off at the limit; `reasons` counts the verifier's reasons.
    """
    rewards = [[s.reward for s in group] for group in samples]
    right = [[s.reason == RIGHT for s in group] for group in samples]
    answers = [[s.extracted for s in group] for group in samples]
    flat = [s for group in samples for s in group]
    lengths = [s.completion_tokens for s in flat if s.completion_tokens is not None]
    middle, error = average(rewards)
    voted = any(answer is not None for group in answers for answer in group)
    count = len(samples)
    return {
        "questions": count,
        "n": len(samples[0]),
        "avg": middle,
        "standard_error": None if math.isnan(error) else error,
        "pass@k": {str(k): math.fsum(pass_at_k(len(r), sum(r), k) for r in right) / count for k in ks},
        "maj@k": {
            str(k): math.fsum(maj_at_k(a, r, k) for a, r in zip(answers, right, strict=True)) / count if voted else None
            for k in ks
        },
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
        "truncated": sum(s.truncated for s in flat) / len(flat),
        "reasons": dict(Counter(s.reason for s in flat).most_common()),
    }


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
