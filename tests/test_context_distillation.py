"""The context ratio and its mask, against the definition written out token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2o.policy_phase.context_distillation import ContextStatistics, context_mask, context_ratio, token_advantages

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
            assert m == pytest.approx((0.01 if r < 0.01 else 10) / r)


def test_bounds_belong_to_the_range():
    ratio = torch.tensor([[0.01, 10.0]], dtype=torch.float64)
    assert context_mask(ratio, "hard", 0.01, 10.0).tolist() == [[1.0, 1.0]]


def test_extremes_stay_finite():
    ratio = context_ratio(torch.tensor([[-500.0, 0.0, float("nan")]]), torch.tensor([[0.0, -500.0, -1.0]]))
    for mode in ("hard", "soft", "off"):
        mask = context_mask(ratio, mode)
        assert mask.isfinite().all() and mask[0, 2] == 1
    statistics = ContextStatistics.of(ratio, torch.ones_like(ratio, dtype=torch.int), 0.01, 10)
    assert (statistics.tokens, statistics.below, statistics.above) == (3, 1, 1)
    assert math.isfinite(statistics.log_ratio)


def test_only_templated_rows_are_masked():
    advantages = torch.tensor([1.0, -2.0, 3.0])
    result = token_advantages(advantages, torch.tensor([[0.0, 1.0]]), torch.tensor([False, True, False]))
    assert result.tolist() == [[1, 1], [0, -2], [3, 3]]
