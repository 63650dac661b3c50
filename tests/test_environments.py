"""Environments in both phases: what reset() observes belongs to the bare question, and evolution plays whole episodes
in instances of its own."""

import asyncio
import random
import re
import threading
from collections import Counter

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from environments import EMPTY, data, desk, lottery, make
from p2o import P2OConfig, P2OTrainer
from p2o.prompt_phase.types import Question
from p2o.templates import Template, question_text
from tool_model import INSTRUCTION, QUESTIONS, reflecting
from trainers import (
    Watch,
    assert_loss_is,
    assert_same,
    contexts_of,
    rows_of,
    terms_with_tools,
    watched_batch,
    weights,
)

CALLS = Template(INSTRUCTION, 1.0, frozenset())


def spread(completions, environments, **kwargs):
    """Hardly two conversations earn the same."""
    return [len(e.found) + 0.01 * sum(map(ord, str(c))) for c, e in zip(completions, environments, strict=True)]


@pytest.mark.parametrize("several", [False, True])
def test_without_templates_it_is_grpo_bit_for_bit(tmp_path, tool_model, several):
    """Instances, resets, calls and rewards of environments, each in its place."""
    trained, called = {}, {}
    for name, trainer, config in (("grpo", GRPOTrainer, GRPOConfig), ("p2o", P2OTrainer, P2OConfig)):
        called[name] = []
        changes = {"skip_zero_advantages": False} if name == "p2o" else {}
        train, environments = data(instruction=INSTRUCTION), desk(called[name])
        if several:
            train = train.add_column("environment", ["desk", "table"] * 8)
            environments = {"desk": environments, "table": desk(called[name])}
        made = make(tmp_path / name, tool_model, environments, trainer, config, spread, train, **changes)
        made.train()
        trained[name] = weights(made)
    assert called["grpo"] == called["p2o"]
    counts = Counter(kind for kind, *_ in called["p2o"])
    assert counts["multiply"] >= 8 and counts["reset"] == 16 and counts["get_reward"] == 16
    assert_same(trained["grpo"], trained["p2o"])


def test_loss_and_gradient_are_of_the_bare_question_with_its_observation(tmp_path, tool_model):
    low, high = 0.2, 3.0
    trainer = make(tmp_path, tool_model, desk(), reward=spread, context_ratio_min=low, context_ratio_max=high)
    output, watch = watched_batch(trainer, [CALLS])
    words, contexts = trainer.processing_class, contexts_of(trainer, watch.rollouts)
    for row, (bare, _) in enumerate(rows_of(output)):
        a, b = QUESTIONS[::3][row // 4]
        assert f"user\n{a}*{b}?" in words.decode(bare), "the observation, without an instruction"
        template = watch.rollouts[row].template
        assert f"user\n{template}\n\n{a}*{b}?" in words.decode(contexts[row]) or not template
    terms, lengths, masked, returned = terms_with_tools(trainer, output, watch, low, high)
    assert masked > 0 and returned > 0
    assert_loss_is(trainer, output, terms, lengths)


def test_both_phases_alternate_with_a_reward_that_the_environment_owns(tmp_path, tool_model):
    """Mining and evolution go by it; each episode of a question is about that question; instances are few."""
    told, seen, watch, log = [], [], Counter(), []

    def feedback(completion, row):
        seen.append(row)
        return "Right." if row["reward"] else "Wrong."

    trainer = make(
        tmp_path,
        tool_model,
        {"desk": desk(log, watch)},
        train=data(16, environment=["desk"] * 16),
        max_steps=-1,
        num_train_epochs=2,
        learning_rate=1e-4,
        per_device_train_batch_size=16,
        prompt_phase_batch_size=8,
        min_hard_questions=2,
        evolution_budget=60,
        reflect=reflecting(told),
        feedback_func=feedback,
    )
    trainer.add_callback(events := Watch())
    trainer.train()
    ((_, result, _),) = events.phases
    assert INSTRUCTION in {template.text for template in result.selected}
    best = next(c for c in result.candidates if c.text == INSTRUCTION)
    assert sum(best.dev_solved.values()) > len(best.dev_solved) / 2 > sum(result.candidates[0].dev_solved.values())
    whole = [row for row in seen if len(row["conversation"]) == 3]
    assert seen and all(row["environment"] == "desk" and {"a", "b"} <= row.keys() for row in seen)
    for row in whole:
        (call,) = row["conversation"][0]["tool_calls"]
        assert call["function"]["arguments"] == {"a": row["a"], "b": row["b"]} or not row["reward"]
    assert told and all(re.search(r"\d\*\d\?", text) for text in told), "what reset() observed is part of the question"
    first, second = ([r for epoch, rs in events.batches if epoch == n for r in rs] for n in (0, 1))
    assert sum(r.reward for r in first) < sum(r.reward for r in second if r.template)
    # TRL keeps as many as a batch has rows; evolution had no more than its batch, and has let them go.
    assert watch["most"] <= 16 + 8 and watch["alive"] <= 16 < watch["made"]
    assert {kind for kind, *_ in log} == {"made", "reset", "multiply", "get_reward"}


def test_an_evaluation_plays_episodes_too(tmp_path, tool_model):
    """Of two kinds, the last batch filled up with rows that count for nothing."""
    log = []
    told = data(9, INSTRUCTION, environment=["desk", "table", "desk"] * 3)
    environments = {"desk": desk(log), "table": desk(log)}
    trainer = make(tmp_path, tool_model, environments, train=told, num_generations_eval=2)
    log.clear()
    found = trainer.evaluate(told)
    earned = [entry for entry in log if entry[0] == "get_reward"]
    assert len(earned) == 18 and {entry[1:] for entry in earned} == set(QUESTIONS[::3][:9])
    assert found["eval_accuracy"] > 0.5 and found["eval_reward"] == pytest.approx(found["eval_accuracy"])


@pytest.mark.parametrize("limit", [None, 100.0])
def test_a_question_is_the_same_one_every_time(tmp_path, tool_model, limit):
    """Also where reset() draws it, from a random stream of the row's; those of training stay where they are."""
    trainer = make(tmp_path, tool_model, lottery(), environment_timeout=limit)
    states = random.getstate(), torch.random.get_rng_state()
    rollouts = trainer.policy_rollouts
    asked = [question_text(rollouts.asked(row)) for row in range(8)]
    assert asked == [question_text(trainer.policy_rollouts.asked(row)) for row in range(8)] and len(set(asked)) > 2
    requests = [(Question(row, "", ""), template) for row in range(4) for template in ("", INSTRUCTION)]
    first = rollouts(requests, 1)
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])
    assert trainer.policy_rollouts(requests, 1) == first
    assert sum(r.solved for r in first[1::2]) > sum(r.solved for r in first[::2]), "told to, it calls the calculator"
    assert f'"a": {asked[0][0]}, "b": {asked[0][2]}' in first[1].completion


