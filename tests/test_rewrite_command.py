"""`p2o rewrite`: whole commands, and training on what they write."""

import contextlib
import json
import re

import pytest
from datasets import Dataset

from endpoints import answer, serve
from p2o.cli import main
from p2o.evaluation.results import question_key
from p2o.pico import world
from small_run import write_config
from test_profile import lines, there  # noqa: F401

MATH = [
    {"question": "Tom has 3 apples and buys 5 more. How many has he?", "answer": "8"},
    {"question": "Say hello.", "answer": "hello"},
]


@pytest.fixture
def written(there, tmp_path, monkeypatch):  # noqa: F811
    """Runs the command on the profiled questions; its rewrites, rejections and summary."""

    def run(*options, wanted=0):
        directory = tmp_path / "rewrite"
        with contextlib.chdir(there):
            words = ["rewrite", "--dataset", "train.jsonl", "--reward_func", "pico", *options]
            assert main([*words, "--output_dir", str(directory)]) == wanted
        files = [directory / name for name in ("rewrites.jsonl", "rejected.jsonl")]
        return *map(lines, files), json.loads((directory / "rewrites.json").read_text())

    return run


def test_rewrites_are_written_with_where_they_come_from(there, written, capsys):  # noqa: F811
    data = lines(there / "train.jsonl")
    made, rejected, summary = written()
    assert summary["rewrites"] == len(made) > 60 and summary["questions"] == 16
    assert summary["verified_by"] == {"solver": len(made)}
    assert summary["with_rewrites"] == len({row["rewrite_of_row"] for row in made})
    assert sum(summary["rejected"].values()) == len(rejected)
    for row in made:
        source = data[row["rewrite_of_row"]]
        assert (
            row["rewrite_of_key"] == question_key(source) and row["rewrite_asked_for"] in source["prompt"][0]["content"]
        )
    columns = Dataset.from_list(made)
    for answer_text, reward in (("Answer: {}", 1), ("Answer: {}1", 0)):
        texts = [answer_text.format(row["solution"]) for row in made]
        assert set(world.accuracy_reward(texts, columns["family"], columns["entry"])) == {reward}
    said = capsys.readouterr().out
    assert f"{len(made)} rewrites of" in said and "Train on them: p2o train --dataset" in said
    again = written()
    assert again[0] == made and again[1] == rejected


def test_only_what_a_profile_selects_is_rewritten(there, written, capsys):  # noqa: F811
    profile = json.loads((there / "profile" / "profile.json").read_text())
    hard = {q["row"] for q in profile["questions"] if q["bucket"] == "hard"}
    made, _, summary = written("--difficulty_profile", "profile", "--difficulty", "hard")
    assert {row["rewrite_of_row"] for row in made} <= hard and summary["questions"] == len(hard) < 16


def test_the_file_is_trained_on(there, written, tmp_path):  # noqa: F811
    made, *_ = written("--wordings", "1", "--difficulty_profile", "profile", "--difficulty", "row:0")
    assert {row["rewrite_of_row"] for row in made} == {0}
    changes = {"dataset_name": str(tmp_path / "rewrite" / "rewrites.jsonl"), "prompt_phase": False, "max_steps": 1}
    config = write_config(there, **changes, evaluate_before_and_after=False, max_completion_length=8)
    assert main(["train", "--config", config, "--output_dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rollouts"]["policy"] == 16


@pytest.fixture
def math_data(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MATH))
    columns = ["--prompt-column", "question", "--solution-column", "answer"]
    return ["rewrite", "--dataset", str(path), *columns, "--verifier", "exact"]


def test_a_served_model_says_what_is_determined(math_data, tmp_path, capsys):
    """It answers 3 to everything, which is right of one number in two."""
    out = ["--output_dir", str(tmp_path / "out"), "--n", "4", "--conflicts", "first"]
    with serve(answer("It is \\boxed{3}.")) as server:
        served = ["--model", "openai/m", "--base_url", server.url]
        assert main([*math_data, *out, *served]) == 0
        asked = len(server.requests)
        assert main([*math_data, *out, *served]) == 0
        assert len(server.requests) == asked == 16, "answers are not asked for again"
    made, rejected = lines(tmp_path / "out" / "rewrites.jsonl"), lines(tmp_path / "out" / "rejected.jsonl")
    assert {(row["solution"], row["rewrite_verified_by"], row["rewrite_agreement"]) for row in made} == {
        ("3", "model", 1.0)
    }
    assert len(made) == 2
    assert [r["reason"] for r in rejected] == [
        "too few of the model's answers are the number",
        "too few of the model's answers are the number",
        "there is no number in it",
    ]


def test_without_a_verdict_a_rewrite_is_only_kept_when_asked_for(math_data, tmp_path, capsys):
    assert main([*math_data, "--output_dir", str(tmp_path / "a")]) == 1
    said = capsys.readouterr().out
    assert "0 rewrites of 0 of 2 questions" in said and "name a --model whose answers tell" in said
    assert (tmp_path / "a" / "rewrites.jsonl").read_text() == ""
    assert main([*math_data, "--output_dir", str(tmp_path / "b"), "--keep_unverified", "true"]) == 0
    assert {row["rewrite_verified_by"] for row in lines(tmp_path / "b" / "rewrites.jsonl")} == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--wordings", "3"], "wordings=3 must be from 1 to 2"),
        (["--agreement", "0"], "agreement=0.0 must be in (0, 1]"),
        (["--difficulty", "hard"], "go together"),
        (["--difficulty", "odd", "--difficulty_profile", "p"], "'odd' is not a bucket"),
        (
            ["--difficulty", "hard", "--difficulty_profile", "no/such.json"],
            "Cannot read the difficulty profile no/such",
        ),
        (["--tasks", "pico:hard"], "Name the questions: either --tasks"),
        (["--model"], "expected one argument"),
        (["pico"], "Not an option nor the value of one: pico"),
        (["--wording", "1"], "perhaps wordings"),
    ],
)
def test_bad_options_are_one_message(math_data, tmp_path, capsys, options, message):
    assert main([*math_data, "--output_dir", str(tmp_path / "x"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("Error") == 1 and not (tmp_path / "x").exists()


def test_two_sets_at_once_and_a_foreign_profile_are_refused(there, math_data, tmp_path, capsys):  # noqa: F811
    assert main(["rewrite", "--tasks", "pico:hard,pico:easy", "--output_dir", str(tmp_path / "x")]) == 2
    assert "takes one set of questions at a time" in capsys.readouterr().err
    foreign = ["--difficulty_profile", str(there / "profile"), "--difficulty", "hard"]
    assert main([*math_data, *foreign, "--output_dir", str(tmp_path / "x")]) == 2
    assert re.search(r"is a profile of other questions: (\d+) of the \1 selected", capsys.readouterr().err)
