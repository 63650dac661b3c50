"""Successes of the prompt phase that the next epoch learns from."""

import pytest
import torch
from transformers import AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path
from p2o.policy_phase.reuse import KeptRollout
from trainers import (
    ALTERNATE,
    TEMPLATE,
    K,
    alternate,
    assert_same,
    bare_tokens,
    brute_force_logps,
    coin,
    contexts_of,
    load,
    make,
    options,
    perturb,
    questions,
    rows_of,
    watched_batch,
    weights,
)


@pytest.mark.parametrize("template", [TEMPLATE.text, ""])
@pytest.mark.parametrize("changes", [{}, {"steps_per_generation": 2}, {"old_logprobs_context": "rollout"}])
def test_a_reused_rollout_is_held_against_the_policy_that_sampled_it(tmp_path, changes, template):
    trainer = make(tmp_path, reused_rollouts_per_group=1, context_ratio_min=0.5, context_ratio_max=2.0, **changes)
    before, tokenizer = load(), trainer.processing_class
    completion = tokenizer("1+1=2\nAnswer: 2")["input_ids"] + [tokenizer.eos_token_id]
    chat = trainer.train_dataset[0]["prompt"]
    (context,) = contexts_of(trainer, [(chat, template)])
    with torch.no_grad():
        bare = brute_force_logps(before, bare_tokens(trainer, 0), completion)
        told = brute_force_logps(before, context, completion)
    trainer.p2o.kept = {0: [KeptRollout(template, completion, bare, told)]}
    perturb(trainer)
    counted = dict(trainer.p2o.ledger.rollouts)
    output, watch = watched_batch(trainer)

    assert watch.rollouts[K - 1].template == template
    prompt, learnt = list(rows_of(output))[K - 1]
    assert (prompt, learnt) == (bare_tokens(trainer, 0), completion)
    assert trainer.p2o.ledger.rollouts["policy"] == counted["policy"] + 2 * K - 1, "it was paid for in the prompt phase"
    assert trainer.p2o.outcomes[0].rollouts == K - 1, "it says nothing of the present policy"
    with torch.no_grad():
        now = brute_force_logps(trainer.model, prompt, completion)
        others = [brute_force_logps(trainer.model, *row) for row in list(rows_of(output))[K:]]
    assert (now - bare).abs().max() > 0.05, "the policy has moved"
    end = len(completion)
    old = output["old_per_token_logps"]
    expected = told if trainer.args.old_logprobs_context == "rollout" else bare
    torch.testing.assert_close(old[K - 1][:end], expected, atol=1e-4, rtol=1e-4)
    for row, logps in enumerate(others, start=K):
        torch.testing.assert_close(old[row][: len(logps)], logps, atol=1e-4, rtol=1e-4)
    # The context ratio, too, is that of the policy that sampled.
    ratio = (bare - told).exp()
    masked = ((ratio < 0.5) | (ratio > 2)).float()
    assert masked.sum() > 0 or not template
    advantages = output["advantages"][K - 1][:end]
    assert ((advantages == 0).float() == masked).all()


def test_successes_of_the_prompt_phase_are_learnt_from_in_the_next_epoch(tmp_path):
    trainer, events = alternate(tmp_path, reused_rollouts_per_group=1)
    ((_, result, _),) = events.phases
    assert set(trainer.p2o.kept) == {success.question for success in result.successes} != set()
    solved = {
        question for candidate in result.candidates for question, solved in candidate.dev_solved.items() if solved
    }
    assert solved <= set(trainer.p2o.kept), "dev rollouts are reused as well"
    assert trainer.p2o.ledger.rollouts["policy"] == 2 * 16 * K - len(trainer.p2o.kept)
    texts = {
        trainer.processing_class.decode(k.completion_ids, skip_special_tokens=True) for [k] in trainer.p2o.kept.values()
    }
    learnt = {completion[0]["content"] for epoch, rollouts in events.batches if epoch for *_, completion, _ in rollouts}
    assert texts <= learnt
    assert "successes" not in result.to_dict()


def test_reuse_resumes_exactly(tmp_path):
    settings = {
        "reused_rollouts_per_group": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 1,
    }
    straight, _ = alternate(tmp_path, **settings)
    middle = 3 * straight.state.max_steps // 4
    resumed = make(
        tmp_path,
        reward=coin,
        data=questions(16),
        **{**ALTERNATE, **settings},
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{middle}"))
    assert resumed.p2o.kept.keys() == straight.p2o.kept.keys() != set()
    assert_same(weights(straight), weights(resumed))
    assert resumed.p2o.ledger == straight.p2o.ledger


@pytest.mark.parametrize(
    "changes",
    [{"reused_rollouts_per_group": K}, {"context_distillation": False}, {"dynamic_sampling_rounds": 1}],
)
def test_reuse_refuses_what_it_cannot_do(tmp_path, changes):
    with pytest.raises(ValueError, match="reused_rollouts_per_group"):
        make(tmp_path, **{"reused_rollouts_per_group": 1, **changes})
    with pytest.raises(ValueError, match="rollout_func of your own"):
        P2OTrainer(
            model=load(),
            reward_funcs=coin,
            args=P2OConfig(**options(tmp_path, reused_rollouts_per_group=1)),
            train_dataset=questions(),
            processing_class=AutoTokenizer.from_pretrained(model_path()),
            rollout_func=lambda prompts, trainer: {},
        )
