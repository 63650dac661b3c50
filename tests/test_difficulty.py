"""Buckets, groups to expect, charges, profiles and selections: what is pure of the difficulty room."""

import dataclasses
import itertools
import json
import math
import random
import re
from collections import Counter
from functools import partial
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from p2o.difficulty.buckets import BUCKETS, EASY, HARD, MEDIUM, UNSCORED, Cutoffs
from p2o.difficulty.charge import epoch_charge
from p2o.difficulty.groups import GRID, SIZES, WORTH, GroupForecast, fitted_rates, forecast, recommended_size
from p2o.difficulty.profile import Profile, ProfileError, RewardIdentity, profiled, read_profile, reward_identity
from p2o.difficulty.selection import parse_selection
from p2o.difficulty.summary import summarise
from p2o.evaluation.results import questions_digest
from p2o.evaluation.types import Sample
from p2o.prompt_phase.budget import metric_call_budget, split_hard_set
from p2o.prompt_phase.hard_samples import HardSamples, Outcome
from p2o.prompt_phase.options import BudgetOptions
from p2o.seeding import derive_seed

SOURCE = Path(__file__).parent.parent / "src" / "p2o" / "difficulty"

outcomes = st.integers(0, 12).flatmap(lambda n: st.builds(Outcome, st.integers(0, n), st.just(n)))
scored = outcomes.filter(lambda outcome: outcome.rollouts)


# -- buckets -----------------------------------------------------------------------------------------------------------


@given(outcomes, st.floats(0, 1), st.floats(0, 1))
def test_each_question_has_one_bucket_and_success_makes_it_no_harder(outcome, one, other):
    low, high = sorted((one, other))
    if low == high:
        return
    cutoffs = Cutoffs(low, high)
    order = [HARD, MEDIUM, EASY]
    bucket = cutoffs.bucket(outcome)
    assert (bucket == UNSCORED) == (outcome.rollouts == 0)
    if outcome.successes < outcome.rollouts:
        better = cutoffs.bucket(Outcome(outcome.successes + 1, outcome.rollouts))
        assert order.index(better) >= order.index(bucket)


def test_by_default_hard_is_none_of_k_and_easy_six_of_eight():
    found = [Cutoffs().bucket(Outcome(successes, 8)) for successes in range(9)]
    assert found == [HARD] + [MEDIUM] * 5 + [EASY] * 3
    assert Cutoffs(hard_at_most=1 / 8).bucket(Outcome(1, 8)) == HARD
    assert Cutoffs().bucket(Outcome(0, 0)) == UNSCORED


@pytest.mark.parametrize("pair", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.0, 1.1), (math.nan, 0.5)])
def test_cut_offs_out_of_order_are_refused(pair):
    with pytest.raises(ValueError, match="out of order: choose them so that 0 ≤ hard_at_most < easy_at_least ≤ 1"):
        Cutoffs(*pair)


# -- groups ------------------------------------------------------------------------------------------------------------


@given(st.lists(scored, min_size=1, max_size=6), st.integers(2, 12))
def test_groups_within_the_rollouts_are_counted_over_all_draws(given_outcomes, size):
    """Against every way to draw so many of each question's rollouts."""
    if size > min(outcome.rollouts for outcome in given_outcomes):
        return
    found = forecast(given_outcomes, [size])[size]
    drawn = [
        Counter(map(sum, itertools.combinations([1] * o.successes + [0] * (o.rollouts - o.successes), size)))
        for o in given_outcomes
    ]
    for value, successes in ((found.none, 0), (found.one, 1), (found.every, size)):
        assert value == pytest.approx(np.mean([count[successes] / count.total() for count in drawn]))
    assert found.is_unbiased and found.collapsed == pytest.approx(found.none + found.every)


@settings(max_examples=40, deadline=None)
@given(st.lists(outcomes, min_size=1, max_size=8))
def test_larger_groups_never_collapse_more_often(given_outcomes):
    found = forecast(given_outcomes, range(2, 41))
    if not any(outcome.rollouts for outcome in given_outcomes):
        assert found == {}
        return
    shares = [found[size].collapsed for size in range(2, 41)]
    assert shares == sorted(shares, reverse=True) and all(-1e-12 <= share <= 1 + 1e-9 for share in shares)
    for group in found.values():
        assert 0 <= group.none <= group.hard(near_hard=True) <= 1 + 1e-9
        assert group.hard(near_hard=False) == group.none


