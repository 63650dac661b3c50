"""`p2o train --check-only` and training say the same; what is not said is chosen by data and machine, and told."""

import json

import pytest
import yaml

from p2o.cli import main
from p2o.cli.arguments import parse
from p2o.cli.defaults import with_defaults
from p2o.cli.settings import converted

ROWS = [{"prompt": f"What is {n} + 1?", "solution": str(n + 1)} for n in range(20)]
CHATS = [{"prompt": [{"role": "user", "content": row["prompt"]}], "solution": row["solution"]} for row in ROWS]
ANSWERED = [{**row, "prompt": [*row["prompt"], {"role": "assistant", "content": row["solution"]}]} for row in CHATS]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """What a command line comes to: the exit code and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["train", *words])
        return code, capsys.readouterr().err

    return run


# What is in the data, in the configuration beside it, and of what the message speaks.
STOPS = {
    "no gold answers": ([{"prompt": row["prompt"]} for row in ROWS], {}, "needs gold answers"),
    "no column for a reward": (ROWS, {"reward_funcs": ["level_rewards:by_level"]}, "needs the column level"),
    "golds that differ": ([*ROWS, {**ROWS[0], "solution": "9"}], {}, "different solutions"),
    "golds of mathematics that cannot be read": ([{**row, "solution": "\\frac{"} for row in ROWS], {}, "unparsable"),
    "chats with the answer": (ANSWERED, {}, "--cut_last_answer"),
    "a role that the template refuses": (
        [{**row, "prompt": [{"role": "wizard", "content": "W"}, *row["prompt"]]} for row in CHATS],
        {"model_name_or_path": "model"},
        "no wizards here",
    ),
    "few questions": (ROWS[:3], {}, "3 questions, fewer than the 16"),
    "nothing to evaluate on": (ROWS, {"eval_strategy": "steps", "eval_steps": 2}, "no evaluation questions"),
    "no such split": (ROWS, {"dataset_test_split": "test"}, "no split 'test'"),
    "no such success reward": (ROWS, {"success_reward": "style"}, "style"),
    "weights for other rewards": (ROWS, {"reward_weights": [1.0, 2.0]}, "reward weights"),
    "a batch that does not divide": (ROWS, {"num_generations": 5}, "num_generations=5 does not divide"),
    "no room for prompts": (ROWS, {"max_completion_length": 2047}, "nothing left"),
    "no model": (ROWS, {"model_name_or_path": "/nowhere/model"}, "/nowhere/model"),
    "a model without weights": (ROWS, {"model_name_or_path": "empty"}, "is not a model directory"),
    "no such reward": (ROWS, {"reward_funcs": ["think_format"]}, "perhaps think_format_reward"),
    "half of an endpoint": (ROWS, {"reflection_base_url": "http://127.0.0.1:1/v1"}, "reflection_base_url"),
    "an unknown option": (ROWS, {"learning_rates": 1}, "learning_rates (perhaps learning_rate)"),
    "an unheeded option": (ROWS, {"dataset_size": 3}, "Options without effect: dataset_size"),
}


@pytest.mark.parametrize("case", STOPS)
def test_checking_says_what_training_says(tmp_path, said, case):
    rows, settings, message = STOPS[case]
    (tmp_path / "level_rewards.py").write_text(
        "def by_level(completions, level, **rest):\n    return [0.0] * len(level)\n"
    )
    if settings.get("model_name_or_path") in ("model", "empty"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from p2o.pico import model_path

        tokenizer = AutoTokenizer.from_pretrained(model_path())
        tokenizer.chat_template = (
            "{% if messages[0].role == 'wizard' %}{{ raise_exception('no wizards here') }}{% endif %}"
            + tokenizer.chat_template
        )
        tokenizer.save_pretrained(settings["model_name_or_path"])
        model = AutoModelForCausalLM.from_pretrained(model_path())
        if settings["model_name_or_path"] == "empty":
            model.config.save_pretrained("empty")
        else:
            model.save_pretrained("model")
    config = {
        "model_name_or_path": "pico",
        "dataset_name": write(tmp_path / "own.jsonl", rows),
        "num_generations": 4,
        "per_device_train_batch_size": 64,
        "max_completion_length": 16,
        "report_to": "none",
        **settings,
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    checked, trained = said("--check-only", "--config", "my.yaml"), said("--config", "my.yaml", "--output_dir", "run")
    assert checked == trained and checked[0] == 2, (checked, trained)
    assert message in checked[1] and checked[1].startswith("Error: ") and "Traceback" not in checked[1], checked[1]
    assert not list(tmp_path.glob("run*/*")), "training was not started"


def test_what_passes_the_check_trains(tmp_path, said):
    """Without a configuration, which once left the embedded world's reward and evaluation in place."""
    words = ["--dataset", write(tmp_path / "own.jsonl", CHATS), "--max_steps", "1", "--max_completion_length", "8"]
    assert said("--check-only", *words) == (0, "")
    code, errors = said(*words, "--output_dir", "run")
    assert code == 0, errors
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["reward_funcs"] == ["math"] and "eval_strategy" not in config and "output_dir" not in config


