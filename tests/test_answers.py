"""Right answers in all their spellings are paid, and near misses are not: every pair of `answers.jsonl`."""

import json
from pathlib import Path

import pytest
from trl.rewards import accuracy_reward

from p2o.verifiers import Limits, Pool, Verdict, unmatchable, verify, verify_stream
from p2o.verifiers.answers import answer_part, find_answer, gold_answer

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pool():
    made = Pool(Limits(seconds=60, workers=2))
    yield made
    made.close()


def rewards(pairs, verifier, pool):
    """By pair, its reward; None where the gold answer cannot be read."""
    found = [None] * len(pairs)
    rows = ((pair["completion"], {"solution": pair["solution"]}) for pair in pairs)
    for index, verdict in verify_stream(rows, verifier, pool=pool):
        found[index] = verdict.reward if isinstance(verdict, Verdict) else None
    return found


def test_every_pair_is_judged_as_a_mathematician_would(pool):
    found = rewards(PAIRS, "math", pool)
    wrong = [
        (pair["kind"], pair["solution"], pair["completion"][-80:], pair["want"])
        for pair, reward in zip(PAIRS, found, strict=True)
        if (reward or 0) != pair["want"]
    ]
    assert not wrong


def test_every_kind_has_right_answers_and_near_misses():
    kinds = {pair["kind"] for pair in PAIRS}
    assert len(PAIRS) >= 250 and len({(pair["solution"], pair["completion"]) for pair in PAIRS}) == len(PAIRS)
    for kind in kinds - {"no gold", "near misses"}:
        assert {pair["want"] for pair in PAIRS if pair["kind"] == kind} == {0, 1}, kind


@pytest.mark.parametrize("trusted", ["gold", "answer"])
def test_an_answer_is_right_against_itself(pool, trusted):
    """In both directions: each gold answer as an answer, each right answer as a gold one."""
    pairs = [pair for pair in PAIRS if pair["want"] and "####" not in pair["solution"] and "@@" not in pair["solution"]]
    texts = {
        answer
        for pair in pairs
        if (answer := gold_answer(pair["solution"]) if trusted == "gold" else find_answer(pair["completion"]))
    }
    same = [{"solution": text, "completion": rf"\boxed{{{text}}}"} for text in sorted(texts)]
    found = rewards(same, "math", pool)
    assert [pair["solution"] for pair, reward in zip(same, found, strict=True) if reward != 1] == []


def test_accuracy_is_trls_own_verdict(pool):
    completions = [[{"role": "assistant", "content": pair["completion"]}] for pair in PAIRS]
    trls = accuracy_reward(completions, [pair["solution"] for pair in PAIRS])
    assert rewards(PAIRS, "accuracy", pool) == trls
    assert len(set(trls)) == 3


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("<think>a</think> b", " b"),
        ("a</think> b", " b"),
        ("<think>a", ""),
        ("b <think>a", "b "),
        ("<think>a</think> b <think>c</think> d", " b  d"),
        ("<THINK>a</THINK>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("no thought", "no thought"),
        (r"<think>\boxed{7}</think> The answer is 7.", r" The answer is 7. \boxed{7}"),
        (r"<think>\boxed{7}</think> The answer is 8.", " The answer is 8."),
    ],
)
def test_thoughts_are_cut_out(text, outside):
    assert answer_part(text) == outside


def test_exact_does_not_look_into_thoughts(pool):
    pairs = [
        {"solution": "oak", "completion": r"<think>\boxed{oak}</think> Answer: elm"},
        {"solution": "oak", "completion": r"<think>\boxed{elm}</think> Answer: oak"},
        {"solution": "oak", "completion": r"<think>Answer: oak"},
        {"solution": "oak", "completion": r"\boxed {oak}"},
        {"solution": "oak", "completion": r"\fbox{oak}"},
    ]
    assert rewards(pairs, "exact", pool) == [0, 1, 0, 1, 1]


def test_numbers_from_json_are_gold_answers(pool):
    pairs = [(1e-7, r"10^{-7}", 1), (1e-7, "e-7", 0), (1e22, "10^{22}", 1), (2.50, r"\frac52", 1), (3, "3", 1)]
    verdicts = verify(
        [rf"\boxed{{{said}}}" for _, said, _ in pairs], [{"solution": gold} for gold, *_ in pairs], pool=pool
    )
    assert [verdict.reward for verdict in verdicts] == [want for *_, want in pairs]


@pytest.mark.parametrize(
    "solution",
    [
        "proof",
        "Proof.",
        r"\text{proof}",
        r"$\boxed{\text{Proof}}$",
        "Proved",
        "Q.E.D.",
        "See the figure",
        "see Figure 4.",
        "Refer to the solution above",
        "N/A",
        "nan",
        "No answer given.",
        "Answers will vary",
        "Prove that the sum is even.",
        "Show that it holds for every n",
        "The two triangles share a side and hence all of their angles agree.",
        "",
        "   ",
    ],
)
def test_golds_for_which_nobody_can_be_paid(pool, solution):
    assert unmatchable(solution)
    completion = rf"\boxed{{{solution}}}"
    assert rewards([{"solution": solution, "completion": completion}], "math", pool) == [None]


@pytest.mark.parametrize(
    "solution",
    [
        r"\text{Sunday}",
        "yes",
        "No",
        "None",
        "True",
        "Amelia",
        r"\text{Amelia}",
        "C",
        "BD",
        "no solution",
        r"\text{does not exist}",
        "the perpendicular bisector of PQ",
        "increasing on the whole real line",
        "12",
        r"\frac12",
        r"\$18.90",
        "10:45 AM",
        "x > 4",
        r"\begin{cases} x=4 \\ y=9 \end{cases}",
        "Prove first that $a=2$. Then all the rest follows at once, so the count is $\\boxed{5}$.",
        "She sees the figure 3*4=<<3*4=12>>12 in all.\n#### 12",
        "Solution: both sides agree when $n = 3$. Therefore, the answer is: 3.",
        *(pair["solution"] for pair in PAIRS if pair["want"]),
    ],
)
def test_golds_that_can_be_paid(solution):
    assert unmatchable(solution) is None