def test_an_unbiased_estimate_has_the_right_mean():
    """Over many profiles of questions whose pass rates are known."""
    generator = np.random.default_rng(derive_seed(0, "test", "collapse"))
    rates = np.array([0.0, 0.02, 0.1, 0.4, 0.9, 1.0])
    estimates = []
    for _ in range(3000):
        found = forecast([Outcome(int(s), 8) for s in generator.binomial(8, rates)], [4])
        estimates.append(found[4].collapsed)
    truth = np.mean(rates**4 + (1 - rates) ** 4)
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / math.sqrt(len(estimates)))


@pytest.mark.parametrize("kind", ["beta", "u-shaped", "hopeless or even"])
def test_beyond_the_rollouts_a_model_estimates_what_will_collapse(kind):
    generator = np.random.default_rng(derive_seed(1, "test", kind))
    rates = {
        "beta": generator.beta(2.0, 3.0, 2000),
        "u-shaped": generator.beta(0.3, 0.9, 2000),
        "hopeless or even": np.where(np.arange(2000) % 2, 0.5, 0.0),
    }[kind]
    found = forecast([Outcome(int(s), 8) for s in generator.binomial(8, rates)], [16, 32])
    for size, group in found.items():
        assert group.collapsed == pytest.approx(np.mean(rates**size + (1 - rates) ** size), abs=0.04)
        assert not group.is_unbiased


def test_hopeless_questions_are_expected_to_stay_hopeless():
    found = forecast([Outcome(0, 8)] * 200, [8, 64])
    assert found[8].collapsed == 1 and found[64].collapsed > 0.97
    # While a single one of them proves little.
    assert forecast([Outcome(0, 8)], [64])[64].collapsed < 0.97


@given(st.dictionaries(scored, st.integers(1, 50), min_size=1, max_size=6))
def test_the_fitted_distribution_explains_the_outcomes_better_than_none_does(counts):
    def likelihood(weights):
        rates = [stats.binom.pmf(outcome.successes, outcome.rollouts, GRID) @ weights for outcome in counts]
        return np.dot(list(counts.values()), np.log(rates))

    weights = fitted_rates(counts)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert likelihood(weights) >= likelihood(np.full(len(GRID), 1 / len(GRID))) - 1e-9


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two rollouts; asked for 1"):
        forecast([Outcome(1, 8)], [1, 4])


@settings(max_examples=30, deadline=None)
@given(st.lists(outcomes, min_size=1, max_size=8))
def test_the_recommended_size_follows_its_rule(given_outcomes):
    size = recommended_size(given_outcomes)
    if not any(outcome.rollouts for outcome in given_outcomes):
        assert size is None
        return
    found = forecast(given_outcomes, [*SIZES, 64])
    for smaller in SIZES:
        saved = found[smaller].collapsed - found[2 * smaller].collapsed
        assert (saved >= WORTH) if smaller < size else True
    assert size == SIZES[-1] or found[size].collapsed - found[2 * size].collapsed < WORTH


def test_what_never_or_always_succeeds_gains_nothing_from_larger_groups():
    assert recommended_size([Outcome(0, 8)] * 100) == 4
    assert recommended_size([Outcome(0, 8), Outcome(8, 8)] * 50) == 4
    # A tenth of the rollouts succeed: four of them show it in a third of the groups, sixteen in four fifths.
    generator = np.random.default_rng(derive_seed(2, "test", "recommended"))
    assert recommended_size([Outcome(int(s), 32) for s in generator.binomial(32, 0.1, 300)]) in (16, 32)


# -- charge ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from(["light", "heavy_4", "240", "1"]), st.integers(2, 200))
def test_the_charge_is_that_of_the_prompt_phase(questions, share, budget, least):
    options = BudgetOptions(evolution_budget=budget, min_hard_questions=least, near_hard=False)
    charge = epoch_charge(questions, questions, GroupForecast(8, share, 0.0, 0.0, share, True), options)
    assert charge.policy == 8 * questions and charge.hard == round(questions * share)
    assert charge.total == charge.policy + charge.prompt + charge.reflections
    if charge.hard < least:
        assert charge.prompt == charge.reflections == 0
        return
    dev = split_hard_set(range(charge.hard), max_dev=300, rng=random.Random(0))[1]
    wanted = metric_call_budget(options.evolution_calls, len(dev))
    assert charge.prompt == (wanted if wanted > len(dev) else 0)
    assert charge.reflections * 2 * options.feedback_minibatch_size <= charge.prompt


