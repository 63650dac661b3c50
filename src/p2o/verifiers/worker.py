"""`python -m p2o.verifiers.worker SOCKET PRIVATE…`: imports the verifiers once and forks workers, in milliseconds.

Forking is safe here and not in the caller: this process has one thread and neither torch nor a user's `__main__`. It
sees no text but what says whom to fork and whom to end. It ends with its caller, and its workers end with it.
"""

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from p2o.verifiers.answers import GoldError
from p2o.verifiers.blame import known_good
from p2o.verifiers.code_guard import CodeRefused, Guard
from p2o.verifiers.protocol import Answer, Result
from p2o.verifiers.sandbox import Sandbox, prepare

EXTRACTED_CHARACTERS = 1000
PR_SET_PDEATHSIG = 1
EXIT_SECONDS = 1.0
MODULES = {name: f"p2o.verifiers.{name}" for name in ("math", "exact", "gym", "accuracy")}
MODULES["check"] = MODULES["math"]
FIELDS = {"math": "solution", "check": "solution", "exact": "solution", "accuracy": "solution", "gym": "entry"}


def main(control: socket.socket, private: list[Path]) -> None:
    """Serves these commands until the caller is gone, after one line of JSON: what the sandbox cannot enforce here.

    - `fork VERIFIER`, with a socket for the worker, is answered with its process number;
    - `kill PID` ends a worker;
    - `bury PID` tells how one ended that is at its end: its exit code (negative: the signal) and seconds computed.

    Args:
        private: folders that workers must not read, even where modules are imported from them.
    """
    caller = os.getppid()
    _own_signals()
    _warm_up()
    sandbox = prepare(private)
    control.send(json.dumps(sandbox.missing).encode() + b"\n")
    workers: set[int] = set()
    buffer = b""
    while os.getppid() == caller:
        # A copy of the socket in a fork of the caller may keep it open: hence a look at the caller itself.
        if not select.select([control], [], [], 1.0)[0]:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 16)
        if not message:
            break
        buffer += message
        *commands, buffer = buffer.split(b"\n")
        for command in commands:
            name, argument = command.split()
            if name == b"fork":
                descriptor = descriptors.pop(0)
                importlib.import_module(MODULES[argument.decode()])
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _work(socket.socket(fileno=descriptor), sandbox)
                os.close(descriptor)
                workers.add(pid)
                control.send(b"%d\n" % pid)
            else:
                workers.discard(int(argument))
                ended = _end(int(argument), wait=EXIT_SECONDS if name == b"bury" else 0.0)
                if name == b"bury":
                    control.send(b"%d %.6f\n" % ended)
    for pid in workers:
        _end(pid)


def _end(pid: int, wait: float = 0.0) -> tuple[int, float]:
    """Exit code and seconds computed of a worker, which is killed if it has not ended after so many seconds."""
    until = time.monotonic() + wait
    # Only we reap our children, so the number cannot belong to anybody else by now.
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.005)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def _own_signals() -> None:
    """None of the caller's: what is ignored or blocked there would be here."""
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Ctrl-C is the caller's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _warm_up() -> None:
    """Regular expressions are compiled and parsers have seen the usual before workers are forked."""
    math = importlib.import_module("p2o.verifiers.math")
    usual = (r"\frac{1}{2}", "12.5", r"\sqrt{3}+x^2", "(1,2]", r"\{1,2\}", r"50\%", "x=5", r"5\text{ cm}", "1,2")
    for answer in usual:
        for gold in (answer, "7", "(2,3)", "x+y"):
            math.score(rf"So \[x = \boxed{{{answer}}}\]", {"solution": gold})
    for said in (
        r"1 1/4",
        "√3",
        r"18 \text{ apples}",
        r"\text{(B) }12",
        "x>2",
        r"2 \pm \sqrt3",
        r"x=1, y=2",
        "10:30",
        "1_2",
    ):
        for gold in (r"50\%", "(2,7]", "3, 4", "2:30", "no"):
            math.score(rf"\boxed{{{said}}}", {"solution": gold})
    math.score("None.", {"solution": "7"})
    gc.freeze()  # what is there is for good, and shared


class _Memory:
    """What this process has taken of its address space; opened before files are out of reach."""

    def __init__(self) -> None:
        self.descriptor = os.open("/proc/self/status", os.O_RDONLY)

    def peak(self) -> int:
        """Bytes of address space that this process has had at most."""
        status = os.pread(self.descriptor, 1 << 14, 0)
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(b"VmPeak"))


