"""Worker processes for untrusted completions, each with a limit of wall-clock time and of memory per completion.

A worker that is stuck does not hold up the rest: within a tenth of a second others, beside the usual number, take over
what it has not begun; it goes on at low priority until its limit. So a batch takes little longer than the limit.
"""

import atexit
import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Result = dict[str, Any]

CHUNK = 16
SLOW_SECONDS = 0.03
STUCK_SECONDS = 1.0
SPARES = 16
START_SECONDS = 120.0
MOST_FAILURES = 5


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
        self._idle: list[_Worker] = []
        self._active = self._slow = 0
        self._forking = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def stream(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Result]]:
        """Results as they come, with the index of their job. A job's fault is its own result, never an exception.

        Raises:
            RuntimeError: workers cannot be started at all.
        """
        source = enumerate(jobs)
        waiting: deque[tuple[int, Job]] = deque()
        busy: set[_Worker] = set()
        exhausted, failures = False, 0
        try:
            while True:
                while waiting or not exhausted:
                    if not waiting:
                        waiting.extend(itertools.islice(source, CHUNK))
                        exhausted = not waiting
                        continue
                    worker = self._take(waiting[0][1]["verifier"], wait=not busy)
                    if worker is None:
                        break
                    chunk = [waiting.popleft() for _ in range(min(CHUNK, len(waiting)))]
                    worker.send(chunk)
                    busy.add(worker)
                if not busy:
                    return
                ready = _ready(busy)
                for worker in list(busy):
                    if worker in ready:
                        results, alive = worker.receive()
                        if results:
                            failures = 0
                        yield from results
                    else:
                        alive = True
                    elapsed = time.monotonic() - worker.since
                    if not worker.jobs and alive and not worker.slow:
                        busy.remove(worker)
                        self._give(worker)
                        continue
                    # On a busy machine it can take a worker long to wake up, which is no completion's fault.
                    if alive and worker.jobs and elapsed < (self.limits.seconds if worker.begun else START_SECONDS):
                        if elapsed > SLOW_SECONDS / 2 and not worker.slow and worker.is_stuck(elapsed):
                            waiting.extendleft(reversed(worker.rest()))
                            self._slow_down(worker)
                        continue
                    busy.remove(worker)
                    self._drop(worker)
                    if not worker.begun:
                        # It died before it had read anything, so no completion is to blame.
                        failures += 1
                        if failures > MOST_FAILURES:
                            raise RuntimeError("The verifiers' workers die as soon as they are started.")
                    elif worker.jobs and not worker.spent:
                        yield worker.jobs.popleft()[0], _failure("time-out" if alive else "crash", elapsed)
                    waiting.extendleft(reversed(worker.jobs))
        finally:
            for worker in busy:
                self._drop(worker)

    def close(self) -> None:
        """Ends all workers; those that are waited for count as crashed."""
        with self._changed:
            self._idle.clear()
        with self._forking:
            self._end_server()

    # -- workers -----------------------------------------------------------------------------------------------------

    def _take(self, verifier: str, *, wait: bool) -> "_Worker | None":
        with self._changed:
            while self._active >= self.size or self._active + self._slow >= self.size + SPARES:
                if not wait:
                    return None
                self._changed.wait()
            self._active += 1
            if self._idle:
                return self._idle.pop()
        try:
            return self._start(verifier)
        except BaseException:
            self._release(slow=False)
            raise

    def _give(self, worker: "_Worker") -> None:
        with self._changed:
            self._idle.append(worker)
        self._release(slow=False)

    def _drop(self, worker: "_Worker") -> None:
        worker.channel.close()
        with self._forking:
            if self._server is worker.server and self._control is not None:
                with contextlib.suppress(OSError):
                    self._control.send(b"kill %d\n" % worker.pid)
        self._release(slow=worker.slow)

    def _slow_down(self, worker: "_Worker") -> None:
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

    def _start(self, verifier: str) -> "_Worker":
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
        worker = _Worker(pid, ours, self._server)
        worker.greet(self.limits)
        return worker

    def _start_server(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(START_SECONDS)
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package]))
        with theirs, tempfile.TemporaryFile() as said:
            self._server = subprocess.Popen(
                # -P: no module of the working directory stands in for one of Python's.
                [sys.executable, "-P", "-m", "p2o.verifiers.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is ours
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
            self._control = ours
            theirs.close()
            try:
                _line(ours)
            except OSError as error:
                self._end_server()
                said.seek(0)
                reason = said.read().decode(errors="replace").strip()[-2000:] or str(error)
                raise RuntimeError(f"The verifiers' workers cannot be started: {reason}") from None

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


class _Worker:
    """One worker as its caller sees it: the chunk it has, and since when it has been at the first job of that."""

    def __init__(self, pid: int, channel: socket.socket, server: Any) -> None:
        self.pid, self.channel, self.server = pid, channel, server
        self.jobs: deque[tuple[int, Job]] = deque()
        self.since = time.monotonic()
        self.begun = self.slow = self.spent = False
        self._buffer = b""
        self._looked_at = self._cpu_seconds = 0.0

    def greet(self, limits: Limits) -> None:
        self._write({"memory": limits.memory_mb * 2**20, "seconds": limits.seconds})

    def send(self, chunk: list[tuple[int, Job]]) -> None:
        self.jobs, self.begun = deque(chunk), False
        self._write({"jobs": [job for _, job in chunk]})
        self.since = time.monotonic()

    def rest(self) -> list[tuple[int, Job]]:
        """Takes back what it has not begun."""
        first, *rest = self.jobs
        self.jobs = deque([first])
        return rest

    def receive(self) -> tuple[list[tuple[int, Result]], bool]:
        """What has come, and whether it is alive. One that has needed much memory is done."""
        results: list[tuple[int, Result]] = []
        try:
            data = self.channel.recv(1 << 16)
        except OSError:
            data = b""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if not self.begun:
                self.begun, self.since = True, time.monotonic()
                continue
            if not self.jobs or self.spent:
                break
            results.append((self.jobs.popleft()[0], json.loads(line)))
            self.since = time.monotonic()
            self.spent = results[-1][1]["spent"]
        return results, bool(data) and not self.spent

    def is_stuck(self, elapsed: float) -> bool:
        """Whether it has worked long on its present job. On a busy machine it may only have waited for a core."""
        if elapsed > STUCK_SECONDS:
            return True
        if self._looked_at != self.since:
            self._looked_at, self._cpu_seconds = self.since, _cpu_seconds(self.pid)
        return _cpu_seconds(self.pid) - self._cpu_seconds > SLOW_SECONDS

    def _write(self, message: Any) -> None:
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            # It is gone, or has half a message: that it is of no use is seen where it should answer.
            with contextlib.suppress(OSError):
                self.channel.shutdown(socket.SHUT_RDWR)


def _ready(workers: set[_Worker]) -> set[_Worker]:
    """Workers with something to read. Wakes up in time for limits."""
    poll = select.poll()
    by_descriptor = {worker.channel.fileno(): worker for worker in workers}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return {by_descriptor[descriptor] for descriptor, _ in poll.poll(1000 * SLOW_SECONDS / 2)}


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _line(channel: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        more = channel.recv(64)
        if not more:
            raise OSError("it ended at once")
        data += more
    return data


def _failure(reason: str, seconds: float) -> Result:
    return {"reward": 0.0, "extracted": None, "reason": reason, "milliseconds": round(1000 * seconds, 3)}


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
