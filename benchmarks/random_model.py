"""A model of Qwen3's architecture with random weights and the embedded world's tokenizer, for benchmarks and tests."""

from pathlib import Path
from typing import Any


def save_random_model(directory: str | Path, *, dtype: Any = None, **shape: Any) -> int:
    """Writes the model and its tokenizer; returns the size of its vocabulary.

    Args:
        directory: for `from_pretrained`.
        dtype: of the weights; torch's default where it is None.
        shape: options of `Qwen3Config`, in addition to and in place of those that follow from the tokenizer.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from p2o.pico import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{"vocab_size": len(tokenizer), **ends, **shape}))
    (model if dtype is None else model.to(dtype)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return len(tokenizer)