def test_hard_is_what_mining_counts_as_hard():
    """The expected hard set of groups as large as the rollouts is the hard set of these rollouts."""
    found = [Outcome(s, 8) for s in (0, 0, 1, 2, 5, 8)]
    for near_hard in (False, True):
        mined = HardSamples(near_hard=near_hard)
        for row, outcome in enumerate(found):
            mined.record(row, [1.0] * outcome.successes + [0.0] * (8 - outcome.successes))
        expected = forecast(found, [8])[8].hard(near_hard=near_hard)
        assert expected * len(found) == pytest.approx(len(mined.hard_set()))


# -- profile and selection ---------------------------------------------------------------------------------------------


def made_profile(rows=((0, 8), (0, 8), (3, 8), (8, 8), (0, 0)), n=8):
    """Questions with these successes among so many scored of n rollouts."""
    data = [{"prompt": f"What is {i}+{i}?", "solution": str(2 * i)} for i in range(len(rows))]
    samples = [
        [
            Sample("t", i, s, "", None, float(s < right) if s < judged else None, "", 9, 10 + s, s == n - 1)
            for s in range(n)
        ]
        for i, (right, judged) in enumerate(rows)
    ]
    questions = profiled("t", data, samples, 0.0, 0)
    fixed = {"n": n, "questions": {"t": questions_digest([question.key for question in questions])}}
    reward = RewardIdentity("p2o.verifiers.rewards:math")
    return Profile("m", {**fixed, "sampling": {}}, 0.0, {"t": reward}, Cutoffs(), tuple(questions))


profiles = st.lists(
    st.integers(0, 8).flatmap(lambda judged: st.tuples(st.integers(0, judged), st.just(judged))), min_size=1, max_size=9
).map(made_profile)


@settings(max_examples=15, deadline=None)
@given(profiles)
def test_a_profile_is_read_back_as_it_was_written(tmp_path_factory, profile):
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    file.write_text(json.dumps(profile.to_dict()))
    assert read_profile(file) == read_profile(file.parent) == profile
    summary = summarise(profile, BudgetOptions())
    assert sum(bucket["questions"] for bucket in summary["buckets"].values()) == len(profile.questions)
    assert sum(bucket["share"] for bucket in summary["buckets"].values()) == pytest.approx(1)
    json.dumps(summary, allow_nan=False)
    for question in profile.to_dict()["questions"]:
        assert question["bucket"] in (*BUCKETS, UNSCORED)
        if question["pass_rate"] is None:
            assert question["bucket"] == UNSCORED and (question["low"], question["high"]) == (0, 1)
        else:
            assert 0 <= question["low"] <= question["pass_rate"] <= question["high"] <= 1


def test_an_unscored_question_is_neither_hard_nor_counted():
    profile = made_profile()
    assert profile.buckets == (HARD, HARD, MEDIUM, EASY, UNSCORED)
    summary = summarise(profile, BudgetOptions())
    assert summary["unscored_rollouts"] == 8 and summary["pass_rate"] == pytest.approx((3 / 8 + 1) / 4)
    assert summary["groups"]["8"]["none"] == pytest.approx(2 / 4)
    assert summary["groups"]["8"]["charge"]["policy"] == 5 * 8  # it is sampled all the same
    nothing = summarise(made_profile([(0, 0)]), BudgetOptions())
    assert nothing["groups"] == {} and nothing["pass_rate"] is nothing["recommended_num_generations"] is None


@given(profiles, st.floats(0, 1), st.floats(0, 1))
def test_a_range_selects_the_pass_rates_in_it(profile, one, other):
    low, high = (round(value, 3) for value in sorted((one, other)))
    wanted = [q.row for q in profile.questions if q.pass_rate is not None and low <= q.pass_rate <= high]
    selection = parse_selection(f"{low:.3f}-{high:.3f}")
    if wanted:
        assert selection.rows_of(profile) == wanted
    else:
        with pytest.raises(ProfileError, match="no question of the profile is selected"):
            selection.rows_of(profile)


