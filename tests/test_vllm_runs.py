"""Whole runs with an engine of their own, each in processes of its own."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import prose
from gpu import required
from p2o.completions import Sampling
from p2o.engines.frozen import transformers_model
from p2o.pico import world
from prose import INSTRUCTION, write_questions
from test_generation import checkpoint_with_settings
from test_smollm2 import needs_the_model as needs_smollm2

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow


def alone():
    """This process's environment without the rendezvous that a colocated engine has left in it."""
    inherited = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in inherited}


def test_requirements_of_the_cpu_build_are_whole_but_for_those_named():
    """One that was missing ended `p2o eval smollm2-135m` with a traceback, where vLLM was there first."""
    text = (Path(__file__).parent.parent / "requirements-vllm-cpu.txt").read_text()
    pinned = re.findall(r"^[\w.-]+==[^\s;]+", text, re.MULTILINE)
    left_out = {"torchvision", "torchaudio", "torchcodec", "triton"}
    found = required(pinned)
    assert found["vllm-cpu"] is not None
    assert {name for name, version in found.items() if version is None} == left_out


def test_the_command_line_trains_with_a_colocated_engine(config, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "p2o", "train", "--config", config(), "--output_dir", str(run)]
    command += ["--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_max_model_length", "1024"]
    code = "import sys; from p2o.cli import main; sys.exit(main(sys.argv[3:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *command[1:]], capture_output=True, text=True, timeout=900, env=alone()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rollouts"]["evolution_dev"] > 0 and summary["rollouts"]["policy"] > 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("sampling/sampling_logp_difference/mean" in line for line in metrics)


