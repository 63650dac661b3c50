"""Verifiers in their processes: ordinary answers, hostile completions, and what happens to the processes."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from math_verify import parse, verify

from p2o.cli import main
from p2o.verifiers import VerifierPool, math_reward
from p2o.verifiers.worker import ANSWER, GOLD, final_answer


@pytest.fixture(scope="module")
def pool():
    pool = VerifierPool(2, timeout=2.0, memory=1 << 29)
    yield pool
    pool.close()


def ordinary(count=300):
    """Pairs of an answer and a solution as people write them, half of them equal."""
    rng = random.Random(0)
    forms = [
        lambda n: (f"{n}", f"{n}"),
        lambda n: (f"\\frac{{{n}}}{{7}}", f"{n}/7"),
        lambda n: (f"{n / 4}", f"\\frac{{{n}}}{{4}}"),
        lambda n: (f"{n}\\%", f"{n}\\%"),
        lambda n: (f"({n}, {n + 2})", f"({n}, {n + 2})"),
        lambda n: (f"[{n}, {n + 3})", f"[{n},{n + 3})"),
        lambda n: (f"\\{{{n + 1}, {n}\\}}", f"\\{{{n}, {n + 1}\\}}"),
        lambda n: (f"{n} \\text{{ cm}}", f"{n}"),
        lambda n: (f"x = {n}", f"{n}"),
        lambda n: (f"{n}x + 2x", f"{n + 2}x"),
        lambda n: (f"{n}, {n + 5}", f"{n + 5}, {n}"),
        lambda n: (f"\\sqrt{{{n * n}}}", f"{n}"),
        lambda n: (f"{n}\\pi", f"{n}\\pi"),
        lambda n: (f"{n},000", f"{n}000"),
    ]
    pairs = []
    for index in range(count):
        form, n = forms[index % len(forms)], rng.randrange(2, 90)
        wrong = rng.random() < 0.5
        pairs.append((f"So we get \\boxed{{{form(n + wrong)[0]}}}.", form(n)[1]))
    return pairs


def test_ordinary_answers_are_judged_as_plain_math_verify_does(pool):
    completions, solutions = zip(*ordinary(), strict=True)
    plain = [
        float(
            verify(
                parse(f"\\boxed{{{solution}}}", GOLD, parsing_timeout=None),
                parse(completion, ANSWER, extraction_mode="first_match", parsing_timeout=None),
                timeout_seconds=None,
            )
        )
        for completion, solution in zip(completions, solutions, strict=True)
    ]
    verdicts = pool.verify(completions, solutions)
    assert [verdict.reward for verdict in verdicts] == plain
    assert 0.3 < sum(plain) / len(plain) < 0.7


@pytest.mark.parametrize(
    ("completion", "solution", "reward"),
    [
        (r"\boxed{3}, no: \boxed{4}", "4", 1),
        (r"\boxed{4}, no: \boxed{3}", "4", 0),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2", 1),
        (r"\boxed{\frac{1}{2}}", "0.5", 1),
        (r"\boxed{(1,2)}", "(1,2)", 1),
        (r"it is $4$", "4", 0),
        ("it is 4", "4", 0),
        (r"\boxed{4}", "$4$", 1),
        (r"\boxed{4}", "", None),
    ],
)
def test_answers(pool, completion, solution, reward):
    assert pool.verify([completion], [solution])[0].reward == reward


def test_exact(pool):
    completions = [r"\boxed{Paris}", " Paris\n", "paris", r"\boxed{{a}}", ""]
    verdicts = pool.verify(completions, ["Paris"] * 3 + ["{a}", "x"], "exact")
    assert [v.reason for v in verdicts] == ["right", "right", "wrong", "right", "no answer"]


def test_final_answer():
    assert final_answer("none") is None and final_answer(r"\boxed{open") is None
    assert final_answer(r"\boxed{\boxed{1}}") == r"\boxed{1}"
    assert final_answer(r"\boxed{1} or \boxed{2}, so \boxed{\frac{1}{2}} and \boxed{3}") == r"\frac{1}{2}, 3"


def hostile():
    """Completions that hang, crash or fool a verifier; the solution is 4171 to all of them."""
    box = "\\boxed{{{}}}".format
    nested = [f(n) for n in (10, 100, 1000, 4000) for f in (
        lambda n: box("(" * n), lambda n: box("(" * n + "1" + ")" * n), lambda n: box("{" * n + "1" + "}" * n),
        lambda n: box("\\sqrt{" * n + "2" + "}" * n), lambda n: box("\\frac{1}{" * n + "2" + "}" * n),
        lambda n: box("-" * n + "1"), lambda n: box("\\left(" * n), lambda n: box("|" * n + "x" + "|" * n),
        lambda n: box("1+" * n + "1"), lambda n: box("x^{" * n + "2" + "}" * n),
            lambda n: box("a_{" * n + "b" + "}" * n),
        lambda n: "\\boxed{" * n, lambda n: "\\boxed{" * n + "1" + "}" * n, lambda n: "$" * n, lambda n: box("1") * n,
    )]  # fmt: skip
    towers = [box(f"{base}^{{{base}^{{{base}^{{{top}}}}}}}") for base in (2, 9, 99, "x") for top in (2, 9, 99)]
    huge = [box(text) for n in (10**3, 10**6, 10**9, 10**15) for text in (
        f"{n}!", f"2^{{{n}}}", f"\\binom{{{2 * n}}}{{{n}}}", f"\\sum_{{i=1}}^{{{n}}} i^2",
            f"\\prod_{{i=1}}^{{{n}}} i",
        f"10^{{-{n}}}", f"\\sqrt[{n}]{{2}}", f"({n}!)!", f"\\int_0^{{{n}}} x^x dx", f"\\lim_{{x \\to {n}}} x^x",
        f"{n}^{{{n}}}", f"x^{{{n}}} + 1", f"(x+1)^{{{n}}}",
    )]  # fmt: skip
    broken = ["\\frac{1}", "\\frac{", "\\sqrt", "\\left(1", "\\begin{pmatrix}1", "\\begin{x}", "\\end{x}",
            "\\", "\\\\",
              "{", "}", "}{", "^", "_", "^^", "1^", "_1", "\\int", "\\sum", "\\lim", "\\infty", "-\\infty",
            "nan", "NaN", "inf",
              "oo", "zoo", "1/0", "\\frac{1}{0}", "\\frac{0}{0}", "0^0", "0^{-1}", "\\text{}",
            "\\emptyset", "\\{\\}", "", " ",
              "\\boxed{}", "()", "[]", "1e999999999", "0x1053", "4171j", "4 171 1", "41.71", "=", "==",
            "x=", "=x", "<", "1<x<"]  # fmt: skip
    code = ["import os", "__import__('os').abort()", "exec('1')", "eval('4171')", "lambda: 4171", "while True: pass",
            "open('/etc/passwd')", "Symbol('x')", "S.One", "Integer(1)", "beta", "gamma", "zeta(1)", "E",
            "I", "N", "O", "Q",
            "lambda", "None", "True", "False", "factorial(10**9)", "solve(x)", "print(4171)",
            "().__class__.__bases__",
            "os.kill(0, 9)", "raise SystemExit", "exit()", "{{4170}}", "${jndi:ldap://x}", "%s%s%s%n"]  # fmt: skip
    odd = ["\0", "\x1b[31m", "\u202e1714", "\u200b", "\ufeff", "\ud800", "\uffff", "٤١٧٢", "４１７２", "①",
            "𝟒𝟏𝟕𝟐", "é" * 9, "\r", "\x7f",
           "a\u0300" * 1000, "💥" * 1000]  # fmt: skip
    long = [letter * 3_000_000 for letter in "1x({\\ $"] + [
        box("1" * 100_000),
        box("1," * 5000),
        "\\boxed{4171" * 100_000,
    ]
    return [*nested, *towers, *huge, *map(box, broken), *map(box, code), *odd, *map(box, odd), *long]


@pytest.mark.slow
def test_hostile_completions_hang_nothing_crash_nothing_and_earn_nothing():
    corpus = hostile()
    assert len(set(corpus)) >= 200
    with_good = [r"\boxed{4171}", *corpus, r"\boxed{4171}"]
    pool = VerifierPool(2, timeout=0.5, memory=1 << 29)
    verdicts = pool.verify(with_good, ["4171"] * len(with_good))
    pool.close()
    assert verdicts[0].reward == verdicts[-1].reward == 1.0
    assert [c[:80] for c, v in zip(corpus, verdicts[1:-1], strict=True) if v.reward != 0.0] == []
    assert "time-out" in {v.reason for v in verdicts}


def test_memory_has_its_own_reason(pool):
    verdicts = pool.verify([r"\boxed{10^{10^{10}}}", r"\boxed{4}"], ["4", "4"])
    assert verdicts[0].reward == 0.0 and verdicts[0].reason in ("memory", "time-out", "wrong", "no answer")
    assert verdicts[1].reason == "right"
    script = (
        "from p2o.verifiers import worker; worker.JUDGES['math'] = lambda c, s: bytes(1 << 33); worker.main(1 << 28, 5)"
    )
    line = json.dumps(["math", "", ""]) + "\n"
    done = subprocess.run([sys.executable, "-c", script], input=line, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[1])["reason"] == "memory"


def test_a_killed_process_costs_its_own_completion_only():
    pool = VerifierPool(1, timeout=30.0)
    before = set(children())
    pool.verify([r"\boxed{1}"], ["1"])
    (worker,) = set(children()) - before
    killer = threading.Timer(0.5, os.kill, (worker, signal.SIGKILL))
    killer.start()
    verdicts = pool.verify([r"\boxed{9^{9^{9^{9}}}}"] + [r"\boxed{1}"] * 50, ["1"] * 51)
    killer.join()
    pool.close()
    assert verdicts[0].reason == "crash" and verdicts[0].reward == 0.0
    assert all(v.reason == "right" for v in verdicts[1:])


def children(parent=None):
    """Of this or another process, by the kernel's own list."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone in the meantime
            if int(status.read_text().rpartition(")")[2].split()[1]) == (parent or os.getpid()):
                found.append(int(status.parent.name))
    return found


