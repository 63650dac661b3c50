"""Solvers of reasoning-gym's questions, and what they say of the number that a rewrite asks for."""

import json
import math
import re
from decimal import Decimal
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.difficulty.rewrites import Number, numbers_in, rewrites
from p2o.difficulty.rewriting import judged_by_model, rewritten, with_question, without_repetitions
from p2o.difficulty.solvers import NEAR, SOLVERS, other_value, other_values, solver_of
from p2o.evaluation.types import Sample
from p2o.tasks import load_task
from p2o.templates import question_text
from p2o.verifiers import verify

OPTIONS = {"endings": ["Put the final answer in \\boxed{}."], "wordings": 1, "repeated": False}


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6), st.data())
def test_the_solver_of_a_chain_agrees_with_python(numbers, data):
    operators = [data.draw(st.sampled_from(["+", "-", "*"])) for _ in numbers[1:]]
    text = str(numbers[0]) + "".join(f" {op} {n}" for op, n in zip(operators, numbers[1:], strict=True))
    assert SOLVERS["chain_sum"](f"What is {text} ?") == str(eval(text))


@given(st.lists(st.decimals(-99, 99, places=2), min_size=2, max_size=4))
def test_decimals_are_added_exactly(numbers):
    text = " + ".join(map(str, numbers))
    assert Decimal(SOLVERS["decimal_chain_sum"](f"Calculate {text}.")) == sum(numbers)


@given(st.integers(0, 10**6), st.integers(0, 3))
def test_other_values_are_other_and_of_the_same_form(units, places):
    value = f"{units // 10**places}.{units % 10**places:0{places}}" if places else str(units)
    others = list(other_values(value))
    assert len(set(map(Decimal, others))) == len(others) >= NEAR and Decimal(value) not in map(Decimal, others)
    assert all(len(other.partition(".")[2]) == places for other in others)
    assert not list(other_values("3/4"))


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_value_with_the_same_answer_is_one(first, second):
    question = f"Find the Greatest Common Divisor (GCD) of these numbers: {first}, {second}."
    number = numbers_in(question)[0]
    other = other_value(question, number, SOLVERS["gcd"])
    if other is not None:
        assert int(other) != first and math.gcd(int(other), second) == math.gcd(first, second)
    else:
        near = {*range(NEAR + 1), *range(max(first - NEAR, 0), first + NEAR + 1)} - {first}
        assert all(math.gcd(value, second) != math.gcd(first, second) for value in near)


@cache
def rows(family):
    return list(load_task(f"gym:{family}", split="train", limit=12).dataset)


@pytest.mark.parametrize("family", SOLVERS)
def test_every_solver_solves_its_family(family):
    for row in rows(family):
        assert solver_of(json.loads(row["entry"])["question"], family, json.loads(row["entry"])) is SOLVERS[family]


def test_a_solver_that_does_not_find_the_gold_answer_is_not_believed():
    row = rows("chain_sum")[0]
    entry = json.loads(row["entry"]) | {"answer": "123456"}
    assert solver_of(entry["question"], "chain_sum", entry) is None
    assert solver_of(entry["question"], "no_such_family", entry) is None


def test_a_number_that_plays_no_part_is_not_determined():
    question = "Calculate 5 * 0 + 7."
    five, zero, seven = numbers_in(question)
    assert other_value(question, five, SOLVERS["chain_sum"]) == "0"
    assert other_value(question, zero, SOLVERS["chain_sum"]) is None
    assert other_value(question, seven, SOLVERS["chain_sum"]) is None


@pytest.mark.parametrize("family", ["chain_sum", "decimal_chain_sum", "complex_arithmetic", "leg_counting", "lcm"])
def test_a_rewrite_is_judged_by_the_verifier_of_its_question(family):
    """The number is right, anything else is wrong, and what is around the question stays."""
    made = [one for place, row in enumerate(rows(family)) for one in rewritten(row, place, **OPTIONS)[0]]
    assert len(made) >= 5 and all(one.verified_by == "solver" for one in made)
    right = [f"<answer>{one.row['solution']}</answer>" for one in made]
    wrong = [f"<answer>{Decimal(one.row['solution']) + 1}</answer>" for one in made]
    for texts, reward in ((right, 1), (wrong, 0)):
        assert {v.reward for v in verify(texts, [one.row for one in made], "gym")} == {reward}
    for one in made:
        source = rows(family)[one.of_row]
        assert one.row.keys() == source.keys()
        assert question_text(one.row["prompt"]).endswith("\n\nPut the final answer in <answer></answer>.")
        assert source["solution"] in one.text and "value of z" in one.text
    assert all(name.startswith("rewrite_") for name in made[0].to_row().keys() - made[0].row.keys())


