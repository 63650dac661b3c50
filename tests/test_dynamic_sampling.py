"""Groups without variance that are sampled again, and rollouts that nobody could score."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2o.policy_phase.dynamic_sampling import replace_rows
from trainers import (
    TEMPLATE,
    K,
    alternate,
    assert_same,
    coin,
    contexts_of,
    drawn_batch,
    generation_batch,
    logged,
    make,
    questions,
    rows_of,
    weights,
)


def test_collapsed_groups_are_replaced_until_none_is_left_or_the_rounds_are_over(tmp_path):
    trainer = make(tmp_path, reward=coin, data=questions(24), dynamic_sampling_rounds=3, per_device_train_batch_size=16)
    assignment = {i: [None, 0, 0, 0] for i in range(0, 24, 2)}  # some groups are templated, some are not
    rows, watch = drawn_batch(trainer, questions=4, templates=[TEMPLATE], assignment=assignment)
    torch.manual_seed(5)
    output = trainer._generate_and_score_completions(rows)

    sizes = [len(rollouts) for _, rollouts in watch.batches]
    assert sizes[0] == 16 and all(a >= b for a, b in itertools.pairwise(sizes)) and len(sizes) > 1
    assert trainer.p2o.ledger.rollouts["policy"] == sum(sizes)
    assert len(output["advantages"]) == 16
    # Every row of the result is, without its padding, a row of one of the batches, and the first batch's where it had
    # variance.
    decode = trainer.processing_class.decode
    learnt = [(prompt, decode(completion, skip_special_tokens=True)) for prompt, completion in rows_of(output)]
    bare = [rollout._replace(template="") for rollout in watch.rollouts]
    sampled = [
        (context, completion[0]["content"])
        for context, (_, _, completion, _) in zip(contexts_of(trainer, bare), bare, strict=True)
    ]
    assert all(row in sampled for row in learnt)
    rewards = [reward for *_, reward in watch.rollouts]
    kept = [g for g in range(4) if len(set(rewards[g * K : (g + 1) * K])) > 1]
    for group in kept:
        assert learnt[group * K : (group + 1) * K] == sampled[group * K : (group + 1) * K]
    with_advantage = output["advantages"].reshape(4, -1).abs().sum(1) > 0
    assert with_advantage.sum() > len(kept), "something was won"
    assert logged(trainer)["p2o/collapsed_after_resampling"] == 1 - with_advantage.float().mean()
    assert output["num_items_in_batch"] == output["completion_mask"].sum()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, output).isfinite()


def test_an_unscored_rollout_has_no_advantage_over_a_wrong_one(tmp_path):
    def reward(completions, **kwargs):
        return [None, -1.0, -1.0, 1.0, -1.0, -1.0, -1.0, None]

    trainer = make(tmp_path, reward=reward)
    advantages = generation_batch(trainer, assign={})["advantages"].view(2 * K, -1)[:, 0]
    assert advantages[0] == advantages[7] == 0
    assert (advantages[1:3] < 0).all() and advantages[3] > 0
    # One was right, of three; of the others none, of three.
    assert {q: (o.successes, o.rollouts) for q, o in trainer.p2o.outcomes.items()} == {0: (1, 3), 1: (0, 3)}


def test_evolution_is_told_what_nobody_could_score(tmp_path):
    told = []

    def accuracy(completions, **kwargs):
        return [None if value else -1.0 for value in coin(completions)]

    def feedback(completion, row):
        told.append(row["reward"])
        return "Wrong."

    trainer, events = alternate(
        tmp_path,
        reward=[accuracy, lambda completions, **kwargs: [0.5] * len(completions)],
        success_reward="accuracy",
        feedback_func=feedback,
    )
    # The other reward alone is none, and beats no wrong answer.
    assert set(told) == {-0.5}
    rewards = {r for _, found, _ in events.phases if found for c in found.candidates for r in c.dev_rewards.values()}
    assert rewards == {-0.5} and trainer.p2o.events["unscored_rollouts"] > 0


@given(st.data())
def test_replaced_rows_keep_their_content(data):
    def batch(rows):
        widths = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
        numbers = torch.arange(1.0, 1000.0)[torch.randperm(999, generator=torch.Generator().manual_seed(rows))]
        per_token = data.draw(st.booleans())
        return {
            "prompt_ids": numbers[: rows * widths[0]].view(rows, -1),
            "prompt_mask": torch.ones(rows, widths[0], dtype=torch.long),
            "completion_ids": numbers[-rows * widths[1] :].view(rows, -1),
            "completion_mask": torch.ones(rows, widths[1], dtype=torch.long),
            "advantages": numbers[: rows * widths[1]].view(rows, -1) if per_token else numbers[:rows],
            "num_items_in_batch": torch.tensor(rows * widths[1]),
        }

    old, new = batch(5), batch(3)
    result = dict(old)
    replace_rows(result, [4, 0], new, [1, 2], pad_token_id=0)
    origin = {0: (new, 2), 4: (new, 1), **{row: (old, row) for row in (1, 2, 3)}}
    for row, (source, index) in origin.items():
        for side in ("prompt", "completion"):
            mask = result[f"{side}_mask"][row].bool()
            assert result[f"{side}_ids"][row][mask].tolist() == source[f"{side}_ids"][index].tolist()
            padding = mask.nonzero().flatten()
            assert padding[-1] == len(mask) - 1 if side == "prompt" else padding[0] == 0
        expected = source["advantages"][index].expand(source["completion_mask"].size(1))
        actual = result["advantages"][row].expand(result["completion_mask"].size(1))
        assert actual[result["completion_mask"][row].bool()].tolist() == expected.tolist()
    assert result["num_items_in_batch"] == result["completion_mask"].sum()


def test_dynamic_sampling_resumes_exactly_and_counts_nothing_of_a_failed_batch(tmp_path):
    settings = {
        "reward": coin,
        "dynamic_sampling_rounds": 2,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 50,
    }
    straight = make(tmp_path / "a", **settings)
    straight.train()
    calls = []

    def fails_once(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 4:
            raise RuntimeError("the verifier is gone")
        return coin(completions)

    fails_once.__name__ = "coin"
    with pytest.raises(RuntimeError, match="verifier"):
        make(tmp_path / "b", **{**settings, "reward": fails_once}).train()
    resumed = make(tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(straight), weights(resumed))
    assert straight.p2o == resumed.p2o