def test_an_environment_that_makes_up_questions_is_noticed(tmp_path, tool_model, caplog):
    """Within a group, and where all rows are alike."""
    trainer = make(tmp_path, tool_model, lottery(), train=Dataset.from_dict({"prompt": [EMPTY] * 4}), max_steps=2)
    trainer.train()
    assert trainer.p2o.events["environment_question_differs"] == 2
    assert sum("asks the rollouts of one row different questions" in r.message for r in caplog.records) == 1
    assert any("The 4 rows of train_dataset are all alike" in r.message for r in caplog.records)


def test_without_a_data_set_it_is_grpo(tmp_path, tool_model):
    """The environment owns the data; questions without a prompt of their own are asked by it, too."""

    class Fixed(desk()):
        def reset(self, **row):
            assert row.keys() <= {"prompt"}
            return super().reset(3, 4)

    trained = {}
    for name, trainer, config in (("grpo", GRPOTrainer, GRPOConfig), ("p2o", P2OTrainer, P2OConfig)):
        changes = {"skip_zero_advantages": False} if name == "p2o" else {}
        made = make(tmp_path / name, tool_model, Fixed, trainer, config, spread, [], **changes)
        made.train()
        trained[name] = weights(made)
    assert_same(trained["grpo"], trained["p2o"])


desk_multiply = desk().multiply


class Broken(desk()):
    """Each row goes wrong in its own way; what hangs does so until it is let go."""

    let_go = threading.Event()

    def __init__(self):
        super().__init__()
        self.thread = threading.get_ident()

    def reset(self, a, b, **row):
        assert self.thread == threading.get_ident(), "what it opens belongs to the thread that it is made in"
        self.way = row["way"]
        if self.way == "reset":
            raise OSError("no room")
        return super().reset(a, b)

    def multiply(self, a: int, b: int) -> int:
        if self.way == "hang":
            self.let_go.wait()
        if self.way == "tool":
            raise ValueError("out of paper")
        return super().multiply(a, b)

    multiply.__doc__ = desk_multiply.__doc__

    def get_reward(self) -> float:
        if self.way == "reward":
            raise KeyError("no score")
        return super().get_reward() + 1


WAYS = ["", "reset", "hang", "tool", "reward", ""]


def test_an_environment_that_fails_costs_its_rollout_and_is_replaced(tmp_path, tool_model, caplog):
    watched = []

    def read(environments, completions, **kwargs):
        """A reward function of ours never meets an environment that has failed."""
        watched.extend(environments)
        return [0.0 if e.asked else None for e in environments]

    train = data(6, way=WAYS)
    trainer = make(tmp_path, tool_model, Broken, reward=read, train=train, environment_timeout=5.0)
    try:
        rollouts = trainer.policy_rollouts
        requests = [(Question(row, "", ""), INSTRUCTION) for row in range(6)]
        found = rollouts(requests, 1)
        # What a tool raises is the model's to deal with, as in TRL.
        assert [r.reward for r in found] == [2.0, None, None, 1.0, None, 2.0]
        assert [r.solved for r in found] == [True, False, False, True, False, True]
        assert "out of paper" in found[3].completion
        assert trainer.p2o.events == {"environment_raised": 2, "environment_hung": 1}
        assert "OSError: no room" in caplog.text and "has not come back within 5 seconds" in caplog.text
        failed = {id(e) for e in watched if e.way in ("hang", "reward")}
        watched.clear()
        rollouts([(Question(0, "", ""), INSTRUCTION)] * 6, 2)
        assert not failed & set(map(id, watched)), "others are in their places"
    finally:
        Broken.let_go.set()


