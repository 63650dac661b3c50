"""`p2o profile` on the embedded world, and training on what it selects: whole commands, in small."""

import contextlib
import json
import re
from pathlib import Path

import pytest

from p2o import P2OConfig, P2OTrainer
from p2o.cli import main
from p2o.difficulty.profile import read_profile
from p2o.evaluation.results import question_key
from p2o.evaluation.statistics import wilson
from p2o.pico import model_path, world
from small_run import write_config

PROFILE = ["profile", "pico", "--n", "4", "--questions_per_batch", "8"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(directory, *options, data):
    """Where the data lies, since samples depend on the name of the questions as it is given."""
    command = [*PROFILE, "--dataset", data.name, "--reward_func", "pico", *options, "--output_dir", str(directory)]
    with contextlib.chdir(data.parent):
        assert main(command) == 0
    return json.loads((directory / "profile.json").read_text())


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A directory with training data of 8 hard and 8 easy questions, and their profile."""
    directory = tmp_path_factory.mktemp("profile")
    world.train_dataset(hard=8, easy=8).to_json(directory / "train.jsonl")
    run(directory / "profile", data=directory / "train.jsonl")
    return directory


def test_a_profile_says_what_it_found(there, capsys):
    profile = json.loads((there / "profile" / "profile.json").read_text())
    answers = lines(there / "profile" / "transcripts.jsonl")
    data = lines(there / "train.jsonl")
    assert len(profile["questions"]) == len(data) == 16 and len(answers) == 64
    for row, question in enumerate(profile["questions"]):
        own = [answer for answer in answers if answer["question"] == row]
        assert question["row"] == row and question["scored"] == question["rollouts"] == 4
        assert question["key"] == question_key(data[row])
        assert question["successes"] == sum(answer["reward"] for answer in own)
        assert question["pass_rate"] == question["successes"] / 4
        assert [question["low"], question["high"]] == list(wilson(question["pass_rate"], 4))
        assert question["mean_length"] == sum(answer["completion_tokens"] for answer in own) / 4
        rate = question["pass_rate"]
        assert question["bucket"] == ("hard" if rate == 0 else "easy" if rate >= 0.75 else "medium")
    buckets = [question["bucket"] for question in profile["questions"]]
    assert buckets[:8].count("hard") >= 6 and buckets[8:].count("easy") >= 4
    summary = json.loads((there / "profile" / "difficulty.json").read_text())
    assert {name: bucket["questions"] for name, bucket in summary["buckets"].items()} == {
        name: buckets.count(name) for name in ("hard", "medium", "easy", "unscored")
    }
    assert set(summary["groups"]) == {"4", "8", "16", "32"} and summary["groups"]["4"]["is_unbiased"]
    assert summary["groups"]["4"]["collapsed"] == pytest.approx(
        sum(question["successes"] in (0, 4) for question in profile["questions"]) / 16
    )
    assert "</svg>" in (there / "profile" / "difficulty.svg").read_text()


def test_it_is_said_again_without_sampling_and_cut_off_elsewhere(there, tmp_path, capsys):
    for file in (there / "profile").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    run(tmp_path, data=there / "train.jsonl")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    said = capsys.readouterr().out
    assert "answers: 64/64" in said and "Recommended num_generations" in said and "--difficulty medium" in said
    # Interrupted in the middle of its answers, it comes to the same.
    (tmp_path / "transcripts.jsonl").write_bytes(before["transcripts.jsonl"][:5000])
    (tmp_path / "profile.json").unlink()
    run(tmp_path, data=there / "train.jsonl")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    moved = run(tmp_path, "--easy_at_least", "1", "--hard_at_most", "0.25", data=there / "train.jsonl")
    assert (tmp_path / "transcripts.jsonl").read_bytes() == before["transcripts.jsonl"]
    assert {q["bucket"] for q in moved["questions"] if q["successes"] == 1} <= {"hard"}
    assert {q["bucket"] for q in moved["questions"] if q["successes"] == 3} <= {"medium"}


def nobody_knows(completions, **columns):
    """None for the first question's completions, and for every other one of the next two; else 0.5."""
    return [None if place < 4 or place % 2 else 0.5 for place in range(len(completions))]


def test_what_nobody_could_score_is_not_hard(there, tmp_path, capsys):
    name = f"{__name__}:nobody_knows"
    made = run(tmp_path / "a", "--reward_func", name, "--limit", "3", data=there / "train.jsonl")
    first, second, third = made["questions"]
    assert (first["bucket"], first["pass_rate"], first["scored"]) == ("unscored", None, 0)
    assert (second["scored"], second["bucket"]) == (2, "easy") and third["scored"] == 2
    above = run(
        tmp_path / "b", "--reward_func", name, "--limit", "3", "--success_threshold", "0.5", data=there / "train.jsonl"
    )
    assert [question["bucket"] for question in above["questions"]] == ["unscored", "hard", "hard"]
    alone = run(tmp_path / "c", "--reward_func", name, "--limit", "1", data=there / "train.jsonl")
    assert [question["bucket"] for question in alone["questions"]] == ["unscored"]
    said = capsys.readouterr().out
    assert "No rollout could be scored" in said
    assert "--difficulty medium" not in said, "there are no such questions"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "1"], "--n 1: one rollout of a question tells nothing about a group"),
        (["--hard_at_most", "0.8"], "The cut-offs hard_at_most=0.8 and easy_at_least=0.75 are out of order"),
        (["--easy_at_least", "1.5"], "are out of order: choose them so that 0 ≤ hard_at_most"),
        (["--evolution_budget", "huge"], "evolution_budget='huge' is neither a number of rollouts nor one of light"),
        (["--temperature", "0"], "At --temperature 0 all answers to a question are the same"),
        (["--tasks", "pico:hard"], "Name the questions: either --tasks"),
        (["--easy_from", "1"], "easy_from"),
    ],
)
def test_bad_options_are_one_message(there, tmp_path, capsys, options, message):
    command = [*PROFILE, "--dataset", str(there / "train.jsonl"), "--output_dir", str(tmp_path / "x"), *options]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("Error") == 1 and not (tmp_path / "x").exists()


