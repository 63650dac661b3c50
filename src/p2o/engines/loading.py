"""Loads a checkpoint that is not trained."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

BLOCK = 2**20  # bytes


def weights_digest(path: Path) -> str | None:
    """A digest of samples of every weight file in a directory; None where there is no directory (a name on the hub)."""
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as opened:
            for start in range(0, size, max(size // 16, BLOCK)):
                opened.seek(start)
                digest.update(opened.read(BLOCK))
    return digest.hexdigest()[:16]


def load_transformers(
    name: str, *, dtype: str = "auto", device: str | None = None, attn_implementation: str | None = None, **where: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As [`p2o.engines.frozen.transformers_model`] has them; `where` goes to `from_pretrained` of both."""
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    return _load(AutoModelForCausalLM, name, dtype, device, attn_implementation, where), tokenizer


def load_seeing(
    name: str, *, dtype: str = "auto", device: str | None = None, attn_implementation: str | None = None, **where: Any
) -> tuple[PreTrainedModel, Any]:
    """A model that sees images, and its processor; arguments as of [`load_transformers`].

    Raises:
        ValueError: it reads texts only.
    """
    processor = AutoProcessor.from_pretrained(name, **where)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(f"the questions have images, and it reads texts only: it has a {type(processor).__name__}.")
    return _load(AutoModelForImageTextToText, name, dtype, device, attn_implementation, where), processor


def _load(kind: Any, name: str, dtype: str, device: str | None, attention: str | None, where: Any) -> PreTrainedModel:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float32" if dtype == "auto" and device == "cpu" else dtype
    model: PreTrainedModel = kind.from_pretrained(name, dtype=dtype, attn_implementation=attention, **where)
    return model.to(device).eval()
