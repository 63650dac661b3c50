"""Rewards that cannot hang: untrusted completions are verified in worker processes with limits of time and memory.

`math` is math-verify's judgement with rules of ours around it, `accuracy` what TRL's `accuracy_reward` says, `exact`
compares strings, `gym` asks reasoning-gym's own scorers. This module imports none of them, and neither torch nor trl;
the workers import what they need.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

if sys.platform != "linux":
    raise ImportError(
        f"p2o.verifiers needs Linux, and this is {sys.platform}: completions are judged in processes that Linux alone "
        "can lock in as they must be. Use a Linux machine, a container or WSL 2."
    )

from p2o.thoughts import MARKED, ThoughtReading
from p2o.verifiers.answers import answer_part, shortened
from p2o.verifiers.golds import unmatchable
from p2o.verifiers.pool import Limits, Pool, Result, default_pool, set_default_limits

Reason = Literal["right", "wrong", "no answer", "time-out", "memory", "crash"]
Verifier = Literal["math", "exact", "gym", "accuracy"]

REASONS: tuple[Reason, ...] = get_args(Reason)
VERIFIERS: tuple[Verifier, ...] = get_args(Verifier)
COLUMNS: dict[str, tuple[str, ...]] = {
    "math": ("solution",),
    "exact": ("solution",),
    "gym": ("entry",),
    "accuracy": ("solution",),
}
"""By verifier, the columns that a row must have."""

__all__ = [
    "COLUMNS",
    "REASONS",
    "VERIFIERS",
    "Limits",
    "Pool",
    "Reason",
    "SolutionError",
    "Verdict",
    "Verifier",
    "check_solutions",
    "count_reasons",
    "default_pool",
    "set_default_limits",
    "unmatchable",
    "verify",
    "verify_stream",
]


class SolutionError(ValueError):
    """A gold answer that cannot be read: bad data, which must not pass for a wrong completion."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier found.

    Args:
        reward: in [0, 1]; None where no verdict was reached and the completion is not to blame, as
            [`p2o.verifiers.blame.decide`] has it.
        extracted: the answer found, as text of at most 1,000 characters; None without one.
        reason: why the reward is what it is. A gym score below full marks is `wrong`, and its reward is 0.
        milliseconds: wall-clock time spent on this completion.
    """

    reward: float | None
    extracted: str | None
    reason: Reason
    milliseconds: float


def verify(
    completions: list[str],
    rows: list[dict[str, Any]],
    verifier: str = "math",
    *,
    pool: Pool | None = None,
    reading: ThoughtReading = MARKED,
) -> list[Verdict]:
    """One verdict for each completion, in order. Any number of threads may call it at once.

    Args:
        completions: untrusted texts.
        rows: the dataset row of each completion, with the columns that [`COLUMNS`] names. For `gym`, `entry` is a
            reasoning-gym entry as JSON text (or a mapping), and `family` its family where the metadata do not say it.
        verifier: one of [`VERIFIERS`].
        pool: in place of this process's own, whose limits [`set_default_limits`] sets.
        reading: what becomes of thoughts; a row's `prompt` may open one itself.

    Raises:
        SolutionError: a missing column or an unreadable gold answer, named by row and field. Nothing else in a
            completion or a row raises.
    """
    if len(completions) != len(rows):
        raise ValueError(f"{len(completions)} completions, but {len(rows)} rows.")
    verdicts: list[Verdict | None] = [None] * len(rows)
    bad: list[str] = []
    for index, verdict in verify_stream(zip(completions, rows, strict=True), verifier, pool=pool, reading=reading):
        if isinstance(verdict, Verdict):
            verdicts[index] = verdict
        else:
            bad.append(f"row {index}: {verdict}")
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise SolutionError(f"{'; '.join(bad[:5])}{more}. Correct or drop these rows.")
    return [verdict for verdict in verdicts if verdict is not None]


def verify_stream(
    pairs: Iterable[tuple[str, dict[str, Any]]],
    verifier: str = "math",
    *,
    pool: Pool | None = None,
    reading: ThoughtReading = MARKED,
) -> Iterator[tuple[int, Verdict | str]]:
    """Verdicts as they are reached, with the index of their pair; in place of one, what is wrong with the row's gold.

    Pairs are drawn only as fast as they are verified, so that a file of any size can be streamed.
    """
    if verifier not in VERIFIERS:
        raise ValueError(f"There is no verifier {verifier!r}; there are {', '.join(VERIFIERS)}.")
    read = _reader(verifier, reading)
    jobs = ({"verifier": verifier, "completion": read(text, row), **_gold(row, verifier)} for text, row in pairs)
    for index, result in (pool or default_pool()).stream(jobs):
        yield index, result["problem"] if "problem" in result else _verdict(result)


def check_solutions(solutions: list[Any], *, pool: Pool | None = None) -> list[int]:
    """Indices of gold answers that math-verify cannot parse, those that exhaust time or memory included; sorted.

    One that was not looked at to the end, because other processes had the cores, is none of them.
    """
    jobs = ({"verifier": "check", "completion": "", "solution": _text(solution)} for solution in solutions)
    results = (pool or default_pool()).stream(jobs)
    return sorted(i for i, r in results if r.get("reason") != "right" and not _starved(r))


def count_reasons(verdicts: Iterable[Verdict]) -> Counter[str]:
    return Counter(verdict.reason for verdict in verdicts)


def _reader(verifier: str, reading: ThoughtReading) -> Callable[[str, dict[str, Any]], str]:
    """What a verifier is given of a completion of the question in a row."""
    if verifier == "accuracy" and not reading.named:
        return lambda text, row: text  # TRL sees the whole text, thoughts included
    cut = str if verifier == "accuracy" else shortened
    return lambda text, row: cut(answer_part(text, reading, row.get("prompt")))


def _starved(result: Result) -> bool:
    return result.get("reason") == "time-out" and result["reward"] is None


def _gold(row: dict[str, Any], verifier: str) -> dict[str, Any]:
    job = {name: row.get(name) for name in (*COLUMNS[verifier], *(("family",) if verifier == "gym" else ()))}
    missing = [name for name in COLUMNS[verifier] if job[name] is None]
    if missing:
        return {"problem": f"it has no {missing[0]!r}"}
    if verifier != "gym":
        job["solution"] = _text(job["solution"])
    return job


def _text(solution: Any) -> str | None:
    """Numbers are as good as their digits; anything else but text cannot be a gold answer."""
    if isinstance(solution, str):
        return solution
    return str(solution) if isinstance(solution, int | float) and not isinstance(solution, bool) else None


def _verdict(result: Result) -> Verdict:
    return Verdict(result["reward"], result["extracted"], result["reason"], result["milliseconds"])