def test_a_named_set_brings_its_verifier(tmp_path, said, capsys):
    settings = {
        "model_name_or_path": "pico",
        "dataset_name": "gym:gcd@0",
        "dataset_size": 16,
        "max_steps": 1,
        "max_completion_length": 8,
        "num_generations": 4,
        "per_device_train_batch_size": "64",
        "learning_rate": "1e-6",
        "report_to": "none",
        "output_dir": "chosen",
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    code, errors = said("--config", "my.yaml")
    assert code == 0, errors
    kept = yaml.safe_load((tmp_path / "chosen" / "config.yaml").read_text())
    assert kept["reward_funcs"] == ["gym"] and kept["learning_rate"] == 1e-6
    code, errors = said("--config", "my.yaml")
    assert code == 2 and "chosen already holds a run" in errors
    code, errors = said("--config", "my.yaml", "--resume", "--num_generations", "8")
    assert code == 2 and "num_generations" in errors and "another configuration" in errors
    assert said("--config", "my.yaml", "--resume", "--num_generations", "8", "--check-only") == (code, errors)


@pytest.mark.parametrize(("name", "verifier"), [("gym:gcd", "gym"), ("pico:hard", "pico"), ("aime24", "math")])
def test_every_named_set_brings_its_own(tmp_path, name, verifier):
    (tmp_path / "my.yaml").write_text(f"model_name_or_path: pico\ndataset_name: {name}\n")
    parsed = parse(["--config", str(tmp_path / "my.yaml")], str(tmp_path / "run"))
    assert parsed.arguments.reward_funcs == parsed.config["reward_funcs"] == [verifier]
    assert any(verifier in line for line in parsed.default_messages)


@pytest.mark.parametrize(
    ("accelerator", "bfloat16", "settings", "chosen"),
    [
        (False, False, {}, {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}),
        (False, False, {"bf16": True, "gradient_checkpointing": True}, {"use_cpu": True}),
        (True, True, {}, {}),
        (True, True, {"use_cpu": True}, {"bf16": False, "gradient_checkpointing": False}),
        (True, False, {}, {"bf16": False, "fp16": True}),
        (True, False, {"fp16": False}, {}),
    ],
)
def test_precision_and_device_are_the_machines(monkeypatch, accelerator, bfloat16, settings, chosen):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerator)
    monkeypatch.setattr("torch.cuda.is_available", lambda: accelerator)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **kwargs: bfloat16)
    settings = {"dataset_name": "own.jsonl", "model_name_or_path": "m", "reward_funcs": ["math"], **settings}
    made, told = with_defaults(settings, has_file=True)
    assert made == {**settings, **chosen} and len(told) == bool(chosen)


def test_the_recipe_is_the_embedded_worlds():
    made, told = with_defaults({}, has_file=False)
    assert made["reward_funcs"] == ["pico"] and made["eval_strategy"] == "steps" and not told
    made, told = with_defaults({"dataset_name": "own.jsonl"}, has_file=False)
    assert made["reward_funcs"] == ["math"] and "eval_strategy" not in made and "feedback_func" not in made
    assert made["max_completion_length"] == 112 and any("pico" in line for line in told)
    made, _ = with_defaults({"dataset_name": "own.jsonl", "model_name_or_path": "m"}, has_file=False)
    assert "learning_rate" not in made and made["reward_funcs"] == ["math"]


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        ("1e-6", float, 1e-6),
        (3, float, 3.0),
        ("8", int, 8),
        (8.0, int, 8),
        ("false", bool, False),
        (1, bool, True),
        (240, str, "240"),
        ("math", list[str], ["math"]),
        (["1", 2], list[float] | None, [1.0, 2.0]),
        ("none", None | str | list[str], "none"),
        (["wandb"], None | str | list[str], ["wandb"]),
        ({"a": 1}, dict | str | None, {"a": 1}),
        (None, int | None, None),
        ("0.5", float | None, 0.5),
    ],
)
def test_values_become_what_the_option_takes(value, kind, wanted):
    found = converted(value, kind)
    assert found == wanted and type(found) is type(wanted)


def test_what_recipes_write_and_yaml_takes_for_something_else(tmp_path):
    (tmp_path / "my.yaml").write_text(
        "\ufeffmodel_name_or_path: pico\ndataset_name: a.jsonl\neval_strategy: no\nscale_rewards: false\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-7}\n"
    )
    training = parse(["--config", str(tmp_path / "my.yaml")], str(tmp_path / "run")).training
    assert (training.eval_strategy, training.scale_rewards) == ("no", "none")
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-7}


def test_unknown_options_of_the_command_line(said):
    code, errors = said("--lerning-rate", "1", "--output_dir", "run")
    assert (code, errors) == (2, "Error: Unknown option(s): --lerning_rate (perhaps learning_rate).\n")
    code, errors = said("--learning-rate", "fast", "--output_dir", "run")
    assert code == 2 and errors.count("\n") == 1 and "fast" in errors
    code, errors = said("--output_dir", "run", "stray")
    assert code == 2 and "stray" in errors
