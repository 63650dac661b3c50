"""P²O on vLLM's own server."""

import json
import urllib.request

import pytest
import torch

from either_engine import (  # noqa: F401 - tests that are run here, too
    assert_two_processes_are_told_what_they_asked,
    test_a_group_under_several_templates_is_one_call_with_a_completion_each,
    test_adapters_reach_the_engine_merged_and_stay_apart_in_the_trainer,
    test_nothing_cached_survives_a_change_of_weights,
    test_the_engine_never_samples_from_old_weights,
    test_the_engine_reflects_with_the_weights_of_who_reflects,
    world_trainer,
)
from kill_and_resume import kill_and_resume
from p2o.cli import main
from p2o.engines import vllm as engine
from p2o.pico import model_path, world
from p2o.templates import question_text
from test_processes import fsdp2, zero3
from trainers import (
    make,
    questions,
)
from vllm_server import vllm_server

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Options for a server that all tests share."""
    with vllm_server(tmp_path_factory.mktemp("server") / "log") as url:
        yield {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url, "vllm_server_timeout": 600}


@pytest.fixture
def mode(server):
    """Options for the engine, for tests that hold of either."""
    return server


def test_a_server_trains_with_a_prompt_phase(tmp_path, server):
    trainer = world_trainer(tmp_path, max_steps=9, save_strategy="no", **server)
    trainer.train()
    spent = trainer.p2o.ledger.rollouts
    assert spent["evolution_dev"] > 0 and spent["policy"] == 72
    name = "sampling/sampling_logp_difference/max"
    assert max(float(log[name]) for log in trainer.state.log_history if name in log) < 0.01


@pytest.mark.parametrize("shards", [None, fsdp2, zero3])
def test_two_processes_are_told_what_they_asked(tmp_path, server, shards):
    assert_two_processes_are_told_what_they_asked(tmp_path, server, shards)


def test_a_run_killed_in_a_prompt_phase_asks_every_question_once(tmp_path, server):
    (kill,) = kill_and_resume(1, 0, tmp_path, moments=("prompt",), server=server["vllm_server_base_url"])
    assert kill.phase == "prompt" and kill.identical


def test_vllms_server_reflects(server, tmp_path):
    """The embedded model behind an OpenAI-compatible endpoint writes an instruction."""
    make(tmp_path, **server).vllm_generation.sync_weights()
    records = "\n\n".join(f"Question: {question_text(p)}\nFeedback: wrong" for p in questions()["prompt"][:3])
    prompt = world.REFLECTION_PROMPT.replace("<curr_param>", "").replace("<side_info>", records)
    body = {"model": model_path(), "messages": [{"role": "user", "content": prompt}], "max_tokens": 48}
    request = urllib.request.Request(
        f"{server['vllm_server_base_url']}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        reply = json.load(answer)
    assert reply["choices"][0]["message"]["content"].strip()
    assert reply["usage"]["completion_tokens"] > 0


def test_a_frozen_model_is_the_same_behind_a_server(tmp_path, server):
    pytest.importorskip("litellm")
    url = server["vllm_server_base_url"]
    engine._wait_for(url, server["vllm_server_timeout"], "")
    command = ["--tasks", "pico:easy", "--limit", "12", "--n", "1", "--temperature", "0"]
    command += ["--max_completion_length", "112"]
    served = ["eval", f"openai/{model_path()}", *command, "--base_url", f"{url}/v1"]
    assert main([*served, "--output_dir", str(tmp_path / "served")]) == 0
    assert main(["eval", "pico", *command, "--output_dir", str(tmp_path / "here")]) == 0
    told = [
        [(t["completion"], t["reward"], t["completion_tokens"], t["truncated"]) for t in map(json.loads, lines)]
        for lines in ((tmp_path / d / "transcripts.jsonl").read_text().splitlines() for d in ("served", "here"))
    ]
    assert told[0] == told[1]
