"""Every recipe, as the command line reads it: validated, and run with a tiny model and tiny data in its place."""

import json
import math
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset

from endpoints import serve, well
from p2o.cli import main
from p2o.tasks import NAMED_SETS
from random_model import save_random_model

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
# Their models are tiny already; their questions are made by the package, here one batch of them an epoch.
EMBEDDED = {
    "embedded-world.yaml": {"dataset_name": "pico:hard", "dataset_size": 16, "max_completion_length": 48},
    "embedded-tools.yaml": {
        "num_generations": 4,
        "per_device_train_batch_size": 192,
        "max_dev_questions": 8,
        "evaluate_before_and_after": False,
    },
}
# Sizes alone: a machine without a GPU, and perhaps without vLLM; short texts, a prompt phase after one batch.
SMALL = {
    "use_cpu": True,
    "use_vllm": find_spec("vllm") is not None,
    "vllm_enable_sleep_mode": False,
    "max_completion_length": 8,
    "max_steps": 3,
    "min_hard_questions": 2,
    "evolution_budget": 24,
    "reflection_max_tokens": 8,
    "num_threads": 1,
}


def settings(recipe):
    return yaml.safe_load(recipe.read_text())


def words(options):
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Options that put a model of Qwen3's architecture and sets in the hub's layout in the place of the real ones."""
    directory = tmp_path_factory.mktemp("tiny")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    save_random_model(directory / "model", max_position_embeddings=40_960, **shape, **heads)

    def replaced(recipe):
        wanted = settings(recipe)
        (named,) = (n for n in NAMED_SETS if n.name == wanted["dataset_name"])
        data = directory / named.name
        if not data.exists():
            data.mkdir()
            row = {"difficulty": 8.0, "topic": "Mathematics -> Algebra"}
            rows = [{named.prompt: f"What is {i}+1?", named.solution: str(i + 1), **row} for i in range(named.rows)]
            Dataset.from_list(rows).to_json(data / f"{named.split}.jsonl")
        per_batch = wanted["per_device_train_batch_size"] * wanted["steps_per_generation"] // wanted["num_generations"]
        return {"model_name_or_path": directory / "model", "dataset_path": data, "dataset_size": per_batch, **SMALL}

    return replaced


def check(run):
    """Three steps with a prompt phase between them, and a model, are there."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [m["loss"] for m in metrics if "loss" in m]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["rollouts"]["evolution_dev"] > 0 and summary["rollouts"]["reflection"] > 0
    assert "### What P²O" in (run / "model" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_runs(tmp_path, monkeypatch, capfd, tiny, recipe):
    run = tmp_path / "run"
    command = ["train", "--config", str(recipe), "--output_dir", str(run)]
    if recipe.name in EMBEDDED:
        small = {**EMBEDDED[recipe.name], "eval_strategy": "no"}
        small |= {name: SMALL[name] for name in ("max_steps", "evolution_budget", "num_threads")}
        assert main([*command, *words(small)]) == 0, capfd.readouterr().err
        return check(run)
    with serve(well) as server:
        options = tiny(recipe)
        if "/" in settings(recipe).get("reflection_model", ""):
            monkeypatch.setenv("MOONSHOT_API_KEY", "a-key-for-nobody")
            options["reflection_base_url"] = server.url
        assert main([*command, *words(options)]) == 0, capfd.readouterr().err
        check(run)
        assert bool(server.requests) == ("teacher" in recipe.name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_renamed_option_is_an_error(tmp_path, capsys, recipe):
    (tmp_path / "renamed.yaml").write_text(recipe.read_text().replace("num_generations:", "generations_number:"))
    assert main(["train", "--config", str(tmp_path / "renamed.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert "Unknown option(s)" in capsys.readouterr().err


def test_the_papers_recipes_differ_in_what_their_names_say():
    paper = {recipe.stem: settings(recipe) for recipe in RECIPES if recipe.stem.startswith("paper-")}
    assert len(paper) == 4
    reflection = {"reflection_model", "reflection_max_tokens", "reflection_token_limit", "prompt_phase_batch_size"}
    for data in ("deepscaler", "deepmath"):
        own, teacher = paper[f"paper-self-{data}"], paper[f"paper-teacher-{data}"]
        assert own["dataset_name"] == teacher["dataset_name"] == f"{data}-5k"
        assert {name for name in own | teacher if own.get(name) != teacher.get(name)} == reflection
    for who in ("self", "teacher"):
        one, other = paper[f"paper-{who}-deepscaler"], paper[f"paper-{who}-deepmath"]
        assert {name for name in one | other if one.get(name) != other.get(name)} == {"dataset_name"}
    for recipe in paper.values():
        per_update = 8 * recipe["per_device_train_batch_size"]
        assert per_update * recipe["steps_per_generation"] == 128 * recipe["num_generations"]
        assert per_update * recipe["gradient_accumulation_steps"] == 64 * recipe["num_generations"]


@pytest.mark.parametrize("file", [*RECIPES, *(ROOT / "recipes").glob("*/*.yaml"), ROOT / "recipes" / "README.md"])
def test_files_that_are_referred_to_exist(file):
    for name in re.findall(r"recipes/[\w./-]+\.yaml|docs/[\w-]+\.md", file.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda file: file.name)
def test_launch_configurations_say_how_accelerate_takes_them(file):
    said = re.sub(r"\\?\n#", "", file.read_text())
    (command,) = re.findall(r"accelerate launch (.*?--output_dir \S+)", said)
    arguments = launch_command_parser().parse_args(command.split())
    assert arguments.config_file == str(file.relative_to(ROOT)) and arguments.module
    assert (arguments.training_script, arguments.training_script_args[0]) == ("p2o", "train")


@pytest.mark.slow
def test_a_recipe_as_accelerate_launches_it(tmp_path, tiny):
    recipe = ROOT / "recipes" / "paper-self-deepscaler.yaml"
    said = re.sub(r"\\?\n#", "", recipe.read_text())
    (command,) = re.findall(r"accelerate launch .*?--output_dir \S+", said)
    launcher, _, rest = command.partition(" -m p2o ")
    assert rest, "the command as the recipe has it"
    # Two processes on a CPU in place of eight with a GPU each, which accelerate then does not shard.
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        *launcher.split()[1:],
        "--num_processes",
        "2",
    ]
    command += ["-m", "p2o", *rest.split()[:-1], str(tmp_path / "run"), *words(tiny(recipe)), "--ddp_backend", "gloo"]
    command += ["--per_device_train_batch_size", "2", "--use_vllm", "false"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    check(tmp_path / "run")
