"""Reflections of a model in this process or behind a completion server: its completions of the reflection prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.completions import CompleteFn, GenerationError, Sampling
from p2o.engines.frozen import FrozenModel, encode, transformers_complete
from p2o.engines.frozen_seeing import SeeingModel
from p2o.engines.seeing import token_counts
from p2o.images import image_block, interleaved
from p2o.prompt_phase.traces import PromptLimit, estimated_tokens, prompt_limit
from p2o.prompt_phase.types import Reflection, ReflectionError
from p2o.templates import Prompt


class ModelReflection:
    """A [`p2o.prompt_phase.types.ReflectionFn`] of any model that can be sampled from.

    Args:
        complete: samples from it.
        chats: whether prompts become chats; without a chat template they cannot.
        prompt_limit: the longest prompt, where it is known.
        sees_images: whether it is shown the images of questions.
    """

    def __init__(
        self,
        complete: CompleteFn,
        sampling: Sampling,
        *,
        chats: bool = True,
        prompt_limit: PromptLimit | None = None,
        sees_images: bool = False,
    ) -> None:
        self.complete, self.sampling, self.chats, self.prompt_limit = complete, sampling, chats, prompt_limit
        self.sees_images = sees_images

    def __call__(self, prompts: list[str], *, seed: int, images: Sequence[Any] = ()) -> list[Reflection]:
        """Reflections in the order of the prompts.

        Args:
            images: of each prompt those that its marks stand for; empty where none has any.

        Raises:
            ReflectionError: the engine could not generate them.
        """
        seen = zip(prompts, images or [()] * len(prompts), strict=True)
        contents = [interleaved(text, shown, image_block) if shown else text for text, shown in seen]
        requests: Sequence[Any] = [[{"role": "user", "content": c}] if self.chats else c for c in contents]
        try:
            completions = self.complete(requests, sampling=self.sampling, seed=seed)
        except GenerationError as error:
            raise ReflectionError(str(error)) from None
        # Nobody scores them, and the journal keeps what it is given.
        return [replace(completion, decoded=None) for completion in completions]


def as_requests(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Prompt]:
    """Chats of these prompts; the prompts as they are where there is no chat template."""
    if tokenizer.chat_template is None:
        return list(prompts)
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, template_options: Mapping[str, Any]) -> Callable[[str], int]:
    """Counts the tokens of a reflection prompt, with the chat template's where there is one."""

    def count(prompt: str) -> int:
        return len(encode(tokenizer, as_requests(tokenizer, [prompt]), **template_options)[0])

    return count


def frozen_reflection(model: FrozenModel, sampling: Sampling, *, longest_prompt: int | None = None) -> ModelReflection:
    """Reflections of a frozen model.

    Args:
        longest_prompt: in tokens, where less than the model takes is wanted.

    Raises:
        ValueError: reflections so long leave no room for a prompt.
    """
    sees_images = isinstance(model, SeeingModel)
    chats = model.tokenizer is None or sees_images or model.tokenizer.chat_template is not None
    counts: tuple[Any, ...] = (estimated_tokens,)
    if isinstance(model, SeeingModel):
        counts = token_counts(model.processor, model.template_options)
    elif model.tokenizer is not None:
        counts = (prompt_tokens(model.tokenizer, model.template_options),)
    limit = prompt_limit(model.context_length, sampling.max_completion_length, longest_prompt, *counts)
    return ModelReflection(model.complete, sampling, chats=chats, prompt_limit=limit, sees_images=sees_images)


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
