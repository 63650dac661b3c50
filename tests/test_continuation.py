"""What has to be the same for a checkpoint to be continued, and what may change. Pure."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_utils import IntervalStrategy
from trl import GRPOConfig

from p2o import P2OConfig
from p2o.continuation import (
    CHANGEABLE,
    CHANGEABLE_FACTS,
    REQUIRED,
    WITHOUT_INFLUENCE,
    Facts,
    compare,
    division_problem,
    learning_rate_factor,
    passes_done,
    plain,
    settings,
)

OPTIONS = {field.name for field in dataclasses.fields(P2OConfig)}
FACTS = {field.name for field in dataclasses.fields(Facts)}
values = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b"]) | st.lists(st.integers(0, 2))
SOME = "temperature beta seed reward_functions learning_rate save_steps max_steps processes device versions".split()
fingerprints = st.fixed_dictionaries({name: values for name in SOME})


def test_every_option_is_decided_about():
    """An option of a later TRL or transformers, or of ours, is required to be equal until somebody decides."""
    lists = [set(REQUIRED), set(CHANGEABLE), set(WITHOUT_INFLUENCE)]
    undecided = OPTIONS - set().union(*lists)
    assert not undecided, f"put into one of the lists of p2o.continuation: {sorted(undecided)}"
    assert not set().union(*lists) - OPTIONS, "no longer an option"
    assert sum(map(len, lists)) == len(OPTIONS), "in two lists"
    assert set(CHANGEABLE_FACTS) < FACTS and not FACTS & OPTIONS


def test_an_option_of_a_subclass_is_required_to_be_equal(tmp_path):
    Own = dataclasses.make_dataclass("Own", [("margin", float, 1.0)], bases=(P2OConfig,))
    was, now = (settings(Own(str(tmp_path), use_cpu=True, bf16=False, margin=m)) for m in (1.0, 2.0))
    assert [change.name for change in compare(was, now).refused] == ["margin"]


@pytest.mark.parametrize(
    "name",
    "temperature top_p top_k beta epsilon scale_rewards generation_kwargs repetition_penalty seed".split()
    + "reward_functions reward_weights_in_force max_prompt_length_in_force".split()
    + "gold_answers prompts start_weights architecture".split(),
)
def test_what_decides_the_course_is_refused(name):
    comparison = compare({name: 1}, {name: 2})
    assert [str(change) for change in comparison.refused] == [f"{name} was 1, is 2"]
    assert comparison.refusal().startswith(f"{name} was 1, is 2. To continue it, ") and not comparison.told


@pytest.mark.parametrize(
    "name", "learning_rate max_steps num_train_epochs save_steps logging_steps eval_steps processes device".split()
)
def test_what_people_change_on_purpose_goes_on_with_one_line(name):
    comparison = compare({name: 1}, {name: 2})
    assert not comparison.refused
    notice = comparison.notice()
    assert f"no longer exactly the one that was begun: {name} was 1, is 2 (" in notice and "\n" not in notice


@given(fingerprints, fingerprints)
def test_every_difference_is_named_once_and_equality_says_nothing(was, now):
    comparison = compare(was, now)
    changed = {name for name in was if was[name] != now[name]}
    refused, told = ({change.name for change in part} for part in (comparison.refused, comparison.told))
    assert refused | told == changed and not refused & told and not comparison.unknown
    assert told <= CHANGEABLE.keys() | CHANGEABLE_FACTS.keys()
    if refused:
        message = comparison.refusal()
        assert all(f"{name} was {was[name]!r}, is {now[name]!r}" in message for name in refused)
    assert (comparison.notice() is None) == (not told)
    same = compare(was, dict(was))
    assert same.refused == same.told == same.unknown == () and same.notice() is None
    assert not compare(was, now, without=changed).refused


@given(st.sets(st.sampled_from(sorted(REQUIRED)), max_size=4), st.sets(st.sampled_from(sorted(REQUIRED)), max_size=4))
def test_what_only_one_release_records_is_said(early, late):
    comparison = compare(dict.fromkeys(early, 1), dict.fromkeys(late, 1))
    assert not comparison.refused and set(comparison.unknown) == early ^ late
    assert (comparison.notice() is None) == (early == late)


def test_settings_are_plain_values_and_have_no_secret(tmp_path):
    args = P2OConfig(
        str(tmp_path), use_cpu=True, bf16=False, hub_token="hf_secret", generation_kwargs={"stop": {"b", "a"}}
    )
    found = settings(args)
    assert found == plain(found) and found["generation_kwargs"] == {"stop": ["a", "b"]}
    assert "hf_secret" not in str(found) and "output_dir" not in found
    # Of what JSON has no form for, nothing that differs from process to process.
    assert plain([object(), SimpleNamespace(to_dict=lambda: {1: (2,)})]) == ["object", {"1": [2]}]


leaves = (
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.sampled_from([object(), IntervalStrategy.NO])
)
keys = st.integers() | st.text(max_size=2)
odd = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(keys, inner), max_leaves=4
)


@given(odd)
def test_plain_values_are_what_a_checkpoint_gives_back(value):
    found = plain(value)
    assert json.loads(json.dumps(found)) == found == plain(found)


def test_the_lists_cover_what_trl_alone_has_too():
    inherited = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert inherited <= REQUIRED | CHANGEABLE.keys() | WITHOUT_INFLUENCE


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.integers(0, 6), st.data())
def test_within_a_generation_batch_its_division_cannot_change(iterations, before, factor, batches, data):
    was = {"steps_per_generation": before * factor, "num_iterations": iterations, "processes": 1}
    now = {"steps_per_generation": before, "num_iterations": iterations, "processes": factor}
    done = batches * before * factor * iterations
    assert division_problem(done, was, now) is None
    assert passes_done(done, was, now) == batches * before * iterations
    assert passes_done(passes_done(done, was, now), now, was) == done
    within = done + data.draw(st.integers(0, before * factor * iterations - 1))
    problem = division_problem(within, was, now)
    assert (problem is None) == (within == done or factor == 1)
    assert problem is None or f"processes was 1, is {factor}" in problem
    assert division_problem(within, was, was) is None


def test_the_rates_of_a_checkpoint_follow_the_option():
    assert learning_rate_factor({"learning_rate": 1e-3}, {"learning_rate": 5e-4}) == 0.5
    assert learning_rate_factor({}, {"learning_rate": 5e-4}) == 1.0
    assert learning_rate_factor({"learning_rate": 0.0}, {"learning_rate": 5e-4}) == 1.0
