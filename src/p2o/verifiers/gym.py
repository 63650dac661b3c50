"""reasoning-gym's own scorers. Full marks (at least 0.99) earn 1, anything less 0.

Many of its families give 0.01 or more for any answer at all, and a question of which every rollout earns something
would never count as hard.
"""

import json
from functools import cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from p2o.verifiers.answers import GoldError, find_answer

FULL_MARKS = 0.99
# JSON has no tuples, and these two compare grids with `==`.
_GRIDS = ("arc_agi", "rearc")


@cache
def scorer(family: str) -> Any:
    return get_score_answer_fn(family)


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    try:
        entry = json.loads(job["entry"]) if isinstance(job["entry"], str) else job["entry"]
        family = job.get("family") or entry["metadata"]["source_dataset"]
        judge = scorer(family)
        if family in _GRIDS:
            entry["metadata"]["output"] = tuple(map(tuple, entry["metadata"]["output"]))
    except (ValueError, KeyError, TypeError) as error:
        raise GoldError(f"it is no reasoning-gym entry ({type(error).__name__}: {error})") from None
    answer = find_answer(completion)
    if answer is None:
        return None, None
    return float(judge(answer, entry) >= FULL_MARKS), answer
