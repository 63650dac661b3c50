"""Verdicts on ordinary, hostile and unlucky completions, all through real worker processes."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import math_verify
import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st

from hostile import GOLD, hostile_completions
from p2o.cli import main
from p2o.cli.arguments import load_function
from p2o.verifiers import Limits, Pool, SolutionError, check_solutions, count_reasons, verify
from p2o.verifiers.answers import MOST_CHARACTERS, find_answer, shortened
from p2o.verifiers.math import COMPLETION, gold_text
from p2o.verifiers.math import GOLD as GOLD_CONFIG
from p2o.verifiers.rewards import exact, feedback_of, gym, math

STUCK = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def pool():
    made = Pool(Limits(seconds=10, workers=2))
    yield made
    made.close()


@pytest.fixture
def short():
    made = Pool(Limits(seconds=0.5, memory_mb=256, workers=2))
    yield made
    made.close()


def rows(*solutions):
    return [{"solution": solution} for solution in solutions]


# -- ordinary answers ------------------------------------------------------------------------------------------------


def ordinary_pairs(count=400):
    """Completions and gold answers as mathematics data has them, right and wrong ones."""
    rng = random.Random(0)
    number = lambda: rng.randint(-20, 20)  # noqa: E731
    forms = [
        lambda a, b: f"{a}",
        lambda a, b: rf"\frac{{{a}}}{{{abs(b) + 1}}}",
        lambda a, b: f"{a / 8}",
        lambda a, b: rf"{abs(a)}\%",
        lambda a, b: rf"{a}\sqrt{{{abs(b) + 2}}}",
        lambda a, b: f"({a}, {a + abs(b) + 1}]",
        lambda a, b: rf"\{{{a}, {b}\}}",
        lambda a, b: f"{a}, {b}",
        lambda a, b: rf"{abs(a)}\text{{ cm}}",
        lambda a, b: f"x^2+{abs(a)}x-{abs(b)}",
        lambda a, b: f"x={a}",
        lambda a, b: rf"{a}\pi",
        lambda a, b: rf"\text{{({'ABCDE'[a % 5]})}}",
        lambda a, b: f"{abs(a)},000",
        lambda a, b: rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}",
    ]
    frames = [
        "First {c}, and hence\n\n\\boxed{{{a}}}",
        "We get $x = {c}$.\n\nThe final answer is $\\boxed{{{a}}}$.",
        "\\[\n\\boxed{{{a}}}\n\\]",
        # Further apart than math-verify joins boxes.
        "At first \\boxed{{{c}}}. " + "That forgets one case after another. " * 2 + "So: \\boxed{{{a}}}.",
        "Note that \\[ {c} < 5 \\]\n\nThe final answer is $\\boxed{{{a}}}$\n\nI hope it is right.",
        "There are \\(\\boxed{{{a}}}\\) of them.",
        "The final answer is ${a}$. I hope it is right.",
        "I think that it is {a}",
    ]
    pairs = []
    for _ in range(count):
        form = rng.choice(forms)
        a, b, c = number(), number(), number()
        gold = form(a, b)
        said = gold if rng.random() < 0.5 else form(c, b)
        pairs.append((rng.choice(frames).format(a=said, c=c), rng.choice([gold, f"${gold}$", rf"\boxed{{{gold}}}"])))
    return pairs


def test_ordinary_answers_are_judged_as_by_math_verify_itself(pool):
    pairs = ordinary_pairs()
    plain = []
    for completion, gold in pairs:
        found = math_verify.parse(completion, COMPLETION, extraction_mode="first_match")
        plain.append(math_verify.verify(math_verify.parse(gold_text(gold), GOLD_CONFIG), found))
    verdicts = verify([c for c, _ in pairs], rows(*(g for _, g in pairs)), pool=pool)
    assert [v.reward == 1 for v in verdicts] == plain
    assert 100 < sum(plain) < 300
    assert all((v.reward == 1) == (v.reason == "right") and v.milliseconds > 0 for v in verdicts)


@pytest.mark.parametrize(
    ("completion", "solution", "reason"),
    [
        (r"\boxed{1} is too small, as we have seen above. \boxed{2}", "2", "right"),
        (r"\boxed{2} is too small, as we have seen above. \boxed{1}", "2", "wrong"),
        (r"\boxed{3} no, \boxed{4}", "4", "right"),
        (r"\boxed{3} no, \boxed{4}", "3, 4", "wrong"),
        (r"\boxed{4}. Or rather: \boxed{}", "4", "no answer"),
        (r"\boxed{\boxed{4}}", "4", "right"),
        (r"$\boxed{3}$ and $\boxed{4}$", "3, 4", "right"),
        (r"$\boxed{3}$ and $\boxed{4}$", "4", "wrong"),
        (r"\boxed{3, 4}", r"\{4, 3\}", "right"),
        (r"\boxed{50\%}", "0.5", "right"),
        (r"\boxed{(1, 2]}", "(1,2]", "right"),
        (r"\boxed{(1, 2]}", "[1,2]", "wrong"),
        (r"\boxed{5 \text{ cm}}", "5", "right"),
        (r"\boxed{x = 5}", "5", "right"),
        (r"\boxed{0.5}", r"\frac{1}{2}", "right"),
        (r"\boxed{x^2 + 1}", "1+x^2", "right"),
        (r"\boxed{4}", 4, "right"),
        ("It is four.", "4", "no answer"),
        (r"\boxed{}", "4", "no answer"),
        ("x" * 10**7 + r"\boxed{4}" + " and that is it" * 10**5, "4", "right"),
    ],
)
def test_mathematics(pool, completion, solution, reason):
    assert verify([completion], rows(solution), pool=pool)[0].reason == reason


@pytest.mark.parametrize(
    ("completion", "reason", "extracted"),
    [
        (r"\boxed{New \text{York}}", "right", r"New \text{York}"),
        ("Answer:  New   \\text{York} ", "right", r"New   \text{York}"),
        ("**Final answer:** New \\text{York}", "right", r"New \text{York}"),
        ("**Answer**: New \\text{York}", "right", r"New \text{York}"),
        ("My final answer: New \\text{York}", "no answer", None),
        ("<ANSWER>New \\text{York}</ANSWER>", "right", r"New \text{York}"),
        ("<ANSWER>New \\text{York}", "no answer", None),
        ("<answer>\nNew \\text{York}\n</answer>", "right", r"New \text{York}"),
        (r"\boxed{York}", "wrong", "York"),
        (r"New \text{York}", "no answer", None),
        (r"\boxed{New \text{York}", "no answer", None),
    ],
)
def test_exact(pool, completion, reason, extracted):
    verdict = verify([completion], rows(r"New \text{York}"), "exact", pool=pool)[0]
    assert (verdict.reason, verdict.extracted) == (reason, extracted)


def test_reasoning_gyms_own_scorers_judge_rows_that_went_through_json(pool):
    wanted, found = [], []
    for family in reasoning_gym.factory.DATASETS:
        if family == "composite":
            continue  # needs its parts named
        dataset = reasoning_gym.create_dataset(family, size=1, seed=1)
        entry = dataset[0]
        answer = entry["answer"]
        if not isinstance(answer, str) or not answer.strip():
            continue  # families without one gold answer
        row = {"entry": json.dumps(entry), "family": family}
        wanted += [(family, 1.0), (family, 0.0)]
        completions = [f"<answer>{answer}</answer>", "<answer>not this</answer>"]
        found += [(family, v.reward) for v in verify(completions, [row] * 2, "gym", pool=pool)]
    assert len(wanted) > 180 and found == wanted


@given(st.text(), st.text(alphabet="ab {}\\"))
def test_answers_are_found_where_they_stand(before, answer):
    inside = answer.replace("{", "").replace("}", "").replace("\\", "").strip()
    assert find_answer(before + rf"\boxed{{{inside}}}") == (inside or None)
    assert len(shortened(before * 1000 + answer)) <= MOST_CHARACTERS


def test_gold_answers_that_cannot_be_read_are_named(pool):
    assert check_solutions(["4", r"\frac{1}{", "x^2", "", None, 5, r"\text{(E)}"], pool=pool) == [1, 3, 4]
    with pytest.raises(SolutionError, match=r"row 1: 'solution' is '\\\\frac\{'.*row 2: it has no 'solution'"):
        verify(["a", "b", "c"], [*rows("1", r"\frac{"), {}], pool=pool)
    with pytest.raises(SolutionError, match=r"row 0: 'entry'.*not a reasoning-gym entry"):
        verify(["<answer>1</answer>"], [{"entry": "{}"}], "gym", pool=pool)


# -- hostile and unlucky ones ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verifier", ["math", "exact"])
def test_no_hostile_completion_hangs_or_kills_or_is_rewarded(short, verifier):
    completions = hostile_completions()
    assert len(completions) >= 200
    verdicts = verify(completions, rows(GOLD) * len(completions), verifier, pool=short)
    rewarded = [c[:80] for c, v in zip(completions, verdicts, strict=True) if v.reward]
    assert len(verdicts) == len(completions) and not rewarded
    assert count_reasons(verdicts)["crash"] == 0
    assert verify([rf"\boxed{{{GOLD}}}"], rows(GOLD), verifier, pool=short)[0].reason == "right"


@pytest.mark.slow
def test_score_survives_the_hostile_ones_too(tmp_path, capsys):
    path = tmp_path / "hostile.jsonl"
    completions = hostile_completions()
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
def test_a_worker_that_gets_no_core_is_no_completions_fault():
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
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


# -- rewards, feedback, score ----------------------------------------------------------------------------------------


def test_rewards_by_trls_convention(caplog):
    logged = {}
    said = (r"\boxed{2}", r"\boxed{3}", "two", r"\boxed{2}", r"\boxed{2}")
    chats = [[{"role": "assistant", "content": text}] for text in said]
    solutions = ["2", "2", "2", None, r"\frac{"]
    found = math(completions=chats, solution=solutions, log_metric=logged.__setitem__, prompts=["?"] * 5)
    assert found == [1.0, 0.0, 0.0, None, None]
    assert "math-verify cannot parse it" in caplog.text
    assert logged == {
        "verifier/no answer": 0.25,
        "verifier/time-out": 0,
        "verifier/memory": 0,
        "verifier/crash": 0,
        "verifier/unscored": 0,
        "verifier/unreadable solution": 0.25,
    }
    assert exact(["Answer: a b", "a b"], solution=["a b"] * 2) == [1.0, 0.0]
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0]
    assert gym([f"Answer: {entry['answer']}"], entry=[json.dumps(entry)]) == [1.0]
    with pytest.raises(ValueError, match="needs the dataset column 'solution'"):
        math(["a"])
    assert load_function("math", "reward_funcs") is math
    assert load_function("accuracy_reward", "reward_funcs").__module__.startswith("trl.")


@pytest.mark.parametrize("family", ["countdown", "sudoku", "word_ladder"])
def test_a_row_that_lacks_what_its_scorer_needs_leaves_completions_unscored(family, pool, tmp_path, capsys, caplog):
    """It is no completion's fault, also where the library's scorer swallows the error and says 0."""
    good = reasoning_gym.create_dataset(family, size=1, seed=1)[0]
    broken = {"answer": "?", "metadata": {"source_dataset": family}}
    said = [f"<answer>{good['answer']}</answer>", "Answer: never", "nothing"]
    cases = [(text, {"entry": json.dumps(entry)}) for entry in (good, broken) for text in said]
    with pytest.raises(SolutionError, match=r"row 3: .*own answer '\?' would not be scored as right"):
        verify([text for text, _ in cases], [row for _, row in cases], "gym", pool=pool)

    logged = {}
    entries = [row["entry"] for _, row in cases]
    rewards = gym([text for text, _ in cases], entry=entries, log_metric=logged.__setitem__)
    assert rewards == [1.0, 0.0, 0.0, None, None, None]
    assert logged["verifier/unreadable solution"] == 0.5 and "own answer '?'" in caplog.text

    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"completion": text, **row}) + "\n" for text, row in cases))
    assert main(["score", str(path), "--verifier", "gym"]) == 2
    assert "own answer '?'" in " ".join(capsys.readouterr().err.split())


def test_feedback_knows_format_failures():
    tell = feedback_of("math")
    row = {"solution": "4", "reward": 0.0}
    assert tell("four", row) == "No answer found. Put the final answer in \\boxed{}. The answer is 4. Reward: 0."
    assert tell(r"\boxed{3}", row) == "Wrong. The answer is 4. Reward: 0."
    assert tell(r"\boxed{4}", {**row, "reward": 1.0}) == "Right. Reward: 1."
    assert feedback_of("accuracy_reward") is None


def test_score_names_bad_lines_before_any_work(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    lines = ['{"text": "a", "answer": 1}', "{", '{"text": "a"}', "[]", '{"text": 3, "answer": "1"}']
    path.write_text("\n".join([*lines, r'{"text": "a", "answer": "\\frac{"}']))
    columns = ["--completion-column", "text", "--solution-column", "answer"]
    assert main(["score", str(path), *columns]) == 2
    said = capsys.readouterr().err
    assert all(f"line {n}: " in said for n in range(2, 7)) and "line 1:" not in said
    assert not (tmp_path / "c.scored.jsonl").exists()
    path.write_text(lines[0])
    assert main(["score", str(path), *columns]) == 0
    assert main(["score", str(path), *columns]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "none.jsonl")]) == 2
    assert main(["score", str(path), *columns, "--overwrite", "--verifier-timeout", "0"]) == 2


def test_an_interrupted_score_keeps_what_is_finished(tmp_path):
    path = tmp_path / "c.jsonl"
    completions = [r"\boxed{1}"] * 40 + [STUCK] + [r"\boxed{1}"] * 40
    path.write_text("".join(json.dumps({"completion": c, "solution": "1"}) + "\n" for c in completions))
    command = [sys.executable, "-m", "p2o", "score", str(path), "--timeout", "60"]
    # Whoever started the tests in the background has interrupts ignored, and what they start would inherit that.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    scoring = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    output = tmp_path / "c.scored.jsonl"
    while not output.exists():
        time.sleep(0.1)
    time.sleep(6)
    scoring.send_signal(signal.SIGINT)
    said, _ = scoring.communicate(timeout=30)
    assert scoring.returncode == 130 and "80 of 81 verdicts" in said
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["line"] for r in records] == [n for n in range(1, 82) if n != 41]


def test_training_by_name(tmp_path, config):
    """The embedded world's answers stand after `Answer:`, so exact match scores them."""
    run = tmp_path / "run"
    options = ["--output_dir", str(run), "--max_steps", "2", "--verifier_timeout", "5", "--verifier_workers", "1"]
    changes = {"reward_funcs": ["exact"], "feedback_func": None, "evaluate_before_and_after": False}
    assert main(["train", "--config", config(**changes), *options]) == 0
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "rewards/exact/mean" in logged[0] and 0 <= logged[0]["verifier/no answer"] <= 1
    assert main(["train", "--config", config(**changes), "--verifier_timeout", "0", "--output_dir", f"{run}-2"]) == 2
