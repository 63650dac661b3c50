"""Reflections of a model in this process or behind a completion server: its completions of the reflection prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.completions import CompleteFn, GenerationError, Sampling
from p2o.engines.frozen import FrozenModel, transformers_complete
from p2o.prompt_phase.types import Reflection, ReflectionError


class ModelReflection:
    """A [`p2o.prompt_phase.types.ReflectionFn`] of any model that can be sampled from.

    Args:
        complete: samples from it.
        chats: whether prompts become chats; without a chat template they cannot.
    """

    def __init__(self, complete: CompleteFn, sampling: Sampling, *, chats: bool = True) -> None:
        self.complete, self.sampling, self.chats = complete, sampling, chats

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        """Reflections in the order of the prompts.

        Raises:
            ReflectionError: the engine could not generate them.
        """
        requests: Sequence[Any] = [[{"role": "user", "content": p}] if self.chats else p for p in prompts]
        try:
            return self.complete(requests, sampling=self.sampling, seed=seed)
        except GenerationError as error:
            raise ReflectionError(str(error)) from None


def frozen_reflection(model: FrozenModel, sampling: Sampling) -> ModelReflection:
    """Reflections of a frozen model."""
    chats = model.tokenizer is None or model.tokenizer.chat_template is not None
    return ModelReflection(model.complete, sampling, chats=chats)


def transformers_reflection(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    batch_size: int = 32,
    template_options: Mapping[str, Any] | None = None,
) -> ModelReflection:
    """Reflections of a `transformers` model at hand.

    Args:
        max_new_tokens: longest reflection.
        temperature: of sampling; 0 is greedy.
        batch_size: prompts generated at once. The draws depend on it.
        template_options: for the chat template, as rollouts have them.
    """
    complete = transformers_complete(model, tokenizer, batch_size, **(template_options or {}))
    sampling = Sampling(max_new_tokens, temperature)
    return ModelReflection(complete, sampling, chats=tokenizer.chat_template is not None)
