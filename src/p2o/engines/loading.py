"""Loads a checkpoint that is not trained."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_transformers(
    name: str, *, dtype: str = "auto", device: str | None = None, attn_implementation: str | None = None, **where: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As [`p2o.engines.frozen.transformers_model`] has them; `where` goes to `from_pretrained` of both."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float32" if dtype == "auto" and device == "cpu" else dtype
    how: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    return AutoModelForCausalLM.from_pretrained(name, **how, **where).to(device).eval(), tokenizer
