"""The effect of training on questions of one bucket on those of each bucket: `p2o compare --difficulty`."""

import contextlib
import json

import pytest
import yaml

from p2o.cli import main
from p2o.difficulty.profile import read_profile
from p2o.reports.comparison import effects, effects_table
from small_run import write_config
from test_compare import forked_runs  # noqa: F401
from test_profile import there  # noqa: F401


def result(*cells):
    return {
        "cells": [
            {"method": arm, "bare_accuracy": {split: {"before": before, "after": after}}}
            for arm, split, before, after in cells
        ]
    }


def test_effects_are_means_of_changes_over_seeds():
    cells = [
        ("grpo on easy", "easy", 0.5, 0.75),
        ("grpo on easy", "easy", 0.5, 1.0),
        ("grpo on hard", "hard", 0.25, 0.0),
    ]
    found = effects(result(*cells, ("grpo on hard", "easy", 0.5, None)))
    easy, hard = found["grpo on easy"]["easy"], found["grpo on hard"]["hard"]
    assert easy["change"] == pytest.approx(0.375) and easy["half"] == pytest.approx(12.706 * 0.125, rel=1e-3)
    assert hard == {"change": -0.25, "half": None} and "easy" not in found["grpo on hard"]
    table = effects_table(effects(result(*cells)))
    assert [column.header for column in table.columns] == ["trained on", "easy", "hard"]
    assert [list(column.cells) for column in table.columns][1:] == [["+37.5 ± 158.8", "–"], ["–", "-25.0"]]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_each_bucket_is_trained_on_and_evaluated(there, tmp_path, capsys):  # noqa: F811
    data = {"dataset_name": "train.jsonl", "dataset_test_split": "train", "num_train_epochs": None}
    config = write_config(there, **data, max_completion_length=16)
    out = tmp_path / "compare"
    profile = str(there / "profile")
    command = ["compare", "--config", config, "--methods", "grpo", "--seeds", "0", "--steps", "1", "--jobs", "1"]
    command += ["--difficulty_profile", profile, "--eval-difficulty-profile", profile, "--save_strategy", "no"]
    with contextlib.chdir(there):
        assert main([*command, "--difficulty", "easy,all", "--output_dir", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Change of bare accuracy by training, in points" in said and "grpo on easy" in said
    counts = {bucket: read_profile(profile).buckets.count(bucket) for bucket in ("easy", "medium", "hard")}
    present = {bucket for bucket, count in counts.items() if count}
    compared = json.loads((out / "compare.json").read_text())
    assert compared["methods"] == ["grpo on easy", "grpo on all"] and not compared["missing"]
    for name, difficulty in (("easy", "easy"), ("all", None)):
        run = out / f"grpo-{name}-0"
        assert yaml.safe_load((run / "config.yaml").read_text()).get("difficulty") == difficulty
        accuracy = json.loads((run / "summary.json").read_text())["bare_accuracy"]
        assert accuracy.keys() == present
        changes = {b: {"change": pytest.approx(v["after"] - v["before"]), "half": None} for b, v in accuracy.items()}
        assert compared["effects"][f"grpo on {name}"] == changes
        answered = [json.loads(line)["dataset"] for line in (run / "answers-before.jsonl").read_text().splitlines()]
        assert {bucket: answered.count(bucket) for bucket in present} == {b: counts[b] for b in present}
    # What was trained on easy questions was asked only these.
    asked = {json.loads(line)["question"] for line in (out / "grpo-easy-0" / "samples.jsonl").read_text().splitlines()}
    easy = {
        q.text
        for q, b in zip(read_profile(profile).questions, read_profile(profile).buckets, strict=True)
        if b == "easy"
    }
    assert asked <= easy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--difficulty", "easy,all"], "--difficulty easy needs the --difficulty_profile"),
        (["--difficulty_profile", "p"], "goes with --difficulty easy,all"),
        (["--difficulty_profile", "p", "--difficulty", "middling"], "'middling' is not a bucket"),
        (["--difficulty_profile", "p", "--difficulty", "easy,easy"], "a part is named twice"),
        (["--difficulty_profile", "p", "--difficulty", "easy", "--sweep", "beta=0,1"], "does not go with --difficulty"),
    ],
)
def test_bad_parts_are_one_message(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("Error") == 1 and not (tmp_path / "runs").exists()


def test_parts_are_printed_as_commands(tmp_path, capsys):
    command = ["compare", "--methods", "grpo,p2o", "--seeds", "0", "--output_dir", str(tmp_path), "--print-commands"]
    assert main([*command, "--difficulty", "row:15,hard+easy,all", "--difficulty-profile", "p"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["grpo-row-15-0", "p2o-row-15-0", "grpo-hard+easy-0", "p2o-hard+easy-0", "grpo-all-0", "p2o-all-0"]
    assert [name in line for name, line in zip(names, lines, strict=True)] == [True] * 6
    assert "--difficulty_profile p --difficulty row:15" in lines[0] and "--difficulty hard,easy" in lines[2]
    assert "difficulty" not in lines[4]


def test_evaluation_by_bucket_needs_questions_of_the_profile(there, tmp_path, capsys):  # noqa: F811
    check = ["train", "--check-only", "--eval_difficulty_profile", str(there / "profile")]
    assert main([*check, "--config", write_config(there)]) == 2
    assert "eval_difficulty_profile needs evaluation questions" in capsys.readouterr().err
    assert main(check) == 2
    said = capsys.readouterr().err
    assert "is a profile of other questions: none of the 480 evaluation questions is in it" in said
