"""The embedded world with tools: a model whose latent skill is to call a calculator, and questions that need one."""

from pathlib import Path


def model_path() -> str:
    """Directory of the shipped model and tokenizer, as `from_pretrained` takes it."""
    return str(Path(__file__).parent / "model")