def test_a_named_set_is_profiled_as_it_is_trained_on(tmp_path, capsys):
    common = ["--output_dir", str(tmp_path / "p"), "--n", "2", "--max_completion_length", "8"]
    assert main(["profile", "pico", "--dataset", "gym:gcd", "--limit", "16", *common]) == 0
    check = ["train", "--check-only", "--dataset", "gym:gcd", "--difficulty_profile", str(tmp_path / "p")]
    assert main([*check, "--dataset_size", "16", "--difficulty", "hard,medium,easy"]) == 0
    # Of reasoning-gym, --tasks are the questions that are held out.
    assert main(["profile", "pico", "--tasks", "gym:gcd", "--limit", "16", *common]) == 2
    assert "holds results made with other settings: questions was" in capsys.readouterr().err
    assert main(["profile", "pico", "--dataset", "gym:gcd", "--verifier", "math", *common]) == 2
    assert "gym:gcd brings its own" in capsys.readouterr().err


# -- training ----------------------------------------------------------------------------------------------------------


def trainer(there, tmp_path, difficulty, rewards=world.accuracy_reward, **options):
    data = {"difficulty_profile": str(there / "profile"), "difficulty": difficulty}
    sizes = {"num_generations": 4, "per_device_train_batch_size": 16, "max_completion_length": 8}
    machine = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    args = P2OConfig(str(tmp_path), **{**data, **sizes, **machine, **options})
    return P2OTrainer(model_path(), rewards, args, world.train_dataset(hard=8, easy=8))


def texts(dataset):
    return [row["prompt"][0]["content"] for row in dataset]


def test_a_bucket_is_trained_on_whole_and_in_order(there, tmp_path, caplog):
    profile = read_profile(there / "profile")
    every = texts(world.train_dataset(hard=8, easy=8))
    easy = [every[row] for row, bucket in enumerate(profile.buckets) if bucket == "easy"]
    both = trainer(there, tmp_path, "easy,hard")
    assert texts(both.train_dataset) == [t for t, b in zip(every, profile.buckets, strict=True) if b != "medium"]
    assert texts(trainer(there, tmp_path, "0.75-1").train_dataset) == easy
    assert f"difficulty=0.75-1: {len(easy)} of 16 training questions." in caplog.text
    assert "max_completion_length 112 in the profile, 8 in training" in caplog.text
    assert "model" not in next(record.message for record in caplog.records if "harder or easier" in record.message)
    # What is the same questions is the same run, but for the name of the option.
    fingerprints = [one.fingerprint() for one in (trainer(there, tmp_path, "easy"), trainer(there, tmp_path, "0.75-1"))]
    assert {name for name, value in fingerprints[0].items() if value != fingerprints[1][name]} == {"difficulty"}


