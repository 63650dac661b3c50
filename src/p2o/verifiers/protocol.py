"""What a worker answers, to the byte: one line when jobs have arrived, then one for each job, in order.

Each carries the number that its jobs came with, drawn at random for them alone. A line too many, too early, too long or
of another shape is a breach, after which nothing that the worker says counts.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

Job = dict[str, Any]
Result = dict[str, Any]

LONGEST_LINE = 1 << 16
REASONS = ("right", "wrong", "no answer", "time-out", "memory", "crash")


class ProtocolBreach(Exception):
    """A worker has said something that no worker says."""


@dataclass(frozen=True)
class Answer:
    """One line of a worker.

    Args:
        nonce: of the jobs that it answers.
        place: of the job among them, from 0; -1 for the line that says that they have arrived.
        cpu_seconds: that the worker had computed so far.
        spent: whether it has needed so much memory that it ends here.
        result: `problem` (with the gold answer), or the fields of a verdict; None at place -1.
    """

    nonce: str
    place: int
    cpu_seconds: float
    spent: bool
    result: Result | None

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def read_answer(line: bytes, nonce: str, place: int) -> Answer:
    """
    Args:
        nonce, place: of the answer that is due.

    Raises:
        ProtocolBreach: it is another one, or none.
    """
    try:
        answer = Answer(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        raise ProtocolBreach(f"no answer: {line[:80]!r}") from None
    due = (answer.nonce, answer.place) == (nonce, place)
    if not due or not isinstance(answer.cpu_seconds, float) or not isinstance(answer.spent, bool):
        raise ProtocolBreach(f"another answer than the one that is due: {line[:80]!r}")
    if not (answer.result is None if place < 0 else _is_result(answer.result)):
        raise ProtocolBreach(f"no verdict: {line[:80]!r}")
    return answer


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    if set(result) == {"problem"}:
        return isinstance(result["problem"], str)
    return (
        set(result) == {"reward", "extracted", "reason", "milliseconds"}
        and (result["reward"] is None or (isinstance(result["reward"], float) and 0 <= result["reward"] <= 1))
        and (result["extracted"] is None or isinstance(result["extracted"], str))
        and result["reason"] in REASONS
        and isinstance(result["milliseconds"], float)
    )
