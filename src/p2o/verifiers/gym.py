"""Answers to questions of reasoning-gym: right (1) by its own rules or not (0), and never run as code.

Full marks only: many of its families give something for any answer at all, and a question of which every rollout earns
something would never count as hard.
"""

import copy
import json
from typing import Any

from p2o.verifiers.answers import GoldError, find_answer
from p2o.verifiers.gym_forms import other_forms
from p2o.verifiers.gym_readers import READERS, is_right, scorer


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    """The reward of a completion and its answer; None and None where it has no answer.

    Raises:
        GoldError: the job's entry is none of reasoning-gym, or its scorer cannot use it.
    """
    entry, family = read_entry(job)
    answer = find_answer(completion)
    if answer is None:
        return None, None
    if _fulfils(answer, family, entry):
        return 1.0, answer
    return float(any(_fulfils(form, family, entry) for form in other_forms(answer, family, entry))), answer


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
        raise GoldError(f"it is no reasoning-gym entry ({type(error).__name__}: {error})") from None
    if not known:
        raise GoldError(f"it is no reasoning-gym entry (its family {family!r} is unknown, or it has no answer)")
    return entry, family


def check_gold(gold: str, job: dict[str, Any]) -> None:
    """Nothing where the entry's own answer is right by the rules that completions are scored by.

    Raises:
        GoldError: it is not, or the entry or its family cannot be used; the message says why.
    """
    reward, _ = score(f"<answer>{gold}</answer>", job)
    if not reward:
        shown = gold if len(gold) <= 80 else gold[:80] + "…"
        raise GoldError(f"its own answer {shown!r} would not be scored as right")


def _fulfils(answer: str, family: str, entry: dict[str, Any]) -> bool:
    try:
        return is_right(answer, family, copy.deepcopy(entry))  # some scorers write into the entry
    except (GoldError, MemoryError):
        raise
    except Exception:  # scorers stumble in any way over text that they did not expect
        return False
