"""The alarm for shortcuts: when it is raised, what it survives, and a run that is made to take one."""

import json
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.difficulty.shortcut import ShortcutWatch
from p2o.pico import world
from p2o.policy_phase.lengths import Course
from p2o.reports.page import EVENTS, render
from p2o.reports.run_data import RunData
from p2o.state import P2OState, uncounted_on_failure
from p2o.templates import apply_template
from trainers import make

batches = st.lists(
    st.tuples(
        st.floats(1, 100),
        st.lists(st.floats(0, 5) | st.just(float("nan")), max_size=3),
        st.none() | st.floats(0, 1),
    ),
    max_size=30,
)


def means(values):
    """Of the first ten and the last ten; None where there are not ten."""
    return (fmean(values[:10]), fmean(values[-10:])) if len(values) >= 10 else None


@given(batches, st.floats(1.1, 5), st.floats(0, 0.5))
def test_the_watch_agrees_with_the_definition(seen, factor, margin):
    watch, lengths = ShortcutWatch(), Course()
    known = {"lengths": [], "entropies": [], "successes": []}
    for length, passes, success in seen:
        watch, lengths = watch.with_passes(passes), lengths.followed_by(length)
        watch = watch.after(lengths, success, factor, margin)
        finite = [value for value in passes if value == value]
        known["lengths"].append(length)
        known["entropies"] += [fmean(finite)] if finite else []
        known["successes"] += [] if success is None else [success]
        was_and_is = {name: means(values) for name, values in known.items()}
        shrunk = all(
            was_and_is[name] is not None
            and was_and_is[name][0]
            and was_and_is[name][1] / was_and_is[name][0] <= 1 / factor
            for name in ("lengths", "entropies")
        )
        fell = was_and_is["successes"] is not None and was_and_is["successes"][1] - was_and_is["successes"][0] < -margin
        assert watch.suspected == (shrunk and not fell)


def live(state, lengths, entropies, successes):
    """A run whose generation batches are these; checkpointed and resumed after each of its steps."""
    for length, entropy, success in zip(lengths, entropies, successes, strict=True):
        state.watch_length(length, factor=20.0)
        state.watch_shortcut(success, factor=2.0, margin=0.05)
        state.end_step(False, {"entropy": [9.0, entropy]}, 1)
        state = P2OState.from_dict(json.loads(json.dumps(state.to_dict())))
    return state


LONG, SHORT = [500.0] * 12, [50.0] * 15
SURE, UNSURE = [0.1] * 15, [0.9] * 12


def test_it_is_told_once_also_by_a_run_that_is_resumed(caplog):
    state = live(P2OState(), LONG + SHORT, UNSURE + SURE, [0.5] * 12 + [0.9] * 15)
    assert state.events == {"shortcut_suspected": 1} and state.events.keys() <= EVENTS.keys()
    assert caplog.text.count("The policy may be taking a shortcut: responses (") == 1
    assert state.metrics(near_hard=True)["p2o/entropy_ratio"] == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("lengths", "entropies", "successes"),
    [
        (LONG + SHORT, UNSURE * 2 + UNSURE[:3], [0.5] * 27),  # short, and no surer
        (LONG * 2 + LONG[:3], UNSURE + SURE, [0.5] * 27),  # sure, and no shorter: what training is for
        (LONG + SHORT, UNSURE + SURE, [0.5] * 12 + [0.1] * 15),  # a collapse that nothing pays for
        (LONG + SHORT[:2], UNSURE + SURE[:2], [0.5] * 14),  # too early to say
    ],
)
def test_it_is_not_raised_by_half_of_it(lengths, entropies, successes):
    assert live(P2OState(), lengths, entropies, successes).events == {}


def test_the_report_shows_it_beside_the_curves():
    logs = {"step": 1, "epoch": 1, "loss": 0.1, "entropy": 0.5, "p2o/events/shortcut_suspected": 1}
    page = render([RunData(Path("run"), metrics=[logs])])
    assert f"{EVENTS['shortcut_suspected']}</td><td>1" in page and "Mean entropy of a sampled token, in nats" in page


def test_a_checkpoint_of_an_earlier_release_has_no_watch():
    data = P2OState().to_dict()
    del data["shortcut"]
    assert P2OState.from_dict(json.loads(json.dumps(data))) == P2OState()


def test_a_failed_batch_leaves_no_trace():
    state = P2OState()

    def fail():
        with uncounted_on_failure(state, {}):
            state.watch_length(5.0, factor=3.0)
            state.watch_shortcut(0.5, factor=2.0, margin=0.05)
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    assert state == P2OState()


# -- a run that takes one ----------------------------------------------------------------------------------------------


def bare_answer(completions, **columns):
    """1 for a right answer without any work."""
    right = world.accuracy_reward(completions, **columns)
    return [r * (not c[0]["content"].startswith("Work")) for c, r in zip(completions, right, strict=True)]


def trained(tmp_path, reward):
    """A run on one question, which asks for a worked solution."""
    easy = world.train_dataset(hard=0, easy=12)
    row = next(r for r in easy if r["family"] == "complex_arithmetic")
    row["prompt"] = apply_template(row["prompt"], "Form the four partial products.")
    batch = {"num_generations": 16, "per_device_train_batch_size": 16, "max_completion_length": 48}
    run = {"prompt_phase": False, "max_steps": 36, "learning_rate": 2e-4}
    trainer = make(tmp_path, reward=reward, data=easy.from_list([row]), **run, **batch)
    trainer.train()
    return trainer


def test_a_run_that_takes_a_shortcut_is_told_before_accuracy_falls(tmp_path, caplog):
    trainer = trained(tmp_path, bare_answer)
    assert trainer.p2o.events == {"shortcut_suspected": 1}
    assert "The policy may be taking a shortcut" in caplog.text
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["p2o/length_ratio"] <= 0.5 and last["p2o/entropy_ratio"] <= 0.5 and last["p2o/rollout_success"] > 0.8
    assert last["p2o/events/shortcut_suspected"] == 1


def test_a_healthy_run_of_the_same_question_is_not_suspected(tmp_path):
    trainer = trained(tmp_path, world.accuracy_reward)
    assert trainer.p2o.events == {} and trainer.p2o.lengths.ratio > 0.5
