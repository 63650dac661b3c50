"""A pool of verifier processes: a stuck or dead one is killed and replaced, and costs its own completion only."""

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal

Reason = Literal["right", "wrong", "no answer", "time-out", "memory", "crash", "unparsable solution"]

# What a pipe takes without anybody reading at the other end is 64 KiB; more would block on a stuck process.
IN_FLIGHT = 48_000
# Answers stand at the end. What is in front of so many characters is not looked at.
READ = 20_000
START_SECONDS = 120.0


@dataclass(frozen=True)
class Verdict:
    """On one completion.

    Args:
        reward: in [0, 1]; None where the solution itself cannot be read, which is no failure of the completion.
        extracted: the answer found, None where there is none.
        reason: why the reward is what it is.
        milliseconds: of verification.
    """

    reward: float | None
    extracted: str | None
    reason: Reason
    milliseconds: float


class VerifierPool:
    """Verifies batches in processes of its own; may be called from several threads at once.

    Args:
        workers: processes; started when they are first needed.
        timeout: seconds for one completion.
        memory: bytes for one process, beyond what its libraries take.
    """

    def __init__(self, workers: int | None = None, *, timeout: float = 5.0, memory: int = 1 << 30) -> None:
        self.workers = workers or os.cpu_count() or 1
        self.timeout, self.memory = timeout, memory
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(self.workers, "verifier")

    def verify(
        self, completions: Sequence[str], solutions: Sequence[str], verifier: Literal["math", "exact"] = "math"
    ) -> list[Verdict]:
        """A verdict for each completion, in order.

        Args:
            verifier: 'math' is math-verify as TRL's `accuracy_reward` has it; 'exact' compares the last box, or the
                whole, to the letter. Of a completion the last 20,000 characters are read.

        Raises:
            ValueError: not as many solutions as completions.
            RuntimeError: no process can be started.
        """
        lines = [
            json.dumps([verifier, completion[-READ:], solution]).encode() + b"\n"
            for completion, solution in zip(completions, solutions, strict=True)
        ]
        todo = deque(enumerate(lines))
        verdicts: list[Verdict | None] = [None] * len(lines)
        threads = min(self.workers, len(lines))
        for done in [self._threads.submit(self._serve, todo, verdicts) for _ in range(threads)]:
            done.result()
        return [verdict for verdict in verdicts if verdict is not None]

    def _serve(self, todo: "deque[tuple[int, bytes]]", verdicts: list[Verdict | None]) -> None:
        """Works on what is left to do with one process after the other, until there is nothing."""
        worker = self._idle.get()
        try:
            while todo:
                if worker is None:
                    worker = _Worker(self.memory, self.timeout)
                if not worker.work(todo, verdicts):
                    worker.kill()
                    worker = None
        except BaseException:
            if worker is not None:
                worker.kill()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def unreadable(self, solutions: Sequence[str]) -> list[int]:
        """Which of these solutions math-verify cannot read."""
        verdicts = self.verify([""] * len(solutions), solutions)
        return [index for index, verdict in enumerate(verdicts) if verdict.reason != "no answer"]

    def close(self) -> None:
        self._threads.shutdown()
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.kill()


class _Worker:
    def __init__(self, memory: int, timeout: float) -> None:
        self.timeout = timeout
        self.process = subprocess.Popen(
            [sys.executable, "-m", "p2o.verifiers.worker", str(memory), str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for whoever started the run
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.readable = select.poll()
        self.readable.register(self.output, select.POLLIN | select.POLLHUP)
        self.buffer = b""
        if self._line(START_SECONDS) != b"ready":
            self.kill()
            raise RuntimeError(
                "A verifier process does not start. Is math-verify installed (pip install 'math-verify[antlr4_13_2]')? "
                "`python -m p2o.verifiers.worker 1000000000 5` says what is wrong."
            )

    def _line(self, seconds: float) -> bytes | None:
        """The next line; b"" where the process is gone, None where it takes too long."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not self.readable.poll(1000 * left):
                return None
            read = os.read(self.output.fileno(), 1 << 16)
            if not read:
                return b""
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def work(self, todo: "deque[tuple[int, bytes]]", verdicts: list[Verdict | None]) -> bool:
        """Takes completions until none is left; False where this process is of no more use."""
        sent: deque[tuple[int, bytes]] = deque()
        while True:
            while not sent or sum(len(line) for _, line in sent) < IN_FLIGHT:
                try:
                    index, line = todo.popleft()
                except IndexError:
                    break
                if sent and sum(len(other) for _, other in sent) + len(line) > IN_FLIGHT:
                    todo.appendleft((index, line))
                    break
                sent.append((index, line))
                try:
                    self.input.write(line)
                except OSError:
                    break  # it is gone, which the next reading tells
            if not sent:
                return True
            began = time.monotonic()
            answer = self._line(self.timeout)
            index, _ = sent.popleft()
            if answer:
                verdicts[index] = Verdict(**json.loads(answer))
                continue
            reason: Reason = "time-out" if answer is None else "crash"
            verdicts[index] = Verdict(0.0, None, reason, 1000 * (time.monotonic() - began))
            todo.extendleft(reversed(sent))
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.input.close()
        self.output.close()


_lock = threading.Lock()


@cache
def _shared(pid: int) -> VerifierPool:
    return VerifierPool()


def shared_pool() -> VerifierPool:
    """The pool that reward functions share, one for each process of a run."""
    with _lock:
        return _shared(os.getpid())
