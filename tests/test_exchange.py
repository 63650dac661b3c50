"""Backward rewrites in the places of hard questions: which, how many, and what a run makes of them."""

import contextlib
import json
import math
import re

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from p2o.cli import main
from p2o.config import P2OConfig
from p2o.difficulty.exchange import OF_ROW, draw_exchange, questions_alone, rewrites_by_question, with_rewrites
from p2o.pico import world
from p2o.templates import question_text
from trainers import Watch, alternate, assert_same, make, options, weights

DATA = world.train_dataset(hard=8, easy=4)
SMALL = {
    "reward": world.accuracy_reward,
    "data": DATA,
    "prompt_phase": False,
    "per_device_train_batch_size": 16,
    "max_completion_length": 24,
    "max_steps": 8,
    "rewrite_share": 0.5,
}
rewrites = st.dictionaries(st.integers(0, 30), st.lists(st.integers(100, 200), min_size=1, max_size=4))


@given(st.sets(st.integers(0, 30)), rewrites, st.floats(0, 0.99), st.integers(0, 5))
def test_a_share_of_the_hard_questions_gives_its_places(hard, by_question, share, epoch):
    drawn = draw_exchange(sorted(hard), by_question, share, 0, epoch)
    able = hard & by_question.keys()
    assert len(drawn) == math.ceil(len(able) * share) and drawn.keys() <= able
    assert all(drawn[question] in by_question[question] for question in drawn)
    assert drawn == draw_exchange(sorted(hard), by_question, share, 0, epoch)


def test_every_epoch_draws_anew():
    by_question = {question: [100 + question, 200 + question] for question in range(20)}
    assert draw_exchange(range(20), by_question, 0.5, 0, 1) != draw_exchange(range(20), by_question, 0.5, 0, 2)


def config(tmp_path, **changes):
    return P2OConfig(**options(tmp_path, **changes))


def test_rewrites_stand_behind_their_questions(tmp_path, caplog):
    made = with_rewrites(DATA, config(tmp_path, rewrite_share=0.5))
    assert questions_alone(made)["prompt"] == DATA["prompt"] and len(made) > 3 * len(DATA)
    for question, rows in rewrites_by_question(made).items():
        for row in made.select(rows):
            assert row[OF_ROW] == question and DATA[question]["solution"] in question_text(row["prompt"])
            right = world.accuracy_reward([f"Answer: {row['solution']}"], [row["family"]], [row["entry"]])
            assert right == [1.0]
    assert f"{len(rewrites_by_question(made))} of 12 questions have rewrites" in caplog.text
    # By default nothing is added.
    assert with_rewrites(DATA, config(tmp_path)) is DATA
    assert questions_alone(DATA) is DATA and not rewrites_by_question(DATA)


