"""One worker as its caller sees it: what it has to judge, and since when it has been at the first of that."""

import contextlib
import json
import os
import secrets
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2o.verifiers.blame import Attempt, has_computed, wall_limit
from p2o.verifiers.protocol import LONGEST_LINE, Answer, Job, ProtocolBreach, Result, read_answer

SLOW_SECONDS = 0.03
STUCK_SECONDS = 1.0
START_SECONDS = 120.0


@dataclass(frozen=True)
class Task:
    """A job on its way through the pool.

    Args:
        index: of the job.
        attempts: those that have ended without a verdict.
        probing: whether a known-good answer stands in the place of the completion.
    """

    index: int
    job: Job
    attempts: tuple[Attempt, ...] = ()
    probing: bool = False

    def tried(self, attempt: Attempt) -> "Task":
        return replace(self, attempts=(*self.attempts, attempt))


class Worker:
    """
    Args:
        verifier: that its parent had imported when it was forked.
        limit: seconds for one completion.
        server: the process that forked it.
    """

    def __init__(self, pid: int, channel: socket.socket, verifier: str, limit: float, server: Any) -> None:
        self.pid, self.channel, self.verifier, self.limit, self.server = pid, channel, verifier, limit, server
        self.tasks: deque[Task] = deque()
        self.since = time.monotonic()
        self.begun = self.slow = self.spent = self.has_breached = False
        self.cpu_before = 0.0
        self._nonce, self._place, self._buffer = "", -1, b""

    def greet(self, memory_bytes: int) -> None:
        self._write({"memory": memory_bytes})

    def send(self, tasks: list[Task]) -> None:
        """Tasks that have been tried before come alone."""
        self.tasks, self.begun = deque(tasks), False
        self._nonce, self._place = secrets.token_hex(8), -1
        seconds = wall_limit(len(tasks[0].attempts), self.limit)
        self._write({"nonce": self._nonce, "seconds": seconds, "jobs": [task.job for task in tasks]})
        self.since = time.monotonic()

    def rest(self) -> list[Task]:
        """Takes back what it has not begun."""
        first, *rest = self.tasks
        self.tasks = deque([first])
        return rest

    def receive(self) -> tuple[list[tuple[Task, Result]], bool]:
        """What has come, and whether it goes on. One that has needed much memory or broken the protocol does not."""
        results: list[tuple[Task, Result]] = []
        try:
            data = self.channel.recv(LONGEST_LINE)
        except OSError:
            data = b""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            for line in lines:
                answer = self._due(line)
                if answer.result is not None:
                    results.append((self.tasks.popleft(), answer.result))
            if len(self._buffer) > LONGEST_LINE:
                raise ProtocolBreach("a line without an end")
        except ProtocolBreach:
            self.has_breached = True
        return results, bool(data) and not self.spent and not self.has_breached

    def _due(self, line: bytes) -> Answer:
        if self.spent or not self.tasks:
            # The rest of a chunk may have been taken back from it while it was slow.
            if self.slow:
                return Answer(self._nonce, self._place, self.cpu_before, self.spent, None)
            raise ProtocolBreach("an answer to nothing")
        answer = read_answer(line, self._nonce, self._place)
        self._place += 1
        self.begun, self.spent, self.cpu_before = True, answer.spent, answer.cpu_seconds
        self.since = time.monotonic()
        return answer

    def is_stuck(self, elapsed: float) -> bool:
        """Whether it has worked long on its present job. On a busy machine it may only have waited for a core."""
        return elapsed > STUCK_SECONDS or self.cpu_seconds() > SLOW_SECONDS

    def is_overdue(self, elapsed: float) -> bool:
        # On a busy machine it can take a worker long to wake up, which is no completion's fault.
        if not self.begun:
            return elapsed >= START_SECONDS
        if elapsed < self.limit:
            return False
        most = wall_limit(len(self.tasks[0].attempts), self.limit)
        return elapsed >= most or has_computed(self.cpu_seconds(), self.limit)

    def cpu_seconds(self) -> float:
        """Computed on the present job."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        total = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return max(total - self.cpu_before, 0.0)

    def _write(self, message: Any) -> None:
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            # It is gone, or has half a message: that it is of no use is seen where it should answer.
            with contextlib.suppress(OSError):
                self.channel.shutdown(socket.SHUT_RDWR)


def ready(workers: set[Worker]) -> set[Worker]:
    """Workers with something to read. Wakes up in time for limits."""
    poll = select.poll()
    by_descriptor = {worker.channel.fileno(): worker for worker in workers}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return {by_descriptor[descriptor] for descriptor, _ in poll.poll(1000 * SLOW_SECONDS / 2)}