def _work(channel: socket.socket, sandbox: Sandbox) -> None:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with open(os.devnull, "r+b") as nothing:
            for descriptor in (0, 1, 2):
                os.dup2(nothing.fileno(), descriptor)
        memory, guard = _Memory(), Guard()
        with channel, channel.makefile("rb") as lines:
            allowed = json.loads(lines.readline())["memory"]
            suspicious = memory.peak() + allowed // 2
            _limit_memory(memory.peak() + allowed)
            sandbox.enter()
            _close_all_but({0, 1, 2, channel.fileno(), memory.descriptor})
            guard.install()
            for line in lines:
                if not _judge(json.loads(line), channel, memory, suspicious, guard):
                    break
        code = 0
    finally:
        os._exit(code)


def _judge(chunk: dict[str, Any], channel: socket.socket, memory: _Memory, suspicious: int, guard: Guard) -> bool:
    """Answers for a chunk of jobs; returns whether there is memory for another."""
    nonce = chunk["nonce"]
    _prepare(chunk["jobs"])
    # It has arrived: who dies before is not killed by a completion.
    channel.sendall(Answer(nonce, -1, time.process_time(), False, None).encoded())
    for place, job in enumerate(chunk["jobs"]):
        # The caller keeps the limit. This is for when it cannot: the kernel's default for SIGALRM is death, even inside
        # a C function that never returns to Python.
        signal.setitimer(signal.ITIMER_REAL, chunk["seconds"] + 1)
        result = verdict(job, guard)
        # sympy turns a MemoryError into an answer that is not equal, or none; the peak tells.
        spent = result.get("reason") == "memory" or memory.peak() > suspicious
        if spent and result.get("reason") in ("wrong", "no answer"):
            result.update(reason="memory", reward=0.0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(Answer(nonce, place, time.process_time(), spent, result).encoded())
        if spent:  # the next one starts with all of its memory, in another worker
            return False
    return True


def _prepare(jobs: list[dict[str, Any]]) -> None:
    """Reading a family's word lists can take seconds, which are no completion's."""
    for job in jobs:
        if job["verifier"] == "gym":
            with contextlib.suppress(Exception):  # a broken entry is told where it is judged
                importlib.import_module(MODULES["gym"]).warm_up(job)


def _limit_memory(most: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _close_all_but(kept: set[int]) -> None:
    """What the parent had open is no business of a worker's."""
    edges = [-1, *sorted(kept), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)


def verdict(job: dict[str, Any], guard: Guard | None = None) -> Result:
    """The fields of a verdict, or a `problem` with the gold answer.

    Where a scorer stumbles, a known-good answer to the same question tells who is at fault: if it is judged, the
    completion is, and its reward is 0; else nobody is, and its reward is None.
    """
    began = time.perf_counter()
    if "problem" in job:
        return {"problem": job["problem"]}
    reward: float | None = 0.0
    extracted = None
    try:
        if job.get(FIELDS[job["verifier"]]) is None:
            raise GoldError("it is neither text nor a number")
        reward, extracted = _score(job, guard)
        reason = "no answer" if reward is None else "right" if reward > 0 else "wrong"
        reward = reward or 0.0
    except MemoryError:
        reason = "memory"
    except GoldError as error:
        field = FIELDS[job["verifier"]]
        shown = str(job.get(field))
        shown = shown if len(shown) <= 80 else shown[:80] + "…"
        return {"problem": f"{field!r} is {shown!r}: {error}"}
    except Exception:  # whatever a scorer raises over an untrusted answer
        reason, reward = "crash", 0.0 if _judges_known_good(job, guard) else None
    return {
        "reward": reward,
        "extracted": extracted[:EXTRACTED_CHARACTERS] if extracted else None,
        "reason": reason,
        "milliseconds": round(1000 * (time.perf_counter() - began), 3),
    }


def _score(job: dict[str, Any], guard: Guard | None) -> tuple[float | None, str | None]:
    module = importlib.import_module(MODULES[job["verifier"]])
    if job["verifier"] == "check":
        module.parse_gold(job["solution"])
        return 1.0, None
    before = guard.refused if guard else 0
    scored: tuple[float | None, str | None] = module.score(job["completion"], job)
    if guard and guard.refused > before:
        raise CodeRefused("The scorer went on without what it wanted to run.")
    return scored


def _judges_known_good(job: dict[str, Any], guard: Guard | None) -> bool:
    text = known_good(job)
    try:
        return text is not None and _score({**job, "completion": text}, guard) is not None
    except Exception:
        return False


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), [Path(folder) for folder in sys.argv[2:]])