@given(profiles, st.sets(st.sampled_from(BUCKETS), min_size=1))
def test_buckets_select_what_is_in_one_of_them(profile, names):
    wanted = [row for row, bucket in enumerate(profile.buckets) if bucket in names]
    if wanted:
        assert parse_selection(", ".join(sorted(names))).rows_of(profile) == wanted


def test_parts_of_a_selection_add_up():
    profile = made_profile()
    assert parse_selection("row:4,Medium").rows_of(profile) == [2, 4]
    assert parse_selection("row:0,0.9-1").rows_of(profile) == [0, 3]
    assert parse_selection(".3-0.4").rows_of(profile) == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a bucket (hard, medium, easy), a range of pass rates such as 0.1-0.6, or a row such as row:17"),
        ("middle", "'middle' is not a bucket"),
        ("easy;hard", "several are separated by commas"),
        ("0.6-0.1", "the range 0.6-0.1 must satisfy 0 ≤ low ≤ high ≤ 1"),
        ("10-60", "the range 10-60 must satisfy"),
        ("row:-1", "'row:-1' is not a bucket"),
        ("unscored", "no reward is known for unscored questions"),
    ],
)
def test_a_selection_that_is_none_says_what_is(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_selection(text)


def test_an_empty_bucket_says_where_the_questions_are():
    with pytest.raises(ProfileError) as raised:
        parse_selection("medium").rows_of(made_profile([(0, 8)] * 3))
    assert "It has 3 hard, 0 medium, 0 easy, 0 unscored (hard: none succeeds" in str(raised.value)
    assert "--easy_at_least" in str(raised.value)
    with pytest.raises(ProfileError, match="the profile has no row 5; its 5 questions are rows 0 to 4"):
        parse_selection("row:5").rows_of(made_profile())


def damaged(change):
    data = made_profile().to_dict()
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: Expecting property name"),
        ("[]", "is not a difficulty profile. `p2o profile MODEL --dataset …` writes profile.json"),
        ('{"settings": {}}', "is not a difficulty profile"),
        (damaged(lambda data: data.update(version=2)), "is of version 2, this release reads 1"),
        (damaged(lambda data: data.pop("rewards")), "is damaged: KeyError: 'rewards'"),
        (damaged(lambda data: data["questions"].pop()), "not those that its fingerprint (5 questions "),
        (damaged(lambda data: data["questions"][1].update(key="x")), "not those that its fingerprint"),
        (damaged(lambda data: data["questions"][1].update(successes=9)), "9 successes in 8 scored of 8 rollouts"),
        (damaged(lambda data: data["questions"][1].update(bucket=EASY)), "question 1 is written down as easy"),
        (damaged(lambda data: data["questions"][1].update(row=3)), "question 1 is row 3"),
        (damaged(lambda data: data["cutoffs"].update(easy_at_least=0.0)), "The cut-offs hard_at_most=0 and"),
        (json.dumps(made_profile([(1, 1)], n=1).to_dict()), "one rollout of each question (k = 1)"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, message):
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(ProfileError, match=re.escape(message)) as raised:
        read_profile(file)
    assert str(file) in str(raised.value)


def test_a_missing_file_says_what_writes_one(tmp_path):
    with pytest.raises(ProfileError, match=r"Cannot read .*none.json: No such file.*`p2o profile MODEL"):
        read_profile(tmp_path / "none.json")


def some_reward(completions, **columns):
    return [0.0 for _ in completions]


def test_a_reward_is_recognised_by_its_name_and_its_lines():
    found = reward_identity(some_reward)
    assert found.function == f"{__name__}:some_reward" and re.fullmatch("[0-9a-f]{16}", found.source)
    assert reward_identity(partial(some_reward)) == found
    edited = {"__name__": __name__}
    exec("def some_reward(completions, **columns):\n    return [1.0]", edited)
    assert reward_identity(edited["some_reward"]) == dataclasses.replace(found, source=None)
    assert reward_identity("my/reward-model") == RewardIdentity("my/reward-model")


def test_one_minus_pass_at_k_is_the_share_without_success():
    for right in range(9):
        assert forecast([Outcome(right, 8)], [4])[4].none == comb(8 - right, 4) / comb(8, 4)
