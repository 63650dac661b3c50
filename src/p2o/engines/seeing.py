"""Completions of a vision-language model at hand, of texts that have images in the place of their marks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from p2o.completions import Completion, Sampling
from p2o.engines.frozen import completion, sample_batch, stop_tokens
from p2o.images import MARK, image_block, interleaved, opened, without_marks
from p2o.seeding import random_stream
from p2o.templates import Prompt
from p2o.thoughts import decoder

Seen = tuple[str, Sequence[Any]]
"""A text, and the images that its marks stand for."""


def sees(processing_class: Any) -> bool:
    """Whether it is a processor of images, and not of texts alone."""
    return getattr(processing_class, "image_processor", None) is not None


def encode_seen(processor: Any, texts: Sequence[Seen], template_options: Mapping[str, Any]) -> dict[str, Any]:
    """Chats with these texts, as TRL's `_tokenize_prompts` has them: `input_ids`, and what is read of images."""
    chats: list[Prompt] = [[{"role": "user", "content": interleaved(*seen, image_block)}] for seen in texts]
    return encode_chats(processor, chats, template_options)


def encode_chats(processor: Any, chats: Sequence[Prompt], template_options: Mapping[str, Any]) -> dict[str, Any]:
    """Chats, as TRL's `_tokenize_prompts` has them: `input_ids`, and what is read of images.

    Raises:
        OSError: an image that cannot be read.
    """
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, **template_options}
    conversation = [[_read(in_blocks(message)) for message in chat] for chat in chats]  # type: ignore[arg-type]
    return dict(processor.apply_chat_template(conversation=conversation, **options))


def in_blocks(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a text as a block, which some processors want."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _read(message: dict[str, Any]) -> dict[str, Any]:
    blocks = message["content"] or ()
    return {**message, "content": [image_block(opened(b["image"])) if b["type"] == "image" else b for b in blocks]}


def padded_fields(encoded: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What the model reads of images, as tensors: types of tokens padded on the left, as their prompts are."""
    width = max(map(len, encoded["input_ids"]))
    fields = {}
    for name, values in encoded.items():
        if name in ("input_ids", "attention_mask"):
            continue
        if isinstance(values, list) and isinstance(values[0], list):
            values = [[0] * (width - len(row)) + row for row in values]
        fields[name] = torch.as_tensor(values if isinstance(values, torch.Tensor) else np.array(values)).to(device)
    return fields


@torch.no_grad()
def complete_seen(
    model: PreTrainedModel,
    processor: Any,
    texts: Sequence[Seen],
    sampling: Sampling,
    *,
    seed: int,
    template_options: Mapping[str, Any],
) -> list[Completion]:
    """One completion of each, all in one batch; process-wide generators are as before after."""
    encoded, words = encode_seen(processor, texts, template_options), processor.tokenizer
    was_training, stops, decode = model.training, stop_tokens(model, words), decoder(words)
    model.eval()
    try:
        with random_stream(seed):
            ids = encoded["input_ids"]
            sampled = sample_batch(model, words, ids, sampling, **padded_fields(encoded, model.device))
    finally:
        model.train(was_training)
    return [completion(decode, *row, stops) for row in zip(ids, sampled, strict=True)]


def token_counts(
    processor: Any, template_options: Mapping[str, Any]
) -> tuple[Callable[[str], int], Callable[[Any], int]]:
    """Counts the tokens of a text in a chat, marks left out, and those that an image adds."""
    by_size: dict[Any, int] = {}

    def tokens(*text: Seen) -> int:
        return len(encode_seen(processor, text, template_options)["input_ids"][0])

    def of_text(text: str) -> int:
        return tokens((without_marks(text), ()))

    def of_image(image: Any) -> int:
        size = getattr(image, "size", id(image))
        if size not in by_size:
            by_size[size] = tokens((MARK + "?", [image])) - of_text("?")
        return by_size[size]

    return of_text, of_image