def test_a_row_is_repeated_until_a_batch_is_full(there, tmp_path, caplog):
    every = texts(world.train_dataset(hard=8, easy=8))
    alone = trainer(there, tmp_path, "row:15")
    assert texts(alone.train_dataset) == [every[15]] * 4
    assert "difficulty=row:15: 1 of 16 training questions, 4 times each, so that a batch of 4 is full." in caplog.text
    three = trainer(there, tmp_path, "row:3, row:5, row:0")
    assert texts(three.train_dataset) == [every[0], every[3], every[5]] * 2


def another_reward(completions, **columns):
    return [float(len(completion[0]["content"]) % 2) for completion in completions]


@pytest.mark.parametrize(
    ("difficulty", "rewards", "options", "message"),
    [
        ("easy", another_reward, {}, "was judged by another reward: "),
        ("easy", [world.accuracy_reward, another_reward], {}, "training decides success by the sum of 2. Name the one"),
        ("easy", world.accuracy_reward, {"success_threshold": 0.5}, "counts a reward above 0 as success, training one"),
        ("row:16", world.accuracy_reward, {}, "the profile has no row 16; its 16 questions are rows 0 to 15"),
        ("0.3-0.4", world.accuracy_reward, {}, "no question of the profile is selected. It has "),
        ("middling", world.accuracy_reward, {}, "'middling' is not a bucket (hard, medium, easy)"),
        ("easy", world.accuracy_reward, {"difficulty_profile": None}, "go together: give both"),
        (
            "easy",
            world.accuracy_reward,
            {"difficulty_profile": "no/such.json"},
            "Cannot read the difficulty profile no/",
        ),
        (None, world.accuracy_reward, {}, "go together: give both"),
    ],
)
def test_what_cannot_be_selected_is_refused(there, tmp_path, difficulty, rewards, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(there, tmp_path, difficulty, rewards, **options)


def test_the_reward_that_decides_success_is_compared(there, tmp_path):
    rewards = [world.accuracy_reward, another_reward]
    assert len(trainer(there, tmp_path, "hard", rewards, success_reward="accuracy_reward").train_dataset) >= 6


def test_a_profile_of_other_questions_is_refused(there, tmp_path):
    args = trainer(there, tmp_path, "hard").args
    others = world.train_dataset(seed=1, hard=8, easy=8)
    with pytest.raises(
        ValueError, match=r"is a profile of other questions: (\d+) of the \1 selected are not in the training"
    ):
        P2OTrainer(model_path(), world.accuracy_reward, args, others)


def test_training_questions_that_were_not_profiled_are_left_out(there, tmp_path, caplog):
    args = trainer(there, tmp_path, "hard").args
    more = world.train_dataset(hard=12, easy=8)
    found = P2OTrainer(model_path(), world.accuracy_reward, args, more).train_dataset
    assert set(texts(found)) <= set(texts(world.train_dataset(hard=8, easy=8)))
    assert "4 of 20 training questions are not in the profile, and left out." in caplog.text


def test_a_run_records_its_selection_and_refuses_to_go_on_with_another(there, tmp_path, capsys):
    small = {"num_train_epochs": 1, "prompt_phase": False, "save_strategy": "steps", "save_steps": 1}
    config = write_config(there, **small, evaluate_before_and_after=False, max_completion_length=8)
    chosen = ["--difficulty_profile", str(there / "profile"), "--difficulty", "hard"]
    directory = ["--output_dir", str(tmp_path / "run")]
    assert main(["train", "--config", config, *chosen, "--max_steps", "1", *directory]) == 0
    recorded = (tmp_path / "run" / "config.yaml").read_text()
    assert "difficulty: hard\n" in recorded and f"difficulty_profile: {there / 'profile'}\n" in recorded
    (tmp_path / "run" / "summary.json").unlink()
    assert main(["train", "--resume", *directory, "--max_steps", "2", "--difficulty", "easy"]) == 2
    said = capsys.readouterr().err
    assert "difficulty was 'hard', is 'easy'" in said and "prompts was" in said and "its difficulty profile" in said
    # Another place for the same profile makes no other run.
    moved = tmp_path / "moved.json"
    moved.write_bytes((Path(there) / "profile" / "profile.json").read_bytes())
    assert main(["train", "--resume", *directory, "--max_steps", "2", "--difficulty-profile", str(moved)]) == 0
