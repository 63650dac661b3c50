"""Which comes first, features or accuracy: planted leads are found, and where there is none, none is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2o.features.dynamics import BASE, Checkpoint, Strengths, leads
from p2o.features.lead import LEAST_QUESTIONS, complete, lead_of
from p2o.features.spans import KINDS

QUESTIONS, CHECKPOINTS, ROLLOUTS = 64, 6, 8
SEEDS = range(30)


def measured(share, accuracy, rng, shared_luck=0.0):
    """Halves as they are measured: shares with noise, and means of `ROLLOUTS` rewards of 0 or 1 a half."""
    luck = rng.normal(0, 1, (2, *share.shape))
    noisy = share + 0.03 * rng.normal(0, 1, (2, *share.shape)) + shared_luck * luck
    rewards = rng.binomial(ROLLOUTS, np.clip(accuracy, 0, 1), (2, *share.shape)) / ROLLOUTS
    return noisy, rewards + shared_luck * luck


def breakthroughs(rng):
    """Each question is learnt at a moment of its own, over two intervals: what improves goes on improving."""
    moment = rng.uniform(0.5, CHECKPOINTS - 0.5, QUESTIONS)
    return moment, np.arange(CHECKPOINTS)[:, None]


def planted(seed, sign=1):
    """The share moves one checkpoint before accuracy does."""
    rng = np.random.default_rng(seed)
    moment, time = breakthroughs(rng)
    share = 0.3 + sign * 0.25 * np.clip(time - moment + 1.5, 0, 1)
    return measured(share, 0.1 + 0.8 * np.clip(time - moment + 0.5, 0, 1), rng)


def accompanying(seed):
    """The share moves with accuracy, and both take two intervals for it."""
    rng = np.random.default_rng(seed)
    moment, time = breakthroughs(rng)
    course = np.clip((time - moment + 1) / 2, 0, 1)
    return measured(0.2 + 0.3 * course, 0.1 + 0.8 * course, rng)


def unrelated(seed):
    rng = np.random.default_rng(seed)
    course = [np.clip((time - moment + 1) / 2, 0, 1) for moment, time in (breakthroughs(rng), breakthroughs(rng))]
    return measured(0.2 + 0.3 * course[0], 0.1 + 0.8 * course[1], rng)


def leads_of(make, **options):
    return [lead_of(*make(seed, **options), seed=seed) for seed in SEEDS]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_lead_is_found(sign):
    found = leads_of(planted, sign=sign)
    assert np.mean([lead.is_ahead for lead in found]) > 0.9
    assert all(lead.by_lag[1].sign == sign for lead in found), "answers given at once become fewer before it is solved"


def test_what_follows_accuracy_does_not_lead_it():
    """The planted data with time reversed: accuracy moves first."""
    halves = [(shares[:, ::-1], rewards[:, ::-1]) for shares, rewards in map(planted, SEEDS)]
    found = [lead_of(*one, seed=seed) for seed, one in zip(SEEDS, halves, strict=True)]
    assert not any(lead.is_ahead for lead in found)
    assert np.mean([lead.lead.sign == -1 for lead in found]) > 0.9


def test_what_accompanies_accuracy_is_not_taken_for_a_lead():
    """It does correlate with the next change, which goes on where the last one did; but not more than with that."""
    found = leads_of(accompanying)
    assert np.mean([lead.by_lag[1].sign == 1 for lead in found]) > 0.5
    assert np.mean([lead.is_ahead for lead in found]) < 0.1
    assert np.mean([lead.by_lag[0].sign == 1 for lead in found]) == 1


def test_where_there_is_nothing_nothing_is_found():
    found = leads_of(unrelated)
    assert np.mean([lead.is_ahead for lead in found]) < 0.1
    covered = [estimate.sign == 0 for lead in found for estimate in lead.by_lag.values()]
    assert 0.88 < np.mean(covered) <= 1.0, "intervals are of 95 per cent"


def test_luck_that_shares_and_rewards_have_in_common_is_no_correlation():
    """Nothing changes but luck, which is that of a half. Of the same half, it would make one."""
    flat = np.full((CHECKPOINTS, QUESTIONS), 0.5)
    halves = [measured(flat, flat, np.random.default_rng(seed), shared_luck=0.3) for seed in SEEDS]
    found = [lead_of(*one, seed=0) for one in halves]
    assert abs(np.mean([lead.by_lag[0].value for lead in found])) < 0.05
    assert np.mean([estimate.sign == 0 for lead in found for estimate in lead.by_lag.values()]) > 0.88
    same = [lead_of(shares[::-1], rewards, seed=0) for shares, rewards in halves]
    assert np.mean([lead.by_lag[0].value for lead in same]) > 0.4
    assert np.mean([lead.by_lag[1].value for lead in same]) < -0.2


@settings(max_examples=15)
@given(st.integers(0, 99), st.floats(0.1, 10), st.floats(-1, 1))
def test_scales_levels_and_common_trends_do_not_matter(seed, scale, level):
    shares, rewards = planted(seed)
    rng = np.random.default_rng(seed + 1)
    of_question, of_checkpoint = rng.normal(size=QUESTIONS), rng.normal(size=(CHECKPOINTS, 1))
    other = lead_of(scale * shares + level + of_question, rewards + of_checkpoint + of_question, seed=3)
    for lag, estimate in lead_of(shares, rewards, seed=3).by_lag.items():
        assert other.by_lag[lag].value == pytest.approx(estimate.value, abs=1e-9)
        assert other.by_lag[lag].low == pytest.approx(estimate.low, abs=1e-9)
        assert -1 <= estimate.low <= estimate.high <= 1


@settings(max_examples=15)
@given(st.integers(0, 99))
def test_time_reversed_swaps_the_lags(seed):
    shares, rewards = planted(seed)
    there, back = (lead_of(s, r, seed=1) for s, r in ((shares, rewards), (shares[:, ::-1], rewards[:, ::-1])))
    for lag, estimate in there.by_lag.items():
        assert back.by_lag[-lag].value == pytest.approx(estimate.value)
    assert back.lead.value == pytest.approx(-there.lead.value)


def test_what_cannot_be_told():
    shares, rewards = planted(0)
    assert lead_of(shares[:, :2], rewards[:, :2], seed=0) is None, "two checkpoints have one change"
    few = LEAST_QUESTIONS - 1
    assert lead_of(shares[..., :few], rewards[..., :few], seed=0) is None
    assert set(lead_of(shares[:, :3], rewards[:, :3], seed=0).by_lag) == {-1, 0, 1}
    still = lead_of(np.full_like(shares, 0.3), rewards, seed=0)
    assert still.by_lag[1].value is None and still.lead.value is None and not still.is_ahead


def test_questions_that_were_not_scored_are_left_out():
    shares = [[[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], [[0.4, 0.5, 0.6], [0.4, None, 0.6]]]
    rewards = [[[1.0, 0.0, None], [1.0, 0.0, 0.5]], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.5]]]
    found = complete(shares, rewards)
    assert found[0].tolist() == [[[0.1], [0.4]], [[0.1], [0.4]]] and found[1].shape == (2, 2, 1)


def test_leads_are_by_run_bucket_and_kind():
    """Of the planted run computation leads, of the other nothing does; easy questions are too few to tell."""
    rows = [(Checkpoint(BASE, BASE, 0, None), 0, planted(5))]
    rows += [(Checkpoint("first", "p2o", 10 * at, None), at, planted(5)) for at in range(1, CHECKPOINTS)]
    rows += [(Checkpoint("second", "grpo", 10 * at, None), at, unrelated(5)) for at in range(1, CHECKPOINTS)]
    checkpoints = [(checkpoint, strengths_at(at, *halves)) for checkpoint, at, halves in rows]
    buckets = ["hard"] * 40 + ["medium"] * 15 + ["easy"] * 5 + [None] * 4
    found = leads(checkpoints, buckets, seed=0)
    assert {(row["run"], row["bucket"]) for row in found} == {
        (run, bucket) for run in ("first", "second") for bucket in (None, "hard", "medium")
    }
    everything = {(row["run"], row["kind"]): row for row in found if row["bucket"] is None}
    assert everything["first", "computation"]["is_ahead"] and everything["first", "computation"]["questions"] == 64
    assert not everything["second", "computation"]["is_ahead"]
    assert everything["first", "conclusion"]["lead"]["value"] is None, "its share does not change"
    assert leads(checkpoints, buckets, seed=0) == found
    assert set(leads(checkpoints[:3], seed=0)[0]["by_lag"]) == {"-1", "0", "1"} and leads(checkpoints[:2], seed=0) == []


def strengths_at(place, shares, rewards):
    """A checkpoint with the share of computation, that of answers given at once as its opposite, and still others."""
    of_kind = [shares[:, place], 1 - shares[:, place], np.full((2, QUESTIONS), 0.1), np.full((2, QUESTIONS), 0.1)]
    halves = dict(zip(("computation", "direct answer", "conclusion", "deliberation"), of_kind, strict=True))
    return Strengths(
        {kind: halves[kind].mean(0).tolist() for kind in KINDS},
        rewards[:, place].mean(0).tolist(),
        [9.0] * QUESTIONS,
        0.9,
        {kind: halves[kind].tolist() for kind in KINDS},
        rewards[:, place].tolist(),
    )
