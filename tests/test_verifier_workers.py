"""Verdicts on hostile and unlucky completions, all at once and one by one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hostile import GOLD, STUCK, hostile_completions, rows
from p2o.cli import main
from p2o.verifiers import Limits, Pool, count_reasons, verify


@pytest.fixture
def short():
    made = Pool(Limits(seconds=0.5, memory_mb=256, workers=2))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("verifier", ["math", "exact"])
def test_no_hostile_completion_hangs_or_kills_or_is_rewarded(short, verifier):
    completions = hostile_completions()
    assert len(completions) >= 300
    verdicts = verify(completions, rows(GOLD) * len(completions), verifier, pool=short)
    rewarded = [c[:80] for c, v in zip(completions, verdicts, strict=True) if v.reward]
    assert len(verdicts) == len(completions) and not rewarded
    assert count_reasons(verdicts)["crash"] == 0
    assert verify([rf"\boxed{{{GOLD}}}"], rows(GOLD), verifier, pool=short)[0].reason == "right"


@pytest.mark.slow
def test_score_survives_the_hostile_ones_too(tmp_path, capsys):
    path = tmp_path / "hostile.jsonl"
    completions = hostile_completions()[::4]
    path.write_text("".join(json.dumps({"completion": c, "solution": GOLD}) + "\n" for c in completions))
    assert main(["score", str(path), "--timeout", "0.3", "--memory", "256"]) == 0
    scored = [json.loads(line) for line in (tmp_path / "hostile.scored.jsonl").read_text().splitlines()]
    assert [record["line"] for record in scored] == list(range(1, len(completions) + 1))
    assert all(record["reward"] == 0 and record["reason"] not in ("right", "crash") for record in scored)
    assert "time-out" in capsys.readouterr().out


def test_a_stuck_completion_costs_only_itself(short):
    completions = [STUCK if n % 16 == 3 else rf"\boxed{{{n}}}" for n in range(64)]
    verdicts = verify(completions, rows(*map(str, range(64))), pool=short)
    assert [v.reason for v in verdicts] == ["time-out" if n % 16 == 3 else "right" for n in range(64)]
    assert all(v.milliseconds >= 500 for v in verdicts if v.reason == "time-out")


def test_memory_runs_out_for_one_completion_only():
    pool = Pool(Limits(seconds=20, memory_mb=4, workers=1))
    verdicts = verify([r"\boxed{1}", r"\boxed{2^{10^8}}", r"\boxed{2}"], rows("1", "2", "2"), pool=pool)
    pool.close()
    assert [v.reason for v in verdicts] == ["right", "memory", "right"]


def workers_of(pool):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pool._server.pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


def kill_whoever_computes(pool, number, times):
    """Sends a signal to workers that have been at one completion for a while; returns a function that ends that."""
    done = threading.Event()

    def watch():
        known = {}
        while times[0] and not done.wait(0.02):
            for pid in workers_of(pool):
                now = cpu_seconds(pid)
                if now - known.setdefault(pid, now) > 0.1 and times[0]:
                    times[0] -= 1
                    known[pid] = float("inf")
                    os.kill(pid, number)

    watcher = threading.Thread(target=watch)
    watcher.start()
    return lambda: (done.set(), watcher.join())


def cpu_seconds(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("number", "times", "reason", "reward"),
    [
        (signal.SIGKILL, 1, "time-out", 0.0),  # its retry computes until the limit
        (signal.SIGKILL, 2, "crash", None),  # as by a system whose memory runs out
        (signal.SIGSEGV, 2, "crash", 0.0),  # as by its own fault, since the gold answer in its place is judged
    ],
)
def test_a_worker_that_dies_is_blamed_on_who_is_at_fault(number, times, reason, reward):
    pool = Pool(Limits(seconds=5, workers=1))
    stop = kill_whoever_computes(pool, number, [times])
    verdicts = verify([STUCK, *[r"\boxed{1}"] * 30], rows(*["1"] * 31), pool=pool)
    stop()
    pool.close()
    assert (verdicts[0].reason, verdicts[0].reward) == (reason, reward)
    assert {(v.reason, v.reward) for v in verdicts[1:]} == {("right", 1.0)}


def test_workers_killed_from_outside_are_replaced():
    pool = Pool(Limits(seconds=5, workers=1))
    assert verify([r"\boxed{1}"], rows("1"), pool=pool)[0].reason == "right"
    os.kill(workers_of(pool)[0], signal.SIGKILL)  # an idle one: nothing is lost
    assert verify([r"\boxed{1}"], rows("1"), pool=pool)[0].reason == "right"
    os.kill(pool._server.pid, signal.SIGKILL)  # what forks them
    pool._server.wait()
    assert {v.reason for v in verify([r"\boxed{1}"] * 3, rows(*["1"] * 3), pool=pool)} == {"right"}
    pool.close()


@pytest.mark.slow
def test_a_worker_that_gets_no_core_is_no_completions_fault(monkeypatch):
    monkeypatch.setattr("p2o.verifiers.blame.LEAST_RETRY_SECONDS", 1)
    pool = Pool(Limits(seconds=1, workers=1))
    assert verify([r"\boxed{1}"], rows("1"), pool=pool)[0].reason == "right"
    (first,) = workers_of(pool)
    calls = []
    thread = threading.Thread(target=lambda: calls.extend(verify([STUCK], rows("1"), pool=pool)))
    thread.start()
    while cpu_seconds(first) < 0.01:
        time.sleep(0.01)
    stopped = set()
    while thread.is_alive():
        for pid in set(workers_of(pool)) - stopped:
            if pid == first or cpu_seconds(pid) > 0:
                stopped.add(pid)
                os.kill(pid, signal.SIGSTOP)
        time.sleep(0.005)
    pool.close()
    assert [(v.reason, v.reward) for v in calls] == [("time-out", None)] and len(stopped) > 1


def test_workers_that_wake_up_late_cost_nothing():
    """On a busy machine it can take longer than the limit until a worker has read what it was sent."""
    pool = Pool(Limits(seconds=0.2, workers=8))
    many = [r"\boxed{1}"] * 128
    assert {v.reason for v in verify(many, rows("1") * 128, pool=pool)} == {"right"}
    for pid in workers_of(pool):
        os.kill(pid, signal.SIGSTOP)
        # Where it was killed in the meantime, the test fails below.
        threading.Timer(0.5, lambda pid=pid: os.kill(pid, signal.SIGCONT)).start()
    assert {v.reason for v in verify(many, rows("1") * 128, pool=pool)} == {"right"}
    pool.close()


def test_four_threads_at_once(short):
    done = {}

    def call(name):
        completions = [STUCK if n == 5 else rf"\boxed{{{n * name}}}" for n in range(40)]
        done[name] = verify(completions, rows(*(str(n * name) for n in range(40))), pool=short)

    threads = [threading.Thread(target=call, args=(name,)) for name in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(1, 5):
        assert [v.reason for v in done[name]] == ["time-out" if n == 5 else "right" for n in range(40)]


SCRIPT = r"""
import os, sys
from p2o.verifiers import verify, default_pool
print([v.reason for v in verify(["\\boxed{1}", "\\boxed{2}"], [{"solution": "1"}] * 2)], flush=True)
pid = os.fork()
print([v.reason for v in verify(["\\boxed{1}"], [{"solution": "1"}])], flush=True)
if pid == 0:
    sys.exit()
os.waitpid(pid, 0)
print("torch" in sys.modules, "sympy" in sys.modules, default_pool()._server.pid)
"""


def test_a_script_without_guard_and_its_fork_have_pools_of_their_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "random.py").write_text("raise SystemExit('not the one of the library')")
    command = [sys.executable, "-P", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path, check=True)
    *said, last = done.stdout.splitlines()
    assert sorted(said) == ["['right', 'wrong']", "['right']", "['right']"]
    torch, sympy, server = last.split()
    assert (torch, sympy) == ("False", "False") and not done.stderr
    assert not os.path.exists(f"/proc/{server}")


def test_nothing_is_left_when_the_caller_is_killed(tmp_path):
    code = (
        "import sys, threading; from p2o.verifiers import verify, default_pool\n"
        f"threading.Thread(target=verify, args=([{STUCK!r}] * 4, [{{'solution': '1'}}] * 4)).start()\n"
        "import time; time.sleep(4); print(default_pool()._server.pid, flush=True)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server = int(caller.stdout.readline())
    group = os.getpgid(server)
    caller.kill()
    caller.wait()
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("Workers outlive their caller.")
