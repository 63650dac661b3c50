"""Who is at fault when a completion is left without a verdict: the completion, which then earns 0, or nobody.

Where nobody is, there is no reward (None): by TRL's convention the rollout has no advantage, and it is no evidence of
how hard its question is.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

FAULT_SECONDS = 1.0
MORE_TIME = 4
LEAST_RETRY_SECONDS = 20.0

Ending = Literal["time-out", "killed", "died"]
Decision = Literal["completion", "nobody", "retry", "probe"]


@dataclass(frozen=True)
class Attempt:
    """How one attempt to judge a completion has ended without a verdict.

    Args:
        ending: the limit was reached (`time-out`); the system, or somebody, has killed the worker, as when the
            machine's memory runs out (`killed`); the worker has died by itself, of an exhausted stack or a fault in C
            code, or has broken the protocol (`died`).
        cpu_seconds: that the worker has computed on it, at least 0.
        milliseconds: wall-clock time it took.
    """

    ending: Ending
    cpu_seconds: float
    milliseconds: float


def decide(attempts: tuple[Attempt, ...], limit: float) -> Decision:
    """What follows from the attempts so far, at least one.

    | the last attempt ended by | the first | the second |
    |---|---|---|
    | time-out, after it had computed for half the limit or a second | completion | completion |
    | time-out, after less: other processes had the cores | retry | nobody |
    | killed | retry | nobody |
    | died | retry | probe, where the first died as well; else nobody |

    A second is thirty times what an ordinary completion takes. A retry has a fresh worker for itself and, until it has
    computed for that long, four times the limit and at least 20 seconds: hundreds of completions that hang share the
    cores with each other. A probe is a known-good answer to the same question: if it is judged, what the workers died
    of is the completion, and otherwise nobody is at fault.

    Args:
        limit: seconds for one completion.
    """
    last = attempts[-1]
    if last.ending == "time-out" and has_computed(last.cpu_seconds, limit):
        return "completion"
    if len(attempts) == 1:
        return "retry"
    return "probe" if all(attempt.ending == "died" for attempt in attempts) else "nobody"


def has_computed(cpu_seconds: float, limit: float) -> bool:
    """Whether a worker has had enough of a core for a time-out to be its completion's fault."""
    return cpu_seconds >= min(limit / 2, FAULT_SECONDS)


def wall_limit(attempts: int, limit: float) -> float:
    """Seconds of wall-clock time for the next attempt, after so many."""
    return max(limit * MORE_TIME, LEAST_RETRY_SECONDS) if attempts else limit


def known_good(job: dict[str, Any]) -> str | None:
    """A completion with the gold answer itself; None where there is none that is text."""
    if job["verifier"] != "gym":
        return rf"\boxed{{{job['solution']}}}" if job.get("solution") is not None else None
    try:
        entry = json.loads(job["entry"]) if isinstance(job["entry"], str) else job["entry"]
        answer = entry["answer"]
    except (ValueError, KeyError, TypeError):
        return None
    return f"<answer>{answer}</answer>" if isinstance(answer, str) else None
