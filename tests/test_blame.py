"""Who is at fault for a completion without a verdict, and what workers may say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.verifiers.blame import Attempt, decide, has_computed, known_good, wall_limit
from p2o.verifiers.protocol import Answer, ProtocolBreach, read_answer

ENDINGS = ("time-out", "killed", "died")


def attempt(ending, cpu=0.0):
    return Attempt(ending, cpu, 1000.0)


@pytest.mark.parametrize(
    ("attempts", "decision"),
    [
        ([attempt("time-out", 9.0)], "completion"),
        ([attempt("time-out", 1.0)], "completion"),
        ([attempt("time-out", 0.9)], "retry"),
        ([attempt("time-out"), attempt("time-out", 0.9)], "nobody"),
        ([attempt("time-out"), attempt("time-out", 1.0)], "completion"),
        ([attempt("killed")], "retry"),
        ([attempt("killed", 5.0), attempt("killed", 5.0)], "nobody"),
        ([attempt("killed"), attempt("time-out", 1.0)], "completion"),
        ([attempt("died")], "retry"),
        ([attempt("died"), attempt("died")], "probe"),
        ([attempt("died"), attempt("killed")], "nobody"),
        ([attempt("killed"), attempt("died")], "nobody"),
        ([attempt("time-out"), attempt("died")], "nobody"),
    ],
)
def test_who_is_at_fault(attempts, decision):
    assert decide(tuple(attempts), 10.0) == decision


made = st.builds(Attempt, st.sampled_from(ENDINGS), st.floats(0, 100), st.floats(0, 1e6))


@given(st.lists(made, min_size=1, max_size=2), st.floats(0.01, 1000))
def test_a_decision_is_reached_after_two_attempts_and_blames_only_with_evidence(attempts, limit):
    decision = decide(tuple(attempts), limit)
    if len(attempts) == 2:
        assert decision != "retry"
    if decision == "completion":
        last = attempts[-1]
        assert last.ending == "time-out" and last.cpu_seconds >= min(limit / 2, 1.0)
    if "killed" in [a.ending for a in attempts]:
        assert decision != "probe"


@given(st.floats(0.01, 1000), st.floats(0, 100), st.floats(0, 100))
def test_more_computing_never_acquits(limit, less, more):
    less, more = sorted((less, more))
    assert has_computed(more, limit) or not has_computed(less, limit)
    assert wall_limit(1, limit) >= max(4 * limit, 20) and wall_limit(0, limit) == limit


def test_a_known_good_answer_of_every_verifier():
    assert known_good({"verifier": "math", "solution": "4"}) == r"\boxed{4}"
    assert known_good({"verifier": "exact", "solution": None}) is None
    assert known_good({"verifier": "gym", "entry": '{"answer": "x"}'}) == "<answer>x</answer>"
    assert known_good({"verifier": "gym", "entry": {"answer": None}}) is None
    assert known_good({"verifier": "gym", "entry": "{"}) is None


RESULT = {"reward": 1.0, "extracted": "4", "reason": "right", "milliseconds": 1.5}
RIGHT = Answer("n", 3, 0.25, False, RESULT)


def test_an_answer_arrives_as_it_was_sent():
    unscored, problem = {**RESULT, "reward": None}, {"problem": "p"}
    for answer in (RIGHT, Answer("n", 3, 0.25, True, unscored), Answer("n", 3, 0.5, False, problem)):
        assert read_answer(answer.encoded(), "n", 3) == answer
    arrived = Answer("n", -1, 0.25, False, None)
    assert read_answer(arrived.encoded(), "n", -1) == arrived


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "m"},
        {"place": 2},
        {"place": 4},
        {"cpu_seconds": "1"},
        {"spent": 0},
        {"result": None},
        {"result": {}},
        {"result": {**RESULT, "reward": 2.0}},
        {"result": {**RESULT, "reward": float("nan")}},
        {"result": {**RESULT, "reward": True}},
        {"result": {**RESULT, "reason": "paid"}},
        {"result": {**RESULT, "extracted": 4}},
        {"result": {**RESULT, "more": 1}},
        {"result": {"problem": 1}},
        {"more": 1},
    ],
)
def test_another_line_than_the_one_that_is_due_is_a_breach(change):
    line = json.dumps({**json.loads(RIGHT.encoded()), **change}).encode()
    with pytest.raises(ProtocolBreach):
        read_answer(line, "n", 3)


@given(st.binary(max_size=200))
def test_noise_is_a_breach(line):
    with pytest.raises(ProtocolBreach):
        read_answer(line, "n", 3)
