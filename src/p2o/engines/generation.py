"""Sampling with `transformers` from the model itself, as vLLM does: a checkpoint's own generation settings stay out.

`generate` fills what a call leaves open from the checkpoint's `generation_config.json`: a repetition penalty, top-p,
tokens that are suppressed. vLLM, given sampling parameters, takes nothing from there but the tokens that end an answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

# What a model needs to generate at all; everything else in its settings shapes what is sampled.
NEEDED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile"),
)


def without_shaping(settings: GenerationConfig) -> GenerationConfig:
    """The settings without those that change which tokens are sampled, how likely, or how many."""
    kept = {name: getattr(settings, name, None) for name in NEEDED}
    return GenerationConfig(**{name: value for name, value in kept.items() if value is not None})


@contextmanager
def only_asked_settings(model: Any) -> Iterator[None]:
    """Inside, `model.generate` samples by the settings of its call alone; what is saved with the model does not change.

    Args:
        model: a model, or a `PeftModel` around one, unwrapped.
    """
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = owner.generation_config
    owner.generation_config = without_shaping(own)
    try:
        yield
    finally:
        owner.generation_config = own
