"""The context ratio and its mask, against the definition written out token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2o.policy_phase.context_distillation import (
    ContextMask,
    ContextStatistics,
    context_mask,
    context_ratio,
    head_and_tail,
    mask_by_context,
    prepare_distillation,
    token_advantages,
)
from p2o.policy_phase.rollouts import RolloutPlan

logps = st.floats(-20, 0)


@given(st.lists(st.tuples(logps, logps), min_size=1, max_size=8), st.sampled_from(["hard", "soft", "off"]))
def test_mask_agrees_with_the_definition(pairs, mode):
    bare, templated = torch.tensor(pairs, dtype=torch.float64).T.unsqueeze(1)
    ratio = context_ratio(bare, templated)
    mask = context_mask(ratio, mode, 0.01, 10.0)
    for (x, z), r, m in zip(pairs, ratio[0].tolist(), mask[0].tolist(), strict=True):
        expected_ratio = math.exp(x - z)
        assert r == pytest.approx(expected_ratio)
        if mode == "off" or 0.01 <= r <= 10:
            assert m == 1
        elif mode == "hard":
            assert m == 0
        else:
            assert m == pytest.approx(min((0.01 if r < 0.01 else 10) / r, 10))


def test_bounds_belong_to_the_range():
    ratio = torch.tensor([[0.01, 10.0]], dtype=torch.float64)
    assert context_mask(ratio, "hard", 0.01, 10.0).tolist() == [[1.0, 1.0]]


def test_extremes_stay_finite():
    ratio = context_ratio(torch.tensor([[-500.0, 0.0, float("nan")]]), torch.tensor([[0.0, -500.0, -1.0]]))
    for mode in ("hard", "soft", "off"):
        mask = context_mask(ratio, mode)
        assert mask.isfinite().all() and mask.max() <= 10 and mask[0, 2] == 1
    statistics = ContextStatistics.of(ratio, torch.ones_like(ratio, dtype=torch.int), 0.01, 10)
    assert (statistics.tokens, statistics.below, statistics.above) == (3, 1, 1)
    assert math.isfinite(statistics.log_ratio)


@given(st.lists(st.integers(0, 13), min_size=1, max_size=5))
def test_head_and_tail_are_quarters_of_each_rollout(lengths):
    mask = torch.tensor([[1] * length + [0] * (13 - length) for length in lengths])
    head, tail = head_and_tail(mask)
    for row, length in enumerate(lengths):
        quarter = math.ceil(length / 4)
        assert head[row].nonzero().flatten().tolist() == list(range(quarter))
        assert tail[row].nonzero().flatten().tolist() == list(range(length - quarter, length))


def test_only_templated_rows_are_masked():
    advantages = torch.tensor([1.0, -2.0, 3.0])
    result = token_advantages(advantages, torch.tensor([[0.0, 1.0]]), torch.tensor([False, True, False]))
    assert result.tolist() == [[1, 1], [0, -2], [3, 3]]


class NoPass:
    """Log-probabilities of the policy, in a place where none may be asked for."""

    def of_batch(self, *args):
        raise AssertionError("a pass of the model")

    of_rows = of_batch


def plan(templates):
    return RolloutPlan((0, 0, 0, 0, 1, 1, 1, 1), tuple(templates), (None,) * 8, tuple([[1]] * 8))


@pytest.mark.parametrize("sequence", [False, True])
def test_engine_correction_leaves_the_context_ratio_to_the_mask(sequence):
    """With an engine's log-probabilities TRL would weigh the loss by π(y|x)/π(y|T(x,z)); it must not."""
    templated = torch.tensor([False, True, True, True, False, False, False, False])
    sampled = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) * 0.1 - 1.0
    batch = {
        "advantages": torch.arange(8.0),
        "completion_mask": torch.ones(8, 5, dtype=torch.long),
        "importance_sampling_ratio": torch.full((8, 1 if sequence else 5), 0.3),
        "sampling_per_token_logps": sampled.clone(),
        "old_per_token_logps": torch.full((8, 5), -1.0),
    }
    mask = ContextMask("hard", 0.95, 1.05)
    failed = torch.zeros(8, dtype=torch.bool)
    contexts = plan(["", "z", "z", "z", "", "", "", ""])
    prepare_distillation(
        batch, contexts, NoPass(), mask, failed=failed, drop_failed=False, need_old_logps=lambda rows: False
    )
    statistics = mask_by_context(batch, batch["old_per_token_logps"], mask)
    assert (batch["importance_sampling_ratio"][templated] == 1).all()
    assert (batch["importance_sampling_ratio"][~templated] == torch.tensor(0.3)).all()
    # The context ratio is taken from the engine's own log-probabilities, without a pass of the model.
    ratio = (-1.0 - sampled).exp()
    inside = (ratio >= 0.95) & (ratio <= 1.05)
    expected = torch.arange(8.0).unsqueeze(1) * inside
    torch.testing.assert_close(batch["advantages"][templated], expected[templated])
    assert 0 < (~inside[templated]).sum() < inside[templated].numel(), "the mask bites"
    assert statistics.below + statistics.above == (~inside[templated]).sum()
    # Off-policy masking reads the sampling log-probabilities: they are of one context again.
    assert (batch["sampling_per_token_logps"][templated] == -1).all()
    assert torch.equal(batch["sampling_per_token_logps"][~templated], sampled[~templated])


def test_templated_rollouts_that_failed_can_be_left_out():
    batch = {
        "advantages": torch.ones(8),
        "completion_mask": torch.ones(8, 2, dtype=torch.long),
        "sampling_per_token_logps": torch.zeros(8, 2),
    }
    failed = torch.tensor([True, True, False, False] * 2)
    mask = ContextMask("off", 0.01, 10.0)
    contexts = plan(["", "z", "z", "", "", "", "", ""])
    prepare_distillation(
        batch, contexts, NoPass(), mask, failed=failed, drop_failed=True, need_old_logps=lambda rows: False
    )
    mask_by_context(batch, torch.zeros(8, 2), mask)
    assert batch["advantages"].tolist() == [[0, 0] if row == 1 else [1, 1] for row in range(8)]
