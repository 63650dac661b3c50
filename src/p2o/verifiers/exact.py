"""Exact match: the answer that [`find_answer`] finds against the gold one, both with their white space collapsed."""

from typing import Any

from p2o.verifiers.answers import GoldError, find_answer


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    gold = " ".join(job["solution"].split())
    if not gold:
        raise GoldError("it is empty")
    answer = find_answer(completion)
    return (None, None) if answer is None else (float(" ".join(answer.split()) == gold), answer)
