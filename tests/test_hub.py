"""What goes to the hub: a card that says what was done, a model that loads; against a hub played on this machine."""

import base64
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.cli import main
from p2o.ledger import Ledger
from p2o.model_card import p2o_section, with_section
from p2o.pico import model_path, teacher
from p2o.pico.world import accuracy_reward
from p2o.state import P2OState
from p2o.templates import Template
from trainers import load, options, questions

TOKEN = "hf_planted-5b1d-never-to-be-seen"
TRLS = "# Model Card for x\n\n## Training procedure\n\n### Framework versions\n\n- TRL\n\n## Citations\n"


# -- the card --------------------------------------------------------------------------------------------------------


def state(**changes):
    ledger = Ledger()
    ledger.add("policy", 1200, 5000, 7000)
    ledger.add("reflection", 4, 300, 200)
    found = {
        1: [Template("Go step by step.", 0.5, frozenset({1, 2})), Template("Count twice.", 0.25, frozenset({2, 3}))]
    }
    return P2OState(**{"epoch": 2, "prompt_phases": 1, "selected": found, "ledger": ledger, **changes})


def test_the_card_says_what_was_done():
    section = p2o_section(state(), epochs=2.0, steps=8, reflection="reference")
    card = with_section(TRLS, section)
    assert card.index("### What P²O") < card.index("### Framework versions") < card.index("## Citations")
    for part in (
        "Epochs: 2 · updates: 8 · prompt phases: 1.",
        "the model as it was before training",
        "#### Templates selected before epoch 2 (dev questions solved under them: 3)",
        "Mean dev reward 0.50, dev questions solved 2:\n\n    Go step by step.",
        "| policy | 1,200 | 5,000 | 7,000 |",
        "1,204 rollouts",
    ):
        assert part in card, part
    baseline = p2o_section(state(selected={}, prompt_phases=0), epochs=2.0, steps=8, reflection=None)
    assert "prompt phases: 0" in baseline and "emplates" not in baseline
    assert with_section("no headings", "S").endswith("S\n\n")


@given(st.text(min_size=1, max_size=200))
def test_any_template_is_shown_as_it_is(text):
    """Fences, headings and tables in it are text, not markup: all of its lines are indented."""
    lines = ("x" + text).splitlines()
    section = p2o_section(
        state(selected={1: [Template("x" + text, 0.5, frozenset({1}))]}), epochs=1, steps=1, reflection="policy"
    )
    assert "\n\n" + "\n".join(f"    {line}" for line in lines) in section


def test_the_selection_of_each_phase_is_part_of_the_state(tmp_path):
    before = state()
    before.save(tmp_path, {})
    assert P2OState.load(tmp_path, {}) == before


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
def test_a_trained_model_has_a_card_loads_and_generates(tmp_path, lora):
    trainer = P2OTrainer(
        model=load(),
        reward_funcs=accuracy_reward,
        args=P2OConfig(
            **options(
                tmp_path,
                max_steps=-1,
                num_train_epochs=2,
                min_hard_questions=2,
                evolution_budget="40",
                max_completion_length=64,
            )
        ),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        reflect=teacher.reflect,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card("tiny")
    card = ModelCard.load(tmp_path / "README.md")
    assert {"p2o", "grpo", "trl"} <= set(card.data.tags) and card.data.model_name == "tiny"
    assert "Epochs: 2 " in card.text and "prompt phases: 1." in card.text and "`reflect`" in card.text
    for template in trainer.p2o.selected[1]:
        assert all(f"    {line}" in card.text for line in template.text.splitlines())
    assert trainer.p2o.selected[1] and "2603.21877" in card.text and "@article{lu2026p2o" in card.text
    assert "None" not in card.text
    assert (tmp_path / ("adapter_config.json" if lora else "config.json")).exists()
    model, tokenizer = (c.from_pretrained(tmp_path) for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("3 + 4", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]
    with torch.no_grad():
        learnt, loaded = (m.eval()(**ids).logits for m in (trainer.model, model))
    torch.testing.assert_close(loaded, learnt)


# -- the hub ---------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload asks for; every file is small enough to be part of the commit."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{self.server.url}/someone/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            plan = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in files]
            return self.answer(200, {"files": plan})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/someone/model/commit/{'0' * 40}"
            return self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url})
        return self.answer(404, {"error": f"not played: {self.path}"})

    def do_GET(self):
        self.answer(404, {"error": f"not played: {self.path}"})

    do_HEAD = do_GET

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.created, server.files, server.tokens = [], {}, set()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def run(server, *command):
    """In a process of its own: huggingface_hub reads the hub's address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.slow
def test_p2o_train_uploads_the_model_and_nothing_else(tmp_path, config):
    command = ["-m", "p2o", "train", "--config", config(max_steps=1), "--push_to_hub", "true", "--hub_token", TOKEN]
    command += ["--hub_model_id", "someone/tiny"]
    with hub() as server:
        done = run(server, *command, "--output_dir", str(tmp_path / "run"))
        assert done.returncode == 0, done.stderr[-4000:]
        assert server.tokens == {f"Bearer {TOKEN}"} and server.created[0]["name"] == "tiny"
        assert f"Uploaded: {server.url}/someone/model/commit/" in done.stdout
    model = tmp_path / "run" / "model"
    assert server.files == {path.name: path.read_bytes() for path in model.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= server.files.keys()
    card = server.files["README.md"].decode()
    assert "### What P²O" in card and 'model="someone/tiny"' in card
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not kept and TOKEN not in done.stdout + done.stderr


def test_who_cannot_push_learns_it_before_anything_is_trained(tmp_path, config, capsys):
    # The tests are offline, which is one way not to reach the hub.
    command = ["train", "--config", config(), "--push_to_hub", "true", "--output_dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "push_to_hub: cannot create or open the repository run" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from trainers import load, options, questions
from transformers import AutoTokenizer
from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path
from p2o.pico.world import accuracy_reward
trainer = P2OTrainer(
    model=load(),
    reward_funcs=accuracy_reward,
    args=P2OConfig(**options(sys.argv[1], max_steps=1, hub_token="hf_x", hub_model_id="someone/tiny")),
    train_dataset=questions(),
    processing_class=AutoTokenizer.from_pretrained(model_path()),
)
trainer.train()
trainer.push_to_hub(dataset_name="someone/questions")
"""


@pytest.mark.slow
def test_push_to_hub_in_a_script_is_trls(tmp_path):
    with hub() as server:
        done = run(server, "-c", SCRIPT, str(tmp_path), os.path.dirname(__file__))
        assert done.returncode == 0, done.stderr[-4000:]
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "training_args.bin",
    } <= server.files.keys()
    assert not [name for name in server.files if name.startswith("checkpoint-")]
    card = server.files["README.md"].decode()
    assert "### What P²O" in card and "someone/questions" in card and 'model="someone/tiny"' in card