def test_those_of_a_file_are_found_by_their_question(tmp_path, caplog):
    DATA.to_json(tmp_path / "data.jsonl")
    with contextlib.chdir(tmp_path):
        assert (
            main(["rewrite", "--dataset", "data.jsonl", "--limit", "3", "--verifier", "gym", "--output_dir", "out"])
            == 0
        )
    file = str(tmp_path / "out" / "rewrites.jsonl")
    other_order = DATA.select(list(reversed(range(12)))).rename_column("solution", "gold")
    made = with_rewrites(other_order, config(tmp_path, rewrite_share=0.5, rewrites=file, solution_column="gold"))
    assert set(rewrites_by_question(made)) == {9, 10, 11} and "solution" not in made.column_names
    assert all(made["gold"])
    assert with_rewrites(DATA, config(tmp_path, rewrites=file)) is DATA and "is not used" in caplog.text
    others = world.train_dataset(seed=1, hard=4, easy=0)
    with pytest.raises(ValueError, match="none of the 4 training questions has a rewrite in it"):
        with_rewrites(others, config(tmp_path, rewrite_share=0.5, rewrites=file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no rewrite ("),
        ("[]", "line 2: no rewrite ("),
        ('{"prompt": "x", "solution": "1"}', "line 2: no rewrite (it has no prompt, solution and rewrite_of_key)"),
        (None, "Cannot read rewrites="),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, line, message):
    if line is not None:
        first = {"prompt": "x", "solution": "1", "rewrite_of_key": "0"}
        (tmp_path / "r.jsonl").write_text(f"{json.dumps(first)}\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        with_rewrites(DATA, config(tmp_path, rewrite_share=0.5, rewrites=str(tmp_path / "r.jsonl")))


def test_what_cannot_be_rewritten_is_said(tmp_path):
    plain = Dataset.from_dict({"prompt": ["What is 1 + 2?"] * 4, "solution": ["3"] * 4})
    with pytest.raises(ValueError, match="no solver can verify a rewrite of these questions"):
        with_rewrites(plain, config(tmp_path, rewrite_share=0.5))
    with pytest.raises(ValueError, match=re.escape("rewrite_share=1 must be in [0, 1)")):
        config(tmp_path, rewrite_share=1)
    with pytest.raises(ValueError, match="does not go with rewrite_share"):
        config(tmp_path, rewrite_share=0.5, dynamic_sampling_rounds=1)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of GRPO with rewrites over three epochs, with a checkpoint of every step."""
    trainer = make(tmp_path_factory.mktemp("run"), save_strategy="steps", save_steps=1, **SMALL)
    trainer.add_callback(watch := Watch())
    trainer.train()
    return trainer, watch


def test_rewrites_take_places_of_the_hard_set_and_no_rollouts(run):
    trainer, watch = run
    bare = set(map(question_text, DATA["prompt"]))
    asked = {epoch: [] for epoch in range(3)}
    for epoch, rollouts in watch.batches:
        asked[epoch] += [question_text(rollout.prompt) for rollout in rollouts[::4]]
    assert [len(texts) for texts in asked.values()] == [12, 12, 8], "an epoch is as long as without rewrites"
    assert set(asked[0]) == bare
    logs = {log["step"]: log for log in trainer.state.log_history if "loss" in log}
    for epoch in (1, 2):
        hard, taken = (logs[3 * epoch + 1][f"p2o/{name}"] for name in ("hard_set", "rewritten_questions"))
        assert hard / 2 - 1 <= taken <= math.ceil(hard / 2) and taken > 0
        rewritten = [text for text in asked[epoch] if text not in bare]
        assert len(rewritten) == taken if epoch == 1 else 0 < len(rewritten) <= taken
        assert len(set(asked[epoch]) & bare) + len(rewritten) == len(asked[epoch])
    assert trainer.p2o.ledger.rollouts["policy"] == 8 * 16
    # Rewrites are no evidence of how hard their question is.
    assert {*trainer.p2o.outcomes, *trainer.p2o.hard_set} <= set(range(12))
    assert set(trainer.p2o.rewritten.values()) <= set(trainer.p2o.hard_set)


@pytest.mark.parametrize("step", [3, 5])  # the end of an epoch, and within one
def test_resumed_it_draws_the_same(run, step):
    trainer, watch = run
    resumed = make(trainer.args.output_dir, **SMALL)
    resumed.add_callback(again := Watch())
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{step}")
    assert_same(weights(trainer), weights(resumed))
    assert [r.prompt for r in again.rollouts] == [r.prompt for r in watch.rollouts[step * 16 :]]


def test_templates_and_rewrites_share_the_hard_set(tmp_path):
    """A question keeps its place in the hard set while a rewrite is asked for it; templates are for the others."""
    trainer, events = alternate(
        tmp_path, reward=world.accuracy_reward, data=DATA, rewrite_share=0.5, per_device_train_batch_size=16
    )
    second = [rollout for epoch, rollouts in events.batches if epoch == 1 for rollout in rollouts]
    bare = set(map(question_text, DATA["prompt"]))
    rewritten = [rollout for rollout in second if question_text(rollout.prompt) not in bare]
    assert rewritten and not any(rollout.template for rollout in rewritten)
    assert set(trainer.p2o.rewritten.values()) <= set(trainer.p2o.hard_set)