def math_row(question, solution, ending="\n\nPut the final answer in \\boxed{}."):
    return {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": question + ending}]} | {
        "solution": solution
    }


def test_of_other_data_only_the_question_is_rewritten():
    row = math_row("Tom has 3 apples and buys 5 more. How many has he?", "First 3 + 5.\n#### 8")
    made, rejected = rewritten(row, 7, **OPTIONS)
    assert not rejected and [(one.of_row, one.asked_for, one.verified_by) for one in made] == [
        (7, "3", None),
        (7, "5", None),
    ]
    assert made[0].row["prompt"] == [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": "Tom has z apples and buys 5 more. How many has he?\n\nThe answer to this question is 8. What "
            "is the value of z?\n\nPut the final answer in \\boxed{}.",
        },
    ]
    assert row["prompt"][1]["content"].startswith("Tom has 3")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Add 1 and 2."}]}]
    assert question_text(with_question(parts, "Other.")) == "Other." and question_text(parts) == "Add 1 and 2."


MANY = math_row("Name a number above 3.", "any answer that fulfils the question") | {
    "entry": json.dumps({"question": "Name a number above 3.", "answer": None, "metadata": {"source_dataset": "jugs"}})
}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (math_row("What is 1 + 1?", "It is $2$, so the answer is $2$, as $1+1=2$."), "stands among other text"),
        (math_row("Say hello.", "hello"), "there is no number in it"),
        (MANY, "it has many right answers"),
    ],
)
def test_a_question_may_not_be_rewritten_at_all(row, reason):
    made, (rejected,) = rewritten(row, 3, **OPTIONS)
    assert not made and reason in rejected.reason and rejected.row == 3 and rejected.number is None


def sample(reward, extracted):
    return Sample("t", 0, 0, "", extracted, reward, "", 1, 1, False)


RIGHT, WRONG, OTHER, NONE = (sample(*s) for s in ((1.0, "3"), (0.0, "4"), (0.0, "5"), (None, None)))


@pytest.mark.parametrize(
    ("answers", "least", "verdict"),
    [
        ([RIGHT, RIGHT, WRONG, OTHER], 0.5, 0.5),
        ([RIGHT, RIGHT, NONE, NONE], 1.0, 1.0),
        ([RIGHT, WRONG, OTHER, OTHER], 0.5, "too few of the model's answers are the number"),
        ([RIGHT, OTHER, OTHER, WRONG], 0.25, "another answer of the model is more frequent"),
        ([NONE, NONE], 0.1, "no answer of the model could be scored"),
    ],
)
def test_a_model_agrees_where_its_most_frequent_answer_is_the_number(answers, least, verdict):
    made, _ = rewritten(math_row("Add 3 and 9.", "12"), 0, **OPTIONS)
    kept, rejected = judged_by_model(made[:1], [answers], least)
    assert [one.agreement for one in kept] + [one.reason for one in rejected] == [verdict]
    assert all(one.verified_by == "model" for one in kept)


def test_the_same_rewrite_of_two_questions_is_kept_once():
    both = [one for place in range(2) for one in rewritten(math_row("Add 3 and 9.", "12"), place, **OPTIONS)[0]]
    kept, rejected = without_repetitions(both)
    assert [one.of_row for one in kept] == [0, 0] and [one.row for one in rejected] == [1, 1]


def test_numbers_are_replaced_where_they_stand():
    number = Number(10, 11, "2", "2")
    assert other_value("Calculate 2 * 2.", number, SOLVERS["basic_arithmetic"]) is None
    assert re.search(r"Calculate z \* 4", rewrites("Calculate 2 * 4.", "8").made[0].question)
