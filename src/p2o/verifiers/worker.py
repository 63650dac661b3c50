"""`python -m p2o.verifiers.worker SOCKET`: imports the verifiers once and forks workers from itself, in milliseconds.

Forking is safe here and not in the caller: this process has one thread and neither torch nor a user's `__main__`. It
ends with its caller, and its workers end with it.
"""

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

from p2o.verifiers.answers import GoldError

EXTRACTED_CHARACTERS = 1000
PR_SET_PDEATHSIG = 1
MODULES = {name: f"p2o.verifiers.{name}" for name in ("math", "exact", "gym", "accuracy")}
MODULES["check"] = MODULES["math"]
FIELDS = {"math": "solution", "check": "solution", "exact": "solution", "accuracy": "solution", "gym": "entry"}


def main(control: socket.socket) -> None:
    """Serves `fork VERIFIER` (with a socket for the worker) and `kill PID` until the caller is gone."""
    caller = os.getppid()
    _own_signals()
    _warm_up()
    control.send(b"ready\n")
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
                    _work(socket.socket(fileno=descriptor))
                os.close(descriptor)
                workers.add(pid)
                control.send(b"%d\n" % pid)
            else:
                _end(int(argument))
                workers.discard(int(argument))
    for pid in workers:
        _end(pid)


def _end(pid: int) -> None:
    # Only we reap our children, so the number cannot belong to anybody else by now.
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


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


def _work(channel: socket.socket) -> None:
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with open(os.devnull, "r+b") as nothing:
            for descriptor in (0, 1, 2):
                os.dup2(nothing.fileno(), descriptor)
        with channel, channel.makefile("rb") as lines:
            for line in lines:
                chunk = json.loads(line)
                if "memory" in chunk:
                    base = _peak()
                    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
                    most = base + chunk["memory"]
                    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
                    resource.setrlimit(resource.RLIMIT_AS, (most, most))
                    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                    alarm, suspicious = chunk["seconds"] + 1, base + chunk["memory"] // 2
                    continue
                channel.sendall(b"{}\n")  # it has arrived: who dies before is not killed by a completion
                for job in chunk["jobs"]:
                    # The caller keeps the limit. This is for when it cannot: the kernel's default for SIGALRM is death,
                    # even inside a C function that never returns to Python.
                    signal.setitimer(signal.ITIMER_REAL, alarm)
                    result = verdict(job)
                    # sympy turns a MemoryError into an answer that is not equal, or none; the peak tells.
                    result["spent"] = result.get("reason") == "memory" or _peak() > suspicious
                    if result["spent"] and result.get("reason") in ("wrong", "no answer"):
                        result.update(reason="memory", reward=0.0)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    channel.sendall(json.dumps(result).encode() + b"\n")
                    if result["spent"]:  # the next one starts with all of its memory, in another worker
                        return
    finally:
        os._exit(0)


def verdict(job: dict[str, Any]) -> dict[str, Any]:
    """The fields of a verdict, or a `problem` with the gold answer."""
    began = time.perf_counter()
    name = job["verifier"]
    if "problem" in job:
        return {"problem": job["problem"]}
    reward: float | None = 0.0
    extracted = None
    try:
        if job.get(FIELDS[name]) is None:
            raise GoldError("it is neither text nor a number")
        if name == "check":
            importlib.import_module(MODULES[name]).parse_gold(job["solution"])
            reward = 1.0
        else:
            reward, extracted = importlib.import_module(MODULES[name]).score(job["completion"], job)
        reason = "no answer" if reward is None else "right" if reward > 0 else "wrong"
    except MemoryError:
        reason, reward = "memory", 0.0
    except GoldError as error:
        shown = str(job.get(FIELDS[name]))
        shown = shown if len(shown) <= 80 else shown[:80] + "…"
        return {"problem": f"{FIELDS[name]!r} is {shown!r}: {error}"}
    except Exception:  # a scorer that stumbles over an untrusted answer
        reason, reward = "crash", 0.0
    return {
        "reward": reward or 0.0,
        "extracted": extracted[:EXTRACTED_CHARACTERS] if extracted else None,
        "reason": reason,
        "milliseconds": round(1000 * (time.perf_counter() - began), 3),
    }


def _peak() -> int:
    """Bytes of address space that this process has had at most."""
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(b"VmPeak"))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