REAL = {
    "model_name_or_path": "smollm2-135m",
    "dataset_name": "gcd.jsonl",
    "reward_funcs": ["prose:says_it_in_french"],
    "feedback_func": "prose:feedback",
    "reflection_func": "prose:reflect",
    "evaluate_before_and_after": False,
    **{"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "bf16": True, "dtype": "bfloat16"},
    **{"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 512},
    **{"num_generations": 4, "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-4},
    **{"max_completion_length": 20, "temperature": 0.6, "evolution_budget": 12, "near_hard": True},
    **{"min_hard_questions": 2, "save_steps": 1, "logging_steps": 1, "report_to": "none"},
}


@needs_smollm2
def test_a_real_model_trains_killed_and_resumed(tmp_path):
    """SmolLM2 with LoRA in bfloat16: two bare steps, a prompt phase, a templated one, a kill, another one."""
    write_questions(tmp_path / "gcd.jsonl")
    shutil.copy(prose.__file__, tmp_path)
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(REAL))
    command = [sys.executable, "-m", "p2o", "train"]
    # Two starts of an engine that is compiled for one batch each would be most of the time.
    settings = {"env": {**alone(), "VLLM_USE_AOT_COMPILE": "0", "TORCHDYNAMO_DISABLE": "1"}, "cwd": tmp_path}
    run, log = tmp_path / "run", tmp_path / "log"
    with log.open("w") as out:
        begun = [*command, "--config", "real.yaml", "--output_dir", "run"]
        first = subprocess.Popen(begun, stdout=out, stderr=subprocess.STDOUT, **settings)
        while first.poll() is None and not (run / "checkpoint-3").exists():
            time.sleep(0.1)
        first.kill()
        first.wait()
    assert (run / "checkpoint-3").exists() and not (run / "summary.json").exists(), log.read_text()[-3000:]
    done = subprocess.run(
        [*command, "--resume", "--output_dir", "run"], capture_output=True, text=True, timeout=900, **settings
    )
    assert done.returncode == 0 and "resumed from step 3" in done.stdout, done.stderr[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["rollouts"]["policy"] == 32
    assert [template["text"] for template in summary["templates"]] == [INSTRUCTION]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    templated = {line["step"]: line["p2o/templated_rollouts"] for line in logged if "p2o/templated_rollouts" in line}
    assert templated == {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0}
    # Whether it moved depends on draws: a group has an advantage only where its rewards differ.
    assert any("lora_B" in name for name in load_file(run / "model" / "adapter_model.safetensors"))


SAMPLINGS = [(1, 1.0, 1.0, 0), (1, 0.7, 0.9, 20)]
FROZEN = """
import json, sys
import vllm
from p2o.completions import Sampling
from p2o.engines.frozen import vllm_model
from p2o.pico import world

class Watched(vllm.LLM):
    '''Tells the distribution that each first token is drawn from, by token.'''

    watches, drawn_from = False, []

    def __init__(self, **settings):
        super().__init__(**settings, logprobs_mode="processed_logprobs", max_logprobs=-1)

    def generate(self, prompts, parameters, **options):
        for one in parameters:
            one.logprobs = -1 if self.watches else None
        outputs = super().generate(prompts, parameters, **options)
        if self.watches:
            first = [output.outputs[0].logprobs[0] for output in outputs]
            self.drawn_from.append([{token: value.logprob for token, value in step.items()} for step in first])
        return outputs

vllm.LLM = Watched
prompts = [row["prompt"] for split in ("easy", "hard") for row in world.eval_dataset(per_split=16)[split]]
model = vllm_model(sys.argv[2], dtype="float32", max_model_length=1024)
def texts(prompts, temperature, seed):
    return [c.text for c in model.complete(prompts, sampling=Sampling(112, temperature), seed=seed)]
cut = model.complete(prompts, sampling=Sampling(2), seed=0)
found = {
    "greedy": texts(prompts, 0.0, 0),
    "sampled": [texts(prompts[16:], 1.0, seed) for seed in (0, 0, 1)],
    "one question": texts([prompts[16]] * 16, 1.0, 0),
    "cut": [[c.completion_tokens, c.truncated] for c in cut],
    "context": model.context_length,
    "many": len(model.complete(prompts * 24, sampling=Sampling(1), seed=0)),
}
Watched.watches = True
for settings in json.loads(sys.argv[3]):
    model.complete(prompts[:8], sampling=Sampling(*settings), seed=0)
found["drawn from"] = Watched.drawn_from
json.dump(found, open(sys.argv[1], "w"))
"""


def test_a_frozen_model_is_the_same_in_either_engine(tmp_path, monkeypatch):
    """What `p2o eval --use_vllm` samples from; in a process of its own, beside the trainer's engine."""
    out, path = tmp_path / "found.json", checkpoint_with_settings(tmp_path / "model")
    subprocess.run([sys.executable, "-c", FROZEN, str(out), path, json.dumps(SAMPLINGS)], check=True, timeout=280)
    found = json.loads(out.read_text())
    prompts = [row["prompt"] for split in ("easy", "hard") for row in world.eval_dataset(per_split=16)[split]]
    model = transformers_model(path, attn_implementation="eager")
    greedy = [c.text for c in model.complete(prompts, sampling=Sampling(112, 0.0), seed=0)]
    assert found["greedy"] == greedy
    first, again, other = found["sampled"]
    assert first == again and sum(a != b for a, b in zip(first, other, strict=True)) > 8
    # The streams are vLLM's own, not those of transformers, and one for each sample of a question.
    sampled = [c.text for c in model.complete(prompts[16:], sampling=Sampling(112), seed=0)]
    assert sum(a != b for a, b in zip(first, sampled, strict=True)) > 8
    assert len(set(found["one question"])) > 8
    assert found["many"] == 24 * len(prompts), "more tokens than the engine takes in at once"
    assert found["cut"] == [[2, True]] * len(prompts) and found["context"] == 1024
    # The same settings are the same distribution, whatever the checkpoint has in its generation_config.json.
    draw, drawn_from = torch.multinomial, []
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **kw: drawn_from.append(p) or draw(p, *args, **kw))
    for settings in SAMPLINGS:
        model.complete(prompts[:8], sampling=Sampling(*settings), seed=0)
    for ours, engines in zip(drawn_from, found["drawn from"], strict=True):
        theirs = torch.zeros_like(ours)
        for row, logprobs in enumerate(engines):
            for token, logprob in logprobs.items():
                theirs[row, int(token)] = math.exp(logprob)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-3)
