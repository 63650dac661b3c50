"""The embedded world: a tiny model of our own and tasks it can almost do, so that the whole of P²O runs on a laptop."""

from pathlib import Path


def model_path() -> str:
    """Directory of the shipped model and tokenizer, as `from_pretrained` takes it."""
    return str(Path(__file__).parent / "model")
