"""A prompt phase on a frozen model, without one: numbering, scoring, what nobody could score, which model reflects."""

import pytest
from transformers import AutoTokenizer

from p2o.completions import Completion, GenerationError, Sampling
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.types import QuestionSet, Sample, Score
from p2o.ledger import Ledger
from p2o.pico import model_path
from p2o.prompt_phase.frozen_policy import FrozenPolicy, gains, hard_questions
from p2o.prompt_phase.types import Reflection, ReflectionError
from p2o.reflection.make import make_reflection
from p2o.reflection.model import frozen_reflection
from p2o.reflection.options import ReflectionOptions


def echo(prompts, *, sampling, seed):
    return [Completion(str(prompt), 3, 5) for prompt in prompts]


def scored_by(mark):
    """Right where the completion has the mark, unscored where it has a question mark."""

    def score(completions, rows):
        return [
            Score(None, None, "crash")
            if "?" in said.content
            else Score(float(mark in said.content), None, "right" if mark in said.content else "wrong")
            for said in completions
        ]

    return score


TASKS = [
    QuestionSet(
        "a", [{"prompt": "one", "solution": "1"}, {"prompt": "two?", "solution": "2"}], scored_by("!"), "Shout."
    ),
    QuestionSet("b", [{"prompt": "three"}], scored_by("*")),
]


def test_questions_are_numbered_over_all_tasks_and_scored_by_their_own():
    policy = FrozenPolicy(TASKS, FrozenModel(echo), Sampling(9))
    questions = [policy.question(index) for index in range(3)]
    assert [(q.id, q.text, q.solution) for q in questions] == [(0, "one", "1"), (1, "two?", "2"), (2, "three", "")]
    requests = [
        (questions[2], "Use *"),
        (questions[0], "Use !"),
        (questions[2], "Use !"),
        (questions[1], ""),
        (questions[0], ""),
    ]
    rollouts = policy.rollout(requests, seed=0)
    assert [r.reward for r in rollouts] == [1.0, 1.0, 0.0, None, 0.0]
    assert [r.solved for r in rollouts] == [True, True, False, False, False]
    assert [r.completion for r in rollouts][:2] == ["Use *\n\nthree", "Use !\n\none"]
    assert rollouts[3].feedback == "" and rollouts[4].feedback == "Wrong. The answer is 1. Reward: 0."
    assert all((r.prompt_tokens, r.completion_tokens) == (3, 5) for r in rollouts)


def samples(*groups):
    """Groups of samples from rewards."""
    return [
        [Sample("t", q, s, "", None, r, "right" if r == 1 else "wrong", 0, 0, False) for s, r in enumerate(group)]
        for q, group in enumerate(groups)
    ]


def test_what_nobody_could_score_is_no_failure():
    groups = samples([0, 0], [None, None], [None, 1], [0, None], [1, 1])
    # A single scored success is all there is, and no near miss.
    assert hard_questions(groups, near_hard=True) == [0, 3]


def test_gains_are_over_questions_that_every_condition_has_a_score_for():
    bare, template = samples([0, 0], [1, 0], [None, None], [0, 0]), samples([1, 1], [1, None], [1, 1], [0, 0])
    found = gains([bare, template], seed=0)
    assert found["unscored"] == 1
    assert found["bare"]["success"] == pytest.approx(0.5 / 3)
    (own,) = found["templates"]
    assert own["measured"]["success"] == pytest.approx(2 / 3)
    assert own["difference"]["mean"] == pytest.approx(0.5)
    assert (found["solved_bare"], found["solved_under_some_template"]) == (1, 2)
    assert gains([samples([None]), samples([1])], seed=0)["templates"] == [{}]


def test_an_engine_that_fails_ends_the_prompt_phase_only():
    def broken(prompts, *, sampling, seed):
        raise GenerationError("out of order")

    with pytest.raises(ReflectionError, match="out of order"):
        frozen_reflection(FrozenModel(broken), Sampling(9))(["x"], seed=0)


def test_which_model_reflects():
    def function(prompts, *, seed):
        return [Reflection("mine")]

    def own():
        return "own"

    def make(function=None, own=own, **options):
        return make_reflection(ReflectionOptions(**options), function=function, own=own, spent=lambda: ledgers)

    def never():
        raise AssertionError("a model is loaded for nothing")

    ledgers = [Ledger(), Ledger()]
    assert make(function, never) is function
    assert make(function, never, reflection_model="openai/x") is function
    assert make(reflection_model="policy") == "own"
    served = {"reflection_model": "openai/gpt-4o", "reflection_base_url": "http://127.0.0.1:1/v1"}
    endpoint = make(own=never, **served, reflection_token_limit=100, reflection_cost_limit=1.0)
    assert endpoint.limit_reached() is None
    ledgers[0].add("reflection", 1, 40, 20)
    assert endpoint.limit_reached() is None
    ledgers[1].add("reflection", 1, 30, 10)
    assert "reflection_token_limit" in endpoint.limit_reached()
    with pytest.raises(ValueError, match="litellm knows no price for 'openai/nobody'"):
        make(**{**served, "reflection_model": "openai/nobody"}, reflection_cost_limit=1.0)


def test_a_template_that_does_not_fit_its_question_is_not_used():
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    rows = [{"prompt": "1 + 1"}, {"prompt": "1 + 1 " * 30}]
    lengths = [len(tokenizer(row["prompt"])["input_ids"]) for row in rows]
    # The long question just fits by itself.
    model = FrozenModel(echo, tokenizer, context_length=lengths[1] + 9)
    policy = FrozenPolicy([QuestionSet("a", rows, scored_by("!"))], model, Sampling(9))
    prompts, used = policy.prompts([(0, "Add."), (1, "Add."), (1, "")])
    assert used == ["Add.", "", ""]
    assert prompts == ["Add.\n\n1 + 1", rows[1]["prompt"], rows[1]["prompt"]]
