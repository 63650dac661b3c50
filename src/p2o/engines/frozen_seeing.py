"""A frozen model of questions with images, run by `transformers`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from p2o.completions import CompleteFn, Completion, Sampling
from p2o.engines.frozen import FrozenModel, answers, in_streams, is_cut_off, sample_batch, stop_tokens
from p2o.engines.image_inputs import AT_ONCE
from p2o.engines.loading import load_seeing
from p2o.engines.memory import Halving
from p2o.engines.seeing import encode_chats, in_blocks, padded_fields
from p2o.tasks import refused_chats
from p2o.templates import Prompt


@dataclass(frozen=True)
class SeeingModel(FrozenModel):
    """A [`FrozenModel`] that is shown the images of chats.

    Args:
        processor: of texts and images.
    """

    processor: Any = None

    def refused(self, prompts: Sequence[Prompt]) -> dict[int, str]:
        chats = [prompt if isinstance(prompt, str) else list(map(in_blocks, prompt)) for prompt in prompts]
        return refused_chats(chats, self.processor, **self.template_options)

    def too_long(self, prompts: Sequence[Prompt], max_completion_length: int) -> dict[int, int]:
        """As of [`FrozenModel`], with the tokens of images, all of which are read.

        Raises:
            ValueError: an image that cannot be read, or that the processor refuses, by the question.
        """
        lengths = []
        for number, prompt in enumerate(prompts):
            try:
                lengths.append(len(self.encoded([prompt])[0]))
            except (OSError, ValueError) as error:
                raise ValueError(f"question {number}, its images: {error}.") from None
        limit = (self.context_length or max(lengths, default=0) + max_completion_length) - max_completion_length
        return {number: length for number, length in enumerate(lengths) if length > limit}

    def encoded(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        ids: list[list[int]] = []
        for start in range(0, len(prompts), AT_ONCE):  # whose pixels are held until they are counted
            some = prompts[start : start + AT_ONCE]
            ids += encode_chats(self.processor, some, self.template_options)["input_ids"]
        return ids


def seeing_model(
    name: str, *, batch_size: int = 32, template_options: Mapping[str, Any] | None = None, **how: Any
) -> SeeingModel:
    """A checkpoint, or a name on the hub; arguments as of [`p2o.engines.frozen.transformers_model`].

    Raises:
        OSError, ValueError: as `from_pretrained`; a model that reads texts only.
    """
    model, processor = load_seeing(name, **how)
    options = dict(template_options or {})
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    complete = _complete(model, processor, batch_size, options)
    return SeeingModel(complete, processor.tokenizer, positions, options, batch_size, processor=processor)


def _complete(model: PreTrainedModel, processor: Any, batch_size: int, options: Mapping[str, Any]) -> CompleteFn:
    """Samples from a model at hand; the process-wide generators are as before afterwards."""
    words, halving = processor.tokenizer, Halving()

    @torch.no_grad()
    def complete(prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, first: int = 0) -> list[Completion]:
        def sample(batch: list[Prompt], stream: int) -> list[tuple[list[int], list[int]]]:
            encoded = encode_chats(processor, batch, options)
            ids = encoded["input_ids"]
            sampled = sample_batch(model, words, ids, sampling, **padded_fields(encoded, model.device))
            return list(zip(ids, sampled, strict=True))

        how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "halving": halving, "first": first}
        pairs = in_streams(model, sample, prompts, **how)
        encoded, sampled = [ids for ids, _ in pairs], [tokens for _, tokens in pairs]
        stops = stop_tokens(model, words)
        return answers(words, prompts, encoded, sampled, [is_cut_off(t, stops) for t in sampled])

    return complete
