"""What surrounds vLLM and needs none: errors at the start, and what P²O relies on in TRL. `test_vllm_*.py` have one."""

import http.server
import json
import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from p2o import P2OConfig
from p2o.cli.train import train
from p2o.engines import vllm as engine
from p2o.engines.mismatch import mismatch_metrics
from p2o.engines.vllm_worker import EXTENSION
from trainers import load, options


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM that says of itself what a test wants it to."""

    def pretend(version="0.31.0", cpu=True):
        platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: cpu))
        monkeypatch.setattr(engine, "find_spec", lambda name: version and SimpleNamespace())
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)

    return pretend


def refusal(tmp_path, model="pico", **changes):
    args = P2OConfig(**options(tmp_path, use_vllm=True, **changes))
    with pytest.raises((ImportError, ValueError, ConnectionError)) as caught:
        engine.check(args, model)
    return str(caught.value)


@pytest.mark.parametrize("version", [None, "0.21.1", "0.32.0"])
def test_a_missing_or_unsupported_vllm_is_refused_with_the_way_out(tmp_path, vllm, version):
    vllm(version)
    said = refusal(tmp_path)
    assert "0.22" in said and "0.31" in said and "pip install 'p2o-rl[vllm]'" in said
    assert "no vLLM is installed" in said if version is None else version in said


def test_supported_versions_are_trls_own():
    assert "0.22.0" in engine.supported_versions() and "0.31.0" in engine.supported_versions()
    assert "0.21.1" not in engine.supported_versions() and "0.32.0" not in engine.supported_versions()


def test_the_command_line_says_it_too(config, vllm, capsys):
    vllm(None)
    assert train(["--config", config(), "--use_vllm", "true", "--output_dir", config() + "-run"]) == 2
    assert "pip install 'p2o-rl[vllm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "cpu", "message"),
    [
        ({"generation_kwargs": {"seed": 1}}, True, "same completion for every rollout"),
        ({"vllm_mode": "colocate"}, False, "built for a GPU, and training runs on a CPU"),
        (
            {"vllm_mode": "colocate", "vllm_enable_sleep_mode": True},
            True,
            "vllm_enable_sleep_mode frees a GPU's memory",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, vllm, changes, cpu, message):
    vllm(cpu=cpu)
    assert message in refusal(tmp_path, **changes)


@pytest.mark.parametrize("whole", [["norm"], None])
@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_modules_that_the_reference_keeps_too_are_refused(tmp_path, vllm, beta, whole):
    """TRL sends them to vLLM by a name that it does not know: the first rollout would be the end."""
    vllm()
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=whole)
    model = get_peft_model(load(), config)
    args = P2OConfig(**options(tmp_path, use_vllm=True, vllm_mode="colocate", beta=beta))
    if whole and beta:
        with pytest.raises(ValueError, match=r"beta=0\.1.*modules_to_save=\['norm'\]"):
            engine.check(args, model)
    else:
        engine.check(args, model)


def test_a_model_from_nowhere_is_refused(tmp_path, vllm):
    vllm()
    model = load()
    model.name_or_path = ""
    assert "save_pretrained" in refusal(tmp_path, model, vllm_mode="colocate")


def test_nobody_listening_is_told_at_once_and_in_the_end(tmp_path, vllm, caplog):
    vllm()
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as free:
        port = free.server_port
    said = refusal(
        tmp_path, vllm_mode="server", vllm_server_host="127.0.0.1", vllm_server_port=port, vllm_server_timeout=1.5
    )
    start = "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model"
    for text in (said, caplog.text):
        assert f"http://127.0.0.1:{port}" in text and start in text
    assert "waiting up to 1.5 seconds" in caplog.text


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (None, "VLLM_SERVER_DEV_MODE=1"),
        (("raw_logprobs", EXTENSION), "reports raw_logprobs"),
        (("processed_logprobs", ""), f"cannot take weights from a CPU.* --worker-extension-cls {EXTENSION}"),
        (("processed_logprobs", EXTENSION), None),
    ],
)
def test_a_server_started_without_what_is_needed_is_refused(tmp_path, vllm, info, message):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/health" or info
            self.send_response(200 if found else 404)
            self.end_headers()
            mode, extension = info or ("", "")
            settings = {"model_config": {"logprobs_mode": mode}, "parallel_config": {"worker_extension_cls": extension}}
            self.wfile.write(json.dumps({"vllm_config": settings}).encode())

        def log_message(self, *args):
            pass

    vllm()
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"vllm_mode": "server", "vllm_server_base_url": f"http://127.0.0.1:{server.server_port}/"}
        if message:
            assert re.search(message, refusal(tmp_path, **settings))
        else:
            engine.check(P2OConfig(**options(tmp_path, use_vllm=True, **settings)), "pico")
        server.shutdown()


def test_the_names_of_trl_that_are_relied_on():
    """Where TRL keeps them; what they do is tested on a real engine."""

    def names(function):
        return {*function.__code__.co_names, *function.__code__.co_consts}

    for name in ("_init_vllm", "_iter_named_params", "sync_weights"):
        assert name in vars(VLLMGeneration)
    assert {"_post", "reset_prefix_cache", "get_server_info"} <= vars(VLLMClient).keys()
    assert {"VLLMGeneration", "_last_loaded_step"} <= names(GRPOTrainer.__init__)
    assert {"sync_weights", "wake_up", "_llm_weights_sleeping"} <= names(VLLMGeneration.generate) | names(
        VLLMGeneration.sync_weights
    )
    for asks in (GRPOTrainer._generate, GRPOTrainer._generate_single_turn):
        assert {"_last_loaded_step", "global_step", "sync_weights"} <= names(asks)
    logged = mismatch_metrics(*[torch.zeros(1, 1)] * 3, torch.ones(1, 1, dtype=torch.bool))
    assert logged.keys() <= names(GRPOTrainer._generate_and_score_completions)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_mismatch_metrics_by_hand(level):
    trainer = torch.tensor([[-1.0, -2.0], [-1.0, -9.0], [-7.0, -7.0]])
    sampler = torch.tensor([[-1.5, -2.0], [-1.0, -9.5], [-1.0, float("nan")]])
    ratio = (trainer - sampler).exp() if level == "token" else torch.tensor([[1.6], [1.0], [0.1]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]]).bool()
    names = ["logp_difference/mean", "logp_difference/max"]
    names += [f"importance_sampling_ratio/{summary}" for summary in ("min", "mean", "max")]
    values = mismatch_metrics(trainer, sampler, ratio, mask)
    expected = [0.5 / 3, 0.5, 1.0, (0.5**0 + 1 + torch.e**0.5) / 3, torch.e**0.5]
    if level == "sequence":
        expected[2:] = [1.0, 1.3, 1.6]
    for (name, value), short, wanted in zip(values.items(), names, expected, strict=True):
        assert short in name and value == pytest.approx([wanted])
    nothing = mismatch_metrics(trainer, sampler, ratio, torch.zeros_like(mask))
    assert all(values == [] for values in nothing.values())


def test_weight_versions_see_what_changes_without_a_step(tmp_path):
    model = load()
    versions = [engine.weight_versions(model)]
    model.load_state_dict(model.state_dict())
    versions.append(engine.weight_versions(model))
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    versions.append(engine.weight_versions(model))
    model(input_ids=torch.tensor([[5, 6]])).logits.sum().backward()
    assert versions[0] != versions[1] != versions[2] == engine.weight_versions(model)


def test_runs_that_begin_at_once_meet_at_ports_of_their_own(monkeypatch):
    """TRL takes 29500 where that is free, and it is free until an engine listens: one of two runs at once failed."""
    chosen = set()
    for _ in range(5):
        monkeypatch.setenv("MASTER_PORT", "")
        engine.choose_port(SimpleNamespace(use_vllm=True, vllm_mode="colocate"))
        chosen.add(os.environ["MASTER_PORT"])
    assert len(chosen) > 1 and "29500" not in chosen
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(int(port) < lowest for port in chosen), "none that an outgoing connection is given meanwhile"
    monkeypatch.setenv("MASTER_PORT", "23456")
    engine.choose_port(SimpleNamespace(use_vllm=True, vllm_mode="colocate"))
    assert os.environ["MASTER_PORT"] == "23456", "a launcher's"
