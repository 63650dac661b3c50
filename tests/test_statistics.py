"""The statistics of evaluation against brute force and known values."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from p2o.evaluation.statistics import average, interval, maj_at_k, mcnemar, paired_bootstrap, pass_at_k, wilson

samples = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=8)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(samples, st.sampled_from(["a", "b"]), st.data())
def test_maj_at_k_is_the_mean_over_all_votes(answers, gold, data):
    k = data.draw(st.integers(1, len(answers)))
    outcomes = []
    for drawn in itertools.combinations(answers, k):
        votes = Counter(answer for answer in drawn if answer is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        outcomes.append(winners.count(gold) / len(winners) if winners else 0.0)
    expected = sum(outcomes) / len(outcomes)
    assert maj_at_k(answers, [answer == gold for answer in answers], k) == pytest.approx(expected)


def test_votes_of_many_samples_are_counted_in_time():
    # 2^64 subsets would not be enumerated.
    answers = [str(i % 20) for i in range(64)]
    right = [answer in "01" for answer in answers]
    assert maj_at_k(answers, right, 1) == pytest.approx(sum(right) / 64)
    assert 0 < maj_at_k(answers, right, 32) < 1


@pytest.mark.parametrize("k", [0, 4])
def test_k_has_to_be_among_the_samples(k):
    with pytest.raises(ValueError, match="between 1 and the 3"):
        pass_at_k(3, 1, k)
    with pytest.raises(ValueError, match="between 1 and the 3"):
        maj_at_k(["a"] * 3, [True] * 3, k)


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=20))
def test_the_standard_error_is_that_of_question_means(rewards):
    mean, error = average(rewards)
    by_question = np.array(rewards).mean(axis=1)
    assert mean == pytest.approx(by_question.mean())
    assert error == pytest.approx(by_question.std(ddof=1) / math.sqrt(len(rewards)), abs=1e-9)


def test_samples_of_one_question_are_one_piece_of_evidence():
    assert average([[1.0] * 50, [0.0] * 50]) == (0.5, 0.5)
    assert math.isnan(average([[1.0, 0.0]])[1])


def test_the_bootstrap_covers_what_it_should():
    # Of 200 experiments with a true difference of 0.1, the 95 % interval holds it in about 190.
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = paired_bootstrap(rng.normal(0.1, 0.4, 60).tolist(), seed=seed, resamples=1000)
        held += found.low <= 0.1 <= found.high
    assert 180 <= held <= 198


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(0, 2**63 - 1))
def test_the_bootstrap_is_seeded_and_odd(differences, seed):
    found = paired_bootstrap(differences, seed=seed, resamples=200)
    assert found == paired_bootstrap(differences, seed=seed, resamples=200)
    mirrored = paired_bootstrap([-d for d in differences], seed=seed, resamples=200)
    assert (mirrored.mean, mirrored.p_value) == (pytest.approx(-found.mean), found.p_value)
    assert found.low <= found.high and 0 < found.p_value <= 1


def test_nothing_between_two_equal_models():
    assert paired_bootstrap([0.0] * 10, seed=0).p_value == 1
    assert paired_bootstrap([0.5] * 10, seed=0).p_value == pytest.approx(2 / 10_001)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_a_fair_coin(gained, lost):
    n, seen = gained + lost, abs(gained - lost)
    expected = sum(math.comb(n, i) for i in range(n + 1) if abs(n - 2 * i) >= seen) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "quantile"),
    # Two-sided 95 % quantiles of Student's t, as tables print them.
    [(2, 12.706), (3, 4.303), (12, 2.201), (13, 2.179), (31, 2.042), (121, 1.980)],
)
def test_the_interval_is_students(size, quantile):
    values = [float(i % 2) for i in range(size)]
    middle, half = interval(values)
    assert middle == pytest.approx(np.mean(values))
    assert half == pytest.approx(quantile * np.std(values, ddof=1) / math.sqrt(size), rel=1e-3)


def test_a_single_value_has_no_interval():
    assert interval([0.25])[0] == 0.25 and math.isnan(interval([0.25])[1])


@pytest.mark.parametrize(("solved", "count"), [(0, 24), (1, 24), (12, 24), (24, 24), (3, 7)])
def test_wilson_is_scipys(solved, count):
    expected = stats.binomtest(solved, count).proportion_ci(method="wilson")
    assert wilson(solved / count, count) == pytest.approx((expected.low, expected.high))
    assert wilson(0.0, 0) == (0.0, 1.0)
