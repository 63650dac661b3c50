"""Two processes, really started: they agree with each other, and with one process wherever that can be."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM

from torchrun import torchrun

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "processes.py"
RECIPES = Path(__file__).parent.parent / "recipes" / "accelerate"


def launch(out, processes, check=True, environment=(), **changes):
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
    done = torchrun(SCRIPT, str(out), json.dumps(changes), processes=processes, environment=environment)
    if not check:
        return done
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(processes)]


def alike(rank):
    """What all processes of a run agree on."""
    own = ("policy_tokens", "sampled", "learnt", "asked", "engine_gaps")
    return {name: value for name, value in rank.items() if name not in own}


@pytest.mark.parametrize(
    "changes",
    [{}, {"reused_rollouts_per_group": 1, "steps_per_generation": 2}, {"lora": True, "prompt_phase_batch_size": 1}],
)
def test_the_prompt_phase_does_not_depend_on_the_number_of_processes(tmp_path, changes):
    (one,) = launch(tmp_path / "one", 1, **changes)
    first, second = launch(tmp_path / "two", 2, **changes)
    assert alike(first) == alike(second), "both have the same weights, templates, assignment and ledger"
    assert one["templates"], "something was evolved"
    for name in ("hard_set", "templates", "assignment", "kept"):
        assert first[name] == one[name], name
    assert first["ledger"]["rollouts"] == one["ledger"]["rollouts"]
    for tokens in ("prompt_tokens", "completion_tokens"):
        for purpose in ("evolution_feedback", "evolution_dev", "reflection"):
            assert first["ledger"][tokens][purpose] == one["ledger"][tokens][purpose] > 0
    # Policy rollouts differ, since TRL seeds each process by itself; all of them are counted.
    assert first["ledger"]["completion_tokens"]["policy"] == first["policy_tokens"] + second["policy_tokens"]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_phase": False, "hint_column": "worked_solution"},
        {"template_questions": "all", "epoch_batches": 2, "context_distillation": False, "beta": 0.001},
    ],
    ids=["hints", "all questions"],
)
def test_hints_and_templates_for_all_questions_are_the_same_in_all_processes(tmp_path, changes):
    first, second = launch(tmp_path, 2, **changes)
    assert alike(first) == alike(second)
    assert first["templates"] and first["assignment"]


def test_a_process_whose_rollouts_are_all_kept_ones_goes_along(tmp_path):
    first, second = launch(tmp_path, 2, reused_rollouts_per_group=2, per_device_train_batch_size=2)
    assert alike(first) == alike(second)
    assert first["kept"] and 0 in first["asked"] + second["asked"]


def test_a_resumed_run_of_two_processes_ends_the_same(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 4}
    straight = launch(tmp_path, 2, **settings)
    last = max(int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("checkpoint-*"))
    resumed = launch(tmp_path, 2, **settings, resume=last - 3)
    for was, now in zip(straight, resumed, strict=True):
        assert alike(was) == alike(now)


def test_groups_replaced_by_dynamic_sampling_go_where_they_are_missed(tmp_path):
    # A group of four lies on two processes here.
    settings = {
        "dynamic_sampling_rounds": 2,
        "per_device_train_batch_size": 6,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    first, second = launch(tmp_path, 2, **settings)
    assert alike(first) == alike(second)
    moved = 0
    for rank, other in ((first, second), (second, first)):
        mine, theirs = ([row for batch in r["sampled"] for row in batch["rows"]] for r in (rank, other))
        learnt = [row for batch in rank["learnt"] for row in batch["rows"]]
        assert all(row in mine or row in theirs for row in learnt)
        moved += sum(row not in mine for row in learnt)
    assert moved, "some of what a process learns from, the other one has sampled"
    teaching = {}
    for name in ("sampled", "learnt"):
        groups = []
        for mine, theirs in zip(first[name], second[name], strict=True):
            rows = mine["rows"] + theirs["rows"]
            assert mine["items"] == theirs["items"] == sum(len(completion) for _, completion, _ in rows)
            groups += [any(any(a) for *_, a in rows[start : start + 4]) for start in range(0, len(rows), 4)]
        teaching[name] = sum(groups) / len(groups)
    assert teaching["learnt"] > teaching["sampled"]
    last = max(int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("checkpoint-*"))
    for was, now in zip((first, second), launch(tmp_path, 2, **settings, resume=last - 2), strict=True):
        assert alike(was) == alike(now)


def fsdp2(settings):
    told = {name.upper(): str(value).lower() for name, value in settings.fsdp_config.items()}
    state_dict_type = settings.fsdp_config["fsdp_state_dict_type"]
    return {**told, "ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": state_dict_type}, {}


def zero3(settings):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    names = {
        "zero_stage": "DEEPSPEED_ZERO_STAGE",
        "zero3_init_flag": "DEEPSPEED_ZERO3_INIT",
        "zero3_save_16bit_model": "DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
        "offload_optimizer_device": "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
        "offload_param_device": "DEEPSPEED_OFFLOAD_PARAM_DEVICE",
        "gradient_clipping": "GRADIENT_CLIPPING",
    }
    told = {f"ACCELERATE_{names[name]}": str(value).lower() for name, value in settings.deepspeed_config.items()}
    # It builds its collectives for a CPU when they are first used, with ninja.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**told, "ACCELERATE_USE_DEEPSPEED": "true", "PATH": path}, {"use_cpu": False}


def launched(recipe):
    """What `accelerate launch` tells processes of such a configuration, and options that a CPU needs."""
    return recipe(load_config_from_file(str(RECIPES / f"{recipe.__name__}.yaml")))


@pytest.mark.parametrize("recipe", [fsdp2, zero3])
def test_weights_sharded_as_the_recipe_says(tmp_path, recipe):
    """The same hard set and templates as in one process, and a checkpoint that anybody loads, and that goes on."""
    environment, needed = launched(recipe)
    settings = {"prompt_phase_batch_size": 1}  # so that both of them reflect
    (one,) = launch(tmp_path / "one", 1, **settings)
    settings = {**settings, **needed, "save_strategy": "steps", "save_steps": 2}
    first, second = launch(tmp_path / "two", 2, environment=environment.items(), **settings)
    assert alike(first) == alike(second)
    assert one["templates"]
    for name in ("hard_set", "templates", "assignment"):
        assert first[name] == one[name], name
    steps = sorted(int(path.name.rsplit("-", 1)[1]) for path in (tmp_path / "two").glob("checkpoint-*"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / f"checkpoint-{steps[-1]}", dtype="float32")
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert digest.hexdigest() == first["weights"]
    resumed = launch(tmp_path / "two", 2, environment=environment.items(), **settings, resume=steps[-2])
    for was, now in zip((first, second), resumed, strict=True):
        assert alike(was) == alike(now)


def test_a_reward_function_that_fails_in_one_process_loses_nothing(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 50}
    done = launch(tmp_path / "failed", 2, check=False, fail="policy", fail_at=6, **settings)
    assert "RuntimeError: the policy phase is too much for rank 1" in done.stderr
    assert "Everything up to step 6 is saved" in done.stderr
    resumed = launch(tmp_path / "failed", 2, resume=6, **settings)
    straight = launch(tmp_path / "straight", 2, **settings)
    for was, now in zip(straight, resumed, strict=True):
        assert alike(was) == alike(now)


@pytest.mark.parametrize("phase", ["policy", "prompt"])
def test_a_process_that_raises_ends_the_job_with_its_message(tmp_path, phase):
    done = launch(tmp_path, 2, check=False, fail=phase)
    assert done.returncode != 0
    assert f"RuntimeError: the {phase} phase is too much for rank 1" in done.stderr


def test_p2o_train_over_two_processes(tmp_path, config):
    path, out = (
        config(
            max_steps=None, num_train_epochs=2, dataset_test_split="train", save_strategy="no", reward_funcs=["exact"]
        ),
        tmp_path / "run",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "p2o"]
    options = ["train", "--config", path, "--ddp_backend", "gloo"]
    done = subprocess.run([*command, *options, "--output_dir", str(out)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("a new run") == 1, "one process speaks"
    summary = json.loads((out / "summary.json").read_text())
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in metrics if "loss" in record]
    assert steps == sorted(set(steps)) and steps[-1] == summary["steps"], "one process writes"
    assert summary["rollouts"]["policy"] == summary["steps"] * 16 * 2
    assert (out / "report.html").exists() and (out / "model" / "config.json").exists()


def test_launch_configurations_are_accelerates(tmp_path):
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert len(recipes) == 4
    for recipe in recipes:
        loaded = load_config_from_file(str(recipe))
        nodes = 2 if "two-nodes" in recipe.name else 1
        assert (loaded.num_machines, loaded.num_processes) == (nodes, 8 * nodes), recipe
        assert loaded.distributed_type.name in ("FSDP", "DEEPSPEED") and loaded.mixed_precision == "bf16"