def test_threads_share_a_pool(pool):
    results = {}

    def ask(n):
        completions = [f"\\boxed{{{n + i}}}" for i in range(40)]
        results[n] = pool.verify(completions, [str(n + i if i % 2 else -1) for i in range(40)])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([v.reward for v in results[n]] == [0.0, 1.0] * 20 for n in range(4))


def test_nobody_is_left_when_a_run_is_killed(tmp_path):
    script = (
        "from p2o.verifiers import VerifierPool; pool = VerifierPool(1); "
        "pool.verify(['x'], ['1']); print('up', flush=True); input()"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "up\n"
    (worker,) = children(run.pid)
    run.kill()
    run.wait()
    for _ in range(100):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the verifier outlives its run")


def test_rewards_by_trl_convention():
    logged = {}
    chat = [[{"role": "assistant", "content": r"\boxed{4}"}], [{"role": "assistant", "content": "four"}]]
    assert math_reward(chat, ["4", "4"], log_metric=logged.__setitem__, level=[1, 2]) == [1.0, 0.0]
    assert math_reward([r"\boxed{4}"], [""], log_metric=logged.__setitem__) == [None]
    assert logged == {"verifier/unparsable solution": 1.0}


def test_score(tmp_path, capsys):
    file = tmp_path / "all.jsonl"
    rows = [{"completion": r"\boxed{4}", "solution": 4}, {"completion": "four", "solution": "4"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", str(file)]) == 0
    scored = [json.loads(line) for line in (tmp_path / "all.scored.jsonl").read_text().splitlines()]
    assert [(row["reward"], row["reason"]) for row in scored] == [(1.0, "right"), (0.0, "no answer")]
    assert set(scored[0]) == {"reward", "extracted", "reason", "milliseconds"}
    assert "mean reward 0.500" in capsys.readouterr().out
    assert main(["score", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    for line, message in [("{", "line 3: not valid JSON"), ('{"completion": "x"}', "line 3: no field `solution`"),
                          ('{"completion": null, "solution": "4"}', "line 3, field `completion`")]:  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + line)
        assert main(["score", str(file), "--output", str(tmp_path / "other.jsonl")]) == 2
        assert message in capsys.readouterr().err
