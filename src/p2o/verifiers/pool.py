"""Worker processes for untrusted completions, each with a limit of wall-clock time and of memory per completion.

A worker that is stuck does not hold up the rest: within a tenth of a second others take over what it has not begun, and
it goes on at low priority until its limit. pebble limits time, but not memory, and has no sandbox for workers.
"""

import atexit
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from p2o.verifiers.blame import Attempt, Ending, decide, known_good
from p2o.verifiers.connection import SLOW_SECONDS, START_SECONDS, Task, Worker, ready
from p2o.verifiers.protocol import Job, Result

logger = logging.getLogger(__name__)

CHUNK = 16
SPARES = 16
MOST_FAILURES = 5
# Python's own needs. Everything else, keys and tokens among it, stays with the caller.
ENVIRONMENT = ("PYTHONHOME", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY")
ALWAYS_IMPORTED = frozenset({"math", "exact", "check"})


@dataclass(frozen=True)
class Limits:
    """
    Args:
        seconds: wall-clock time for one completion, more than 0; the default is what math-verify allows by itself.
        memory_mb: address space in MiB that a worker may take beside what it starts with, more than 0.
        workers: processes; None for as many as this process may use cores, shared with the other processes of a
            distributed run on this machine. Up to 16 more run while that many are stuck.

    Raises:
        ValueError: a limit that is not positive.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_mb", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"The verifiers' limit {name} must be more than 0, not {value}.")


class Pool:
    """Workers of this process, started when first needed. All methods may be called from any thread."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.size = self.limits.workers or max(len(os.sched_getaffinity(0)) // shared, 1)
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self._active = self._slow = 0
        self._forking = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def stream(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Result]]:
        """Results as they come, with the index of their job. A job's fault is its own result, never an exception.

        Raises:
            RuntimeError: workers cannot be started at all.
        """
        return _Batch(self, jobs).run()

    def close(self) -> None:
        """Ends all workers; those that are waited for count as killed."""
        with self._changed:
            self._idle.clear()
        with self._forking:
            self._end_server()

    def take(self, task: Task, *, wait: bool) -> Worker | None:
        """A worker for this task, a new one if it was tried before; None where all are busy and it is not to wait."""
        with self._changed:
            while self._active >= self.size or self._active + self._slow >= self.size + SPARES:
                if not wait:
                    return None
                self._changed.wait()
            self._active += 1
            verifier = task.job["verifier"]
            fit = (w for w in reversed(self._idle) if w.verifier == verifier or verifier in ALWAYS_IMPORTED)
            worker = None if task.attempts else next(fit, None)
            if worker is not None:
                self._idle.remove(worker)
                return worker
        try:
            return self._start(verifier)
        except BaseException:
            self._release(slow=False)
            raise

    def give(self, worker: Worker) -> None:
        """Back for others; of more than the pool's size the one that has waited longest is ended."""
        with self._changed:
            self._idle.append(worker)
            surplus = self._idle.pop(0) if len(self._idle) > self.size else None
        if surplus is not None:
            self._end(surplus, b"kill")
        self._release(slow=False)

    def drop(self, worker: Worker, *, ask: bool = False) -> tuple[int, float] | None:
        """Ends it; asked, tells its exit code and the seconds it computed, or None when nobody knows."""
        told = self._end(worker, b"bury" if ask else b"kill")
        self._release(slow=worker.slow)
        return told

    def slow_down(self, worker: Worker) -> None:
        """It goes on beside the usual number of workers, at low priority; a retry has suffered enough from that."""
        if not worker.tasks[0].attempts:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, worker.pid, 10)
        worker.slow = True
        with self._changed:
            self._active -= 1
            self._slow += 1
            self._changed.notify_all()

    def _release(self, *, slow: bool) -> None:
        with self._changed:
            if slow:
                self._slow -= 1
            else:
                self._active -= 1
            self._changed.notify_all()

    def _end(self, worker: Worker, command: bytes) -> tuple[int, float] | None:
        worker.channel.close()
        with self._forking:
            if self._server is worker.server and self._control is not None:
                with contextlib.suppress(OSError):
                    self._control.send(b"%s %d\n" % (command, worker.pid))
                    if command == b"bury":
                        code, seconds = _line(self._control).split()
                        return int(code), float(seconds)
        return None

    def _start(self, verifier: str) -> Worker:
        with self._forking:
            for attempt in (1, 2):
                try:
                    if self._control is None:
                        self._start_server()
                    assert self._control is not None and self._server is not None
                    ours, theirs = socket.socketpair()
                    with theirs:
                        socket.send_fds(self._control, [b"fork %s\n" % verifier.encode()], [theirs.fileno()])
                        pid = int(_line(self._control))
                    break
                except (OSError, ValueError):
                    self._end_server()
                    if attempt == 2:
                        raise RuntimeError("The verifiers' workers cannot be started.") from None
        ours.settimeout(START_SECONDS)
        worker = Worker(pid, ours, verifier, self.limits.seconds, self._server)
        worker.greet(self.limits.memory_mb * 2**20)
        return worker

    def _start_server(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(START_SECONDS)
        private = {str(Path.cwd()), os.path.expanduser("~")}
        with theirs, tempfile.TemporaryFile() as said:
            self._server = subprocess.Popen(
                # -P: no module of the working directory stands in for one of Python's.
                [sys.executable, "-P", "-m", "p2o.verifiers.worker", str(theirs.fileno()), *sorted(private)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is ours
                env=_environment(),
                cwd="/",
            )
            self._control = ours
            theirs.close()
            try:
                missing = json.loads(_line(ours))
            except (OSError, ValueError) as error:
                self._end_server()
                said.seek(0)
                reason = said.read().decode(errors="replace").strip()[-2000:] or str(error)
                raise RuntimeError(f"The verifiers' workers cannot be started: {reason}") from None
        _warn_once(missing)

    def _end_server(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            try:
                self._server.wait(timeout=2)  # it ends its workers, and then itself
            except subprocess.TimeoutExpired:
                self._server.kill()  # they die with it
                self._server.wait()
        self._control = self._server = None


class _Batch:
    """The jobs of one call on their way through the pool."""

    def __init__(self, pool: Pool, jobs: Iterable[Job]) -> None:
        self.pool, self.limit = pool, pool.limits.seconds
        self.source = (Task(index, job) for index, job in enumerate(jobs))
        self.waiting: deque[Task] = deque()
        self.busy: set[Worker] = set()
        self.exhausted, self.failures = False, 0

    def run(self) -> Iterator[tuple[int, Result]]:
        try:
            while True:
                self._hand_out()
                if not self.busy:
                    return
                answering = ready(self.busy)
                for worker in list(self.busy):
                    yield from self._look_after(worker, worker in answering)
        finally:
            for worker in self.busy:
                self.pool.drop(worker)

    def _hand_out(self) -> None:
        while self.waiting or not self.exhausted:
            if not self.waiting:
                self.waiting.extend(itertools.islice(self.source, CHUNK))
                self.exhausted = not self.waiting
                continue
            worker = self.pool.take(self.waiting[0], wait=not self.busy)
            if worker is None:
                return
            chunk = [self.waiting.popleft()]
            while self.waiting and len(chunk) < CHUNK and not chunk[0].attempts and not self.waiting[0].attempts:
                chunk.append(self.waiting.popleft())
            worker.send(chunk)
            self.busy.add(worker)

    def _look_after(self, worker: Worker, is_ready: bool) -> Iterator[tuple[int, Result]]:
        results, goes_on = worker.receive() if is_ready else ([], True)
        if results:
            self.failures = 0
        for task, result in results:
            yield task.index, _of_probe(task, result) if task.probing else result
        elapsed = time.monotonic() - worker.since
        if not worker.tasks and goes_on and not worker.slow:
            self.busy.remove(worker)
            self.pool.give(worker)
        elif goes_on and worker.tasks and not worker.is_overdue(elapsed):
            if elapsed > SLOW_SECONDS / 2 and not worker.slow and worker.is_stuck(elapsed):
                self.waiting.extendleft(reversed(worker.rest()))
                self.pool.slow_down(worker)
        else:
            yield from self._lost(worker, elapsed, goes_on)

    def _lost(self, worker: Worker, elapsed: float, goes_on: bool) -> Iterator[tuple[int, Result]]:
        """Ends a worker that is at its end or over its limit, and decides what becomes of what it was at."""
        self.busy.remove(worker)
        cpu_seconds = worker.cpu_seconds() if goes_on else 0.0
        told = self.pool.drop(worker, ask=not goes_on)
        if not worker.begun:
            # It died before it had read anything, so no completion is to blame.
            self.failures += 1
            if self.failures > MOST_FAILURES:
                raise RuntimeError("The verifiers' workers die as soon as they are started.")
        elif worker.tasks and not worker.spent:
            ending: Ending = "time-out"
            if not goes_on:
                code, total = told or (-signal.SIGKILL, 0.0)
                cpu_seconds = max(total - worker.cpu_before, 0.0)
                ending = "died" if worker.has_breached else _ending(code)
            task = worker.tasks.popleft()
            yield from self._decide(task.tried(Attempt(ending, cpu_seconds, 1000 * elapsed)))
        self.waiting.extendleft(reversed(worker.tasks))

    def _decide(self, task: Task) -> Iterator[tuple[int, Result]]:
        decision = "nobody" if task.probing else decide(task.attempts, self.limit)
        text = known_good(task.job) if decision == "probe" else None
        if decision == "retry":
            self.waiting.appendleft(task)
        elif text is not None:
            self.waiting.appendleft(replace(task, job={**task.job, "completion": text}, probing=True))
        else:
            yield task.index, _unjudged(task, 0.0 if decision == "completion" else None)


def _ending(code: int) -> Ending:
    """What an exit code says; SIGALRM is the worker's own, when its caller could not keep the limit."""
    return {-signal.SIGKILL: "killed", -signal.SIGALRM: "time-out"}.get(code, "died")  # type: ignore[return-value]


def _of_probe(task: Task, result: Result) -> Result:
    """The completion's result, by that of the known-good answer in its place."""
    passed = result.get("reason") in ("right", "wrong", "no answer")
    return _unjudged(task, 0.0 if passed else None)


def _unjudged(task: Task, reward: float | None) -> Result:
    reason = "time-out" if task.attempts[-1].ending == "time-out" else "crash"
    milliseconds = round(sum(attempt.milliseconds for attempt in task.attempts), 3)
    return {"reward": reward, "extracted": None, "reason": reason, "milliseconds": milliseconds}


def _environment() -> dict[str, str]:
    """Nothing but what Python needs to find itself and the libraries."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [os.path.abspath(path) for path in [*paths, str(Path(__file__).parents[2])]]
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}


_warned: set[str] = set()


def _warn_once(missing: list[str]) -> None:
    new = [name for name in missing if name not in _warned]
    _warned.update(new)
    if new:
        logger.warning(
            "This machine cannot enforce everything on the processes that judge completions. Not enforced: %s. "
            "It takes libseccomp.so.2 and a kernel of Linux 5.13 or later with Landlock.",
            "; ".join(new),
        )


def _line(channel: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        more = channel.recv(64)
        if not more:
            raise OSError("it ended at once")
        data += more
    return data


# -- this process's own pool -----------------------------------------------------------------------------------------

_lock = threading.Lock()
_limits = Limits()
_pool: Pool | None = None


def default_pool() -> Pool:
    """The pool that is used where none is named; each process has its own."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = Pool(_limits)
        return _pool


def set_default_limits(limits: Limits) -> None:
    """Limits of this process's own pool, from its next use on."""
    global _limits, _pool
    with _lock:
        _limits, old, _pool = limits, _pool, None
    if old is not None:
        old.close()


def _forget() -> None:
    """A fork has its parent's workers' sockets, but they are not its own."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


@atexit.register
def _close() -> None:
    if _pool is not None:
        _pool.close()


os.register_at_fork(after_in_child=_forget)
