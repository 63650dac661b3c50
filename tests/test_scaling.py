"""docs/scaling.md says what its command prints, about the recipes as they are."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import estimates
import scaling

ROOT = Path(__file__).parent.parent


def test_the_page_has_the_tables_that_the_command_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py"])
    scaling.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert len(tables) == 4
    for table in tables:
        assert table in page, "run `python benchmarks/scaling.py` and put its tables into docs/scaling.md"


@pytest.mark.parametrize("name", estimates.SHAPES)
def test_shapes_have_as_many_parameters_as_transformers_makes_of_them(name):
    shape = estimates.SHAPES[name]
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    if name.endswith("1.7B"):
        from peft import LoraConfig, get_peft_model

        with torch.device("meta"):
            adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert shape.lora(8) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_every_setup_fits_and_is_about_a_recipe(monkeypatch):
    defaults = {"mean_length": 0.5, "prompt": 256, "request": 400, "context": 2.0, "engine": 2.0, "asleep": 1.0}
    assert all(estimates.Estimate(setup, argparse.Namespace(**defaults)).fits for setup in estimates.SETUPS)
    tight = estimates.Estimate(estimates.SETUPS[0], argparse.Namespace(**{**defaults, "context": 20.0}))
    assert not tight.fits


def test_reflections_are_reckoned_with_what_they_are_about():
    """Three answers of a recipe's length and the reflection itself, as far as the engine's length goes."""
    assumed = argparse.Namespace(mean_length=0.5, prompt=256, request=400, context=2.0, engine=2.0, asleep=1.0)
    small, _, paper, *_ = (estimates.Estimate(setup, assumed) for setup in estimates.SETUPS)
    assert small.reflection_prompt(100) == 400 + 3 * (256 + 100)
    assert small.longest_reflection == small.training.vllm_max_model_length == 16_384
    assert paper.reflection_prompt(paper.mean_length) == 400 + 3 * (256 + 6144)
    assert paper.longest_reflection == 32_768 < 3 * 12_288 + 8192
    small.training.reflection_max_prompt_tokens = 4096
    assert small.longest_reflection == 4096 + small.training.reflection_max_tokens
