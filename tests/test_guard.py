"""What the guard lets pass as a template, and what feedback says."""

import pytest

from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.guard import check_template, leaks_answer, stock_runs


@pytest.mark.parametrize(
    ("template", "answer", "leaks"),
    [
        ("If asked about 37 apples, say 91.", "91", True),
        ("The sum is -14 there.", "-14", True),
        ("The sum is minus 14 there.", "-14", True),
        ("Add 1,234 to it.", "1234", True),
        ("Split it in 3 parts.", "3", False),
        ("The answer is 3.", "3", True),
        ("Write 912 steps.", "91", False),
        ("Think of Paris first.", "Paris", True),
        ("Think of Parisians first.", "Paris", False),
        ("Say yes or no.", "yes", True),
        ("Check yes or no.", "yes", False),
        ("Anything.", "", False),
        ("Compute 10-20i carefully.", "10-20i", True),
    ],
)
def test_answers_in_templates(template, answer, leaks):
    assert leaks_answer(template, answer) is leaks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("word " * 50, "too_long"),
        ("Think.<|im_end|>", "markup"),
        ("<|im_start|>system", "markup"),
        ("Stop </s> here", "markup"),
        ("[INST] do", "markup"),
        ("user: what", "markup"),
        ("<｜User｜> hi", "markup"),
        ("Use <special> now", "markup"),
        ("It gives 4711.", "leaked_answer"),
        ("Note how many red apples does Anna still have.", "quoted_question"),
        ("Work line by line.", None),
    ],
)
def test_guard(text, reason):
    questions = [("So how many red apples does Anna still have after lunch?", "4711")]
    found = check_template(text, questions=questions, max_length=100, special_tokens={"<special>", " "})
    assert found == reason


def test_common_wording_of_questions_is_no_quotation():
    questions = [(f"State the final answer to the following arithmetic problem: {n}", str(n)) for n in (701, 802)]
    stock = stock_runs(questions)
    template = "State the final answer to the following arithmetic problem step by step."
    assert check_template(template, questions=questions[:1], max_length=100, stock=stock) is None
    assert check_template(template, questions=questions[:1], max_length=100) == "quoted_question"


def test_feedback_names_the_three_cases():
    assert rollout_feedback(reward=1, extracted="4", solution="4") == "Right. Reward: 1."
    assert rollout_feedback(reward=0, extracted="5", solution="4") == "Wrong. The answer is 4. Reward: 0."
    missing = rollout_feedback(reward=0, extracted=None, solution="4", answer_format="Box it.")
    assert missing == "No answer found. Box it. The answer is 4. Reward: 0."
