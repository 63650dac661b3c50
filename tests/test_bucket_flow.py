"""How questions move between easy, medium and hard over the epochs of a run, and the report's picture of it."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.cli import main
from p2o.prompt_phase.hard_samples import HardSamples, Outcome
from p2o.reports.figures import BUCKET_COLOURS, flow_figure
from p2o.reports.page import render
from p2o.reports.run_data import Mined, RunData, bucket_transitions, load_run
from small_run import write_config, write_data
from test_profile import lines

outcome = st.integers(0, 4).map(lambda successes: Outcome(successes, 4))
epochs = st.lists(
    st.tuples(st.dictionaries(st.integers(0, 9), outcome, max_size=10), st.frozensets(st.integers(0, 9))), max_size=5
)


@given(epochs)
def test_every_question_is_in_one_state_of_every_epoch(found):
    run = RunData(None, mined={epoch: Mined(epoch, *one) for epoch, one in enumerate(found)})
    flows, questions = bucket_transitions(run), {question for outcomes, _ in found for question in outcomes}
    into, out_of = Counter(), Counter()
    for source, target, count in flows:
        assert count > 0 and int(target.rpartition(" · ")[2]) == int(source.rpartition(" · ")[2]) + 1
        out_of[source] += count
        into[target] += count
    for epoch, (outcomes, templated) in enumerate(found):
        for counts, present in ((out_of, epoch < len(found) - 1), (into, epoch > 0)):
            states = {state: n for state, n in counts.items() if state.endswith(f" · {epoch + 1}")}
            assert sum(states.values()) == (len(questions) if present else 0)
            if present:
                hard = sum(not o.successes and q not in templated for q, o in outcomes.items())
                assert states.get(f"hard · {epoch + 1}", 0) == hard
                assert states.get(f"not mined · {epoch + 1}", 0) == len(questions - outcomes.keys())
    figure = flow_figure(flows, BUCKET_COLOURS)
    assert (figure is None) == (not flows)
    if figure:
        assert sum(figure.data[0].link.value) == len(questions) * (len(found) - 1)


def test_an_epoch_that_is_missing_joins_nothing():
    run = RunData(None, mined={0: Mined(0, {1: Outcome(0, 4)}, frozenset()), 2: Mined(2, {}, frozenset())})
    assert bucket_transitions(run) == []


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run of GRPO over three epochs."""
    where = tmp_path_factory.mktemp("flow")
    write_data(where)
    changes = {"method": "grpo", "num_train_epochs": 3, "max_completion_length": 24, "save_strategy": "steps"}
    config = write_config(where, **changes, save_steps=3, evaluate_before_and_after=False)
    assert main(["train", "--config", config, "--output_dir", str(where / "run")]) == 0
    return where / "run"


def test_a_run_records_what_mining_found_in_every_epoch(directory):
    run = load_run(directory)
    assert sorted(run.mined) == [0, 1, 2] and all(len(mined.outcomes) == 16 for mined in run.mined.values())
    hard = {
        int(log["epoch"] - 1e-6): log["p2o/hard_set"] for log in lines(directory / "metrics.jsonl") if "loss" in log
    }
    for epoch in (0, 1):
        assert len(HardSamples(True, run.mined[epoch].outcomes).hard_set()) == hard[epoch + 1]
    flows = bucket_transitions(run)
    assert sum(count for *_, count in flows) == 2 * 16
    page = render([run])
    assert "Easy, medium, hard: run" in page and "transitions of all questions between buckets" in page
    source, target, count = flows[0]
    assert f"<th>{source}</th><td>{target}</td><td>{count}" in re.sub(r" (?:scope|class)=\"[^\"]*\"", "", page)


def test_a_resumed_run_records_the_same(directory, tmp_path):
    before = {file.name: file.read_text() for file in (directory / "outcomes").iterdir()}
    for file in ("summary.json", "outcomes/epoch-001.json", "outcomes/epoch-002.json"):
        (directory / file).unlink()
    for step in (9, 12):
        checkpoint = directory / f"checkpoint-{step}"
        if checkpoint.exists():
            checkpoint.rename(tmp_path / checkpoint.name)
    assert main(["train", "--resume", "--output_dir", str(directory)]) == 0
    assert {file.name: file.read_text() for file in (directory / "outcomes").iterdir()} == before


@pytest.mark.parametrize("content", ["[]", '{"epoch": 0}', "{", '{"epoch": 0, "outcomes": {"a": 1}, "templated": []}'])
def test_a_damaged_record_is_named(directory, tmp_path, content):
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "outcomes" / "epoch-000.json").write_text(content)
    assert "outcomes/epoch-000.json is damaged (" in " ".join(load_run(tmp_path).problems)
    assert json.loads((directory / "outcomes" / "epoch-000.json").read_text())["epoch"] == 0
