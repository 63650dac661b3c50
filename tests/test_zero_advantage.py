"""Rollouts without advantage cost no pass, and nothing changes."""

import pytest
import torch

from trainers import LOSSES, K, brute_force_logps, generation_batch, logged, make, perturb, rows_of


@pytest.mark.parametrize("templated", [False, True])
@pytest.mark.parametrize("live", [[1, 2, 5], [], list(range(8))])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_rollouts_without_advantage_are_left_out_and_nothing_changes(tmp_path, loss_type, live, templated):
    changes = {"steps_per_generation": 2, "importance_sampling_level": "sequence"} if loss_type == "luspo" else {}
    trainer = make(tmp_path, loss_type=loss_type, **{"steps_per_generation": 2, **changes})
    output = generation_batch(trainer, assign=None if templated else {})
    dead = torch.ones(8, dtype=torch.bool)
    dead[live] = False
    output["advantages"] = output["advantages"].clone()
    output["advantages"][dead] = 0.0
    perturb(trainer, 0.01)  # a later update of the same rollouts: ratios are not 1
    trainer.current_gradient_accumulation_steps = 1
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    results = {}
    for skip in (False, True):
        trainer.args.skip_zero_advantages = skip
        before = trainer.p2o.ledger.forward_backward_tokens
        logged(trainer)
        loss = trainer._compute_loss(trainer.model, output)
        gradient = torch.autograd.grad(loss, parameters)
        spent = trainer.p2o.ledger.forward_backward_tokens - before
        results[skip] = (loss, gradient, spent, logged(trainer))
    torch.testing.assert_close(results[True][0], results[False][0], atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(results[True][1], results[False][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    passed = live or [0]
    tokens = output["prompt_mask"][passed].sum() + output["completion_mask"][passed].sum()
    assert results[True][2] == tokens
    assert results[True][3]["p2o/skipped_rollouts"] == pytest.approx(1 - len(live) / 8)
    clipped = {name for name in results[False][3] if name.startswith("clip_ratio")}
    for name in clipped:
        assert results[True][3][name] == pytest.approx(results[False][3][name])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_groups_without_variance_can_be_left_out_of_the_kl_term(tmp_path, loss_type, skip):
    """Against TRL's loss with the reference's log-probabilities of these groups replaced by the policy's own."""
    trainer = make(
        tmp_path,
        reward=lambda completions, **kwargs: [1.0] * K + [float(i) for i in range(len(completions) - K)],
        loss_type=loss_type,
        beta=0.5,
        kl_on_collapsed_groups=False,
        skip_zero_advantages=skip,
    )
    output = generation_batch(trainer, assign={})
    assert output["collapsed_rows"].tolist() == [True] * K + [False] * K
    output["advantages"][K] = 0.0  # a rollout without advantage in a group with variance is still held back
    perturb(trainer, 0.01)
    trainer.current_gradient_accumulation_steps = 1
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    before = trainer.p2o.ledger.forward_backward_tokens
    loss = trainer._compute_loss(trainer.model, dict(output))
    spent = trainer.p2o.ledger.forward_backward_tokens - before
    gradient = torch.autograd.grad(loss, parameters)
    assert logged(trainer).get("p2o/skipped_rollouts") == (0.5 if skip else None)

    theirs = {name: value for name, value in output.items() if name != "collapsed_rows"}
    for row, (prompt, completion) in enumerate(rows_of(output)):
        if row < K:
            own = brute_force_logps(trainer.model, prompt, completion).detach()
            theirs["ref_per_token_logps"][row, : len(completion)] = own
    trainer.args.kl_on_collapsed_groups = True
    expected = trainer._compute_loss(trainer.model, theirs)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    for ours, wanted in zip(gradient, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    passed = slice(K, 2 * K) if skip else slice(0, 2 * K)
    assert spent == output["prompt_mask"][passed].sum() + output["completion_mask"][passed].sum()


def test_with_a_kl_term_all_rollouts_are_learnt_from(tmp_path):
    trainer = make(tmp_path, beta=0.1)
    output = generation_batch(trainer, assign={})
    output["advantages"] = torch.zeros(8)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    everything = output["prompt_mask"].sum() + output["completion_mask"].sum()
    assert trainer.p2o.ledger.forward_backward_tokens == everything
    assert "p2o/skipped_rollouts" not in logged(trainer)