def test_environments_that_all_hang_do_not_hold_up_a_phase_for_ever(tmp_path, tool_model, caplog):
    let_go, called = threading.Event(), []

    class Stuck(desk()):
        def reset(self, a, b, **row):
            called.append((a, b))
            let_go.wait()

    trainer = make(tmp_path, tool_model, Stuck, environment_timeout=0.25)
    try:
        found = trainer.policy_rollouts([(Question(row, "", ""), "") for row in range(12)], 1)
    finally:
        let_go.set()
    assert [r.reward for r in found] == [None] * 12 and trainer.p2o.events == {"environment_hung": 12}
    assert len(called) <= 8 and "8 calls of environments in a row hung" in caplog.text


class Slow(desk()):
    """Answers later; one of its tools, and one reward, never."""

    async def multiply(self, a: int, b: int) -> int:
        await asyncio.sleep(3600 if self.asked == QUESTIONS[::3][1] else 0)
        return desk_multiply(self, a, b)

    multiply.__doc__ = desk_multiply.__doc__

    async def get_reward(self) -> float:
        await asyncio.sleep(3600 if self.asked == QUESTIONS[::3][2] else 0)
        return float(self.asked in self.found)


def test_coroutines_have_the_same_limit(tmp_path, tool_model):
    trainer = make(tmp_path, tool_model, Slow, environment_timeout=5.0)
    found = trainer.policy_rollouts([(Question(row, "", ""), INSTRUCTION) for row in range(4)], 1)
    assert [r.reward for r in found] == [1.0, None, None, 1.0]
    assert trainer.p2o.events == {"environment_hung": 2}


@pytest.mark.parametrize("limit", [None, 100.0])
def test_a_phase_in_which_no_instance_can_be_made_goes_on(tmp_path, tool_model, limit):
    made = []

    class Full(desk()):
        def __init__(self):
            made.append(1)
            if len(made) > 1:
                raise RuntimeError("too many sessions")
            super().__init__()

    trainer = make(tmp_path, tool_model, Full, environment_timeout=limit)
    found = trainer.policy_rollouts([(Question(row, "", ""), "") for row in range(3)], 1)
    assert [r.reward for r in found] == [None] * 3 and trainer.p2o.events == {"environment_raised": 3}


def test_bad_input_is_refused_before_training(tmp_path, tool_model):
    class Without:
        def multiply(self, a: int) -> int: ...

    class Undescribed(desk()):
        def divide(self, a, b):
            return a / b

    for wrong, why in ((desk()(), "it is Desk"), ({"desk": 1}, "'desk' is int"), ({}, "it is empty")):
        with pytest.raises(ValueError, match=f"environment_factory must be a class .*; {why}"):
            make(tmp_path, tool_model, wrong)
    with pytest.raises(ValueError, match="must define a callable `reset`"):
        make(tmp_path, tool_model, Without)
    with pytest.raises(ValueError, match=r"The tool .*divide cannot be described to the model"):
        make(tmp_path, tool_model, Undescribed)
    with pytest.raises(ValueError, match="No reward source provided"):
        make(tmp_path, tool_model, type("Plain", (), {"reset": lambda self, **row: None}))
    with pytest.raises(ValueError, match="row 0, field `prompt`: a text"):
        make(tmp_path, tool_model, desk(), train=Dataset.from_dict({"prompt": ["Multiply."] * 4}))
    with pytest.raises(ValueError, match="reused_rollouts_per_group does not go together with environments"):
        make(tmp_path, tool_model, desk(), reused_rollouts_per_group=1)
    with pytest.raises(ValueError, match="either an `environment_factory`"):
        make(tmp_path, tool_model, desk(), rollout_func=lambda prompts, trainer: {})
    with pytest.raises(ValueError, match="environment_timeout=0"):
        make(tmp_path, tool_model, desk(), environment_timeout=0)


@pytest.mark.parametrize("column", [["desk"] * 3 + ["table"] * 13, None])
def test_a_row_whose_environment_does_not_exist_is_named_before_training(tmp_path, tool_model, column):
    log = []
    train = data(environment=column) if column else data()
    trainer = make(tmp_path, tool_model, {"desk": desk(log)}, train=train)
    why = "row 3 has `environment='table'`, which is not among" if column else "row 0 names no environment"
    with pytest.raises(ValueError, match=why):
        trainer.train()
    assert log == [("made",)], "by TRL, to see what it is"
