"""Verdicts on ordinary completions, rewards and feedback, and `p2o score`."""

import json
import random
import signal
import subprocess
import sys
import time

import math_verify
import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st

from hostile import STUCK, rows
from p2o.cli import main
from p2o.cli.arguments import load_function
from p2o.verifiers import Limits, Pool, SolutionError, check_solutions, verify
from p2o.verifiers.answers import MOST_CHARACTERS, find_answer, shortened
from p2o.verifiers.math import COMPLETION, gold_text
from p2o.verifiers.math import GOLD as GOLD_CONFIG
from p2o.verifiers.rewards import exact, feedback_of, gym, math


@pytest.fixture(scope="module")
def pool():
    made = Pool(Limits(seconds=10, workers=2))
    yield made
    made.close()


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
    said, _ = scoring.communicate(timeout=120)
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
