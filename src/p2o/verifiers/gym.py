"""Answers to questions of reasoning-gym: right (1) by its own rules or not (0), and never run as code.

Full marks only: many of its families give something for any answer at all, and a question of which every rollout earns
something would never count as hard.
"""

import copy
import json
from functools import lru_cache
from typing import Any

from p2o.verifiers.answers import GoldError, find_answer
from p2o.verifiers.gym_forms import other_forms
from p2o.verifiers.gym_readers import READERS, is_right, scorer

EMPTY = '""'
"""How an answer without a character is written."""


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    """The reward of a completion and its answer; None and None where it has no answer.

    Raises:
        GoldError: the job's entry is none of reasoning-gym, or its own answer would not be paid either, as where a
            field is missing that its scorer needs: then a completion's wrong answer says nothing.
    """
    entry, family = read_entry(job)
    answer = find_answer(completion)
    if answer is not None and _is_paid(answer, family, entry):
        return 1.0, answer
    # An example of many right answers may be none: that alone does not make the row useless.
    if entry["answer"] is not None and (problem := _problem_of(str(entry["answer"]), json.dumps(entry), family)):
        raise GoldError(problem)
    return (None, None) if answer is None else (0.0, answer)


def warm_up(job: dict[str, Any]) -> None:
    """Loads what the family's scorer needs, such as word lists, without judging anything.

    Raises:
        GoldError: as from [`score`].
    """
    _, family = read_entry(job)
    if family not in READERS:
        scorer(family)


def read_entry(job: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The entry and the name of its family.

    Raises:
        GoldError: it is no entry of reasoning-gym, or of a family that there is not.
    """
    from reasoning_gym.factory import DATASETS

    try:
        entry = json.loads(job["entry"]) if isinstance(job["entry"], str) else job["entry"]
        family = job.get("family") or entry["metadata"]["source_dataset"]
        known = family in DATASETS and "answer" in entry and isinstance(entry["metadata"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise GoldError(f"it is not a reasoning-gym entry ({type(error).__name__}: {error})") from None
    if not known:
        raise GoldError(f"it is not a reasoning-gym entry (its family {family!r} is unknown, or it has no answer)")
    return entry, family


def own_answer(entry: dict[str, Any]) -> str | None:
    """The answer of an entry; where many are right, reasoning-gym's example; None without one."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    examples = [value for key, value in entry["metadata"].items() if key.startswith(("example_", "possible_answer"))]
    return next((e if isinstance(e, str) else json.dumps(e) for e in examples if e), None)


def check_gold(job: dict[str, Any]) -> None:
    """Nothing where the entry's own answer, if it has one, is right by the rules that completions are scored by.

    Raises:
        GoldError: it is not, or the entry or its family cannot be used; the message says why.
    """
    entry, family = read_entry(job)
    gold = own_answer(entry)
    if gold is not None and (problem := _problem_of(gold, json.dumps(entry), family)):
        raise GoldError(problem)


# One scoring for each question, not for each completion; entries are a few kilobytes.
@lru_cache(maxsize=1024)
def _problem_of(gold: str, entry_text: str, family: str) -> str | None:
    entry = json.loads(entry_text)
    answer = find_answer(f"<answer>{gold or EMPTY}</answer>")
    if answer is not None and _is_paid(answer, family, entry):
        return None
    shown = gold if len(gold) <= 80 else gold[:80] + "…"
    return f"its own answer {shown!r} would not be scored as right"


def _is_paid(answer: str, family: str, entry: dict[str, Any]) -> bool:
    return _fulfils(answer, family, entry) or any(
        _fulfils(form, family, entry) for form in other_forms(answer, family, entry)
    )


def _fulfils(answer: str, family: str, entry: dict[str, Any]) -> bool:
    try:
        return is_right(answer, family, copy.deepcopy(entry))  # some scorers write into the entry
    except (GoldError, MemoryError):
        raise
    except Exception:  # scorers stumble in any way over text that they did not expect
        return False
