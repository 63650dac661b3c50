"""Mining, seeding and the ledger."""

import json
import math
import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2o.ledger import Ledger
from p2o.prompt_phase.hard_samples import HardSamples, Outcome
from p2o.seeding import derive_seed, random_stream
from p2o.state import P2OState

groups = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.sampled_from([0.0, 1.0, -1.0, math.nan]), min_size=2, max_size=6)),
    max_size=12,
)


@given(groups, st.booleans())
def test_mining_agrees_with_the_definition(batches, near_hard):
    mined = HardSamples(near_hard=near_hard)
    first: dict[int, list[float]] = {}
    for question, rewards in batches:
        mined.record(question, rewards)
        scored = [r for r in rewards if not math.isnan(r)]
        if scored:
            first.setdefault(question, scored)
    expected = set()
    for question, rewards in first.items():
        successes = sum(r > 0 for r in rewards)
        if successes == 0 or (near_hard and successes == 1 and len(rewards) > 1):
            expected.add(question)
    assert mined.hard_set() == sorted(expected)


def test_threshold_is_exclusive():
    mined = HardSamples(near_hard=False)
    mined.record(0, [0.5, 0.5], threshold=0.5)
    mined.record(1, [0.6, 0.5], threshold=0.5)
    assert mined.hard_set() == [0]


def test_evaluation_is_not_charged_to_training():
    ledger = Ledger()
    ledger.add("policy", 8)
    ledger.add("reflection", 2)
    ledger.add("evaluation", 100)
    assert ledger.total_rollouts == 10


def test_streams_are_named_and_leave_the_generators_alone():
    assert derive_seed(1, "a") == derive_seed(1, "a") != derive_seed(1, "b")
    assert derive_seed(1, 23) != derive_seed(12, 3)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with random_stream(derive_seed(7, "elsewhere")):
        inside = torch.rand(3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    with random_stream(derive_seed(7, "elsewhere")):
        assert torch.equal(torch.rand(3), inside)


def test_state_survives_json():
    state = P2OState(epoch=3, epoch_complete=True, hard_set=[1, 4], assignment={4: [None, 0]})
    mined = HardSamples(outcomes=state.outcomes)
    mined.record(4, [0.0, 1.0])
    state.ledger.add("policy", 2)
    assert P2OState.from_dict(state.to_dict()) == state


def test_what_the_weights_took_over_is_measured_on_the_same_questions():
    """Of templated questions those that are bare an epoch later: 1 and 2 here; 3 is still hard, 4 was not drawn."""
    state = P2OState(epoch=1, assignment={1: [0, 0], 2: [0, 0], 3: [0, 0], 4: [0, 0]})
    state.outcomes = {1: Outcome(4, 4), 2: Outcome(2, 4), 3: Outcome(0, 4), 4: Outcome(3, 4), 9: Outcome(1, 4)}
    state.begin_next_epoch(near_hard=True)
    assert not any("taken_over" in name for name in state.metrics(near_hard=True))
    assert set(state.templated_outcomes) == {1, 2, 3, 4}
    state = P2OState.from_dict(json.loads(json.dumps(state.to_dict())))
    state.assignment = {3: [0, 0]}
    state.outcomes = {1: Outcome(3, 4), 2: Outcome(2, 2), 3: Outcome(4, 4), 9: Outcome(0, 4)}
    metrics = state.metrics(near_hard=True)
    assert metrics["p2o/taken_over/templated"] == 0.75 and metrics["p2o/taken_over/bare"] == 0.875
    state.begin_next_epoch(near_hard=True)
    assert set(state.templated_outcomes) == {3}
