"""The journal of a prompt phase, from which an interrupted one goes on to the same end."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2o.journal import JsonLines

logger = logging.getLogger(__name__)

LOST = "lost"


class Journal:
    """Results of every batch of rollouts or reflections, in the order of the requests; a second run reads them here.

    Evolution is deterministic given these results. GEPA's own `run_dir` would not do: it saves once an iteration, and a
    kill loses all rollouts of one. A journal of another prompt phase is started anew. What was spent without any result
    stands between the results and is no step of evolution: `lost` has it.

    Args:
        path: a file of JSON lines.
        fingerprint: what decides the course of evolution, beside the results.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        self.header = {"fingerprint": _digest(fingerprint, 64)}
        self._lines = JsonLines(path)
        recorded = self._lines.records
        if recorded[:1] != [self.header]:
            if recorded:
                logger.warning("%s belongs to another prompt phase and is started anew.", path)
            recorded = []
            self._lines.replace([self.header])
        self.lost = [record for record in recorded[1:] if record["kind"] == LOST]
        self.done = [record for record in recorded[1:] if record["kind"] != LOST]
        self.position = 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    def call(self, kind: str, request: Any, run: Callable[[int], Any]) -> Any:
        """The recorded result of this, the next request, or that of `run(position)`, which is recorded.

        A record of a different request means that something evolution depends on has changed; the records from there
        on are dropped.
        """
        digest = _digest((kind, request), 16)
        number, self.position = self.position, self.position + 1
        if number < len(self.done):
            if self.done[number]["request"] == digest:
                return self.done[number]["result"]
            logger.warning("The journal departs from this run at record %d; going on from there.", number)
            del self.done[number:]
            self._lines.replace([self.header, *self.lost, *self.done])
        result = run(number)
        self._lines.append([{"kind": kind, "request": digest, "result": result}])
        return result

    def lose(self, result: Any) -> None:
        """Records what the present request cost without a result; when it is repeated, `lost` has it."""
        self._lines.append([{"kind": LOST, "result": result}])


def _digest(value: Any, length: int) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:length]
