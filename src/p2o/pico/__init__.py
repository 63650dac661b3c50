"""The embedded world: a tiny model and tasks that it can almost solve, so that all of P²O runs on a laptop."""

from pathlib import Path


def model_path() -> str:
    """Directory of the shipped model and tokenizer, as `from_pretrained` takes it."""
    return str(Path(__file__).parent / "model")
