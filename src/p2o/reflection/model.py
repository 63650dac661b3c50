"""Reflections of a model in this process or behind a completion server: its completions of the reflection prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.completions import CompleteFn, GenerationError, Sampling
from p2o.engines.frozen import FrozenModel, encode, transformers_complete
from p2o.prompt_phase.traces import PromptLimit, estimated_tokens, prompt_limit
from p2o.prompt_phase.types import Reflection, ReflectionError
from p2o.templates import Prompt


class ModelReflection:
    """A [`p2o.prompt_phase.types.ReflectionFn`] of any model that can be sampled from.

    Args:
        complete: samples from it.
        chats: whether prompts become chats; without a chat template they cannot.
        prompt_limit: the longest prompt, where it is known.
    """

    def __init__(
        self, complete: CompleteFn, sampling: Sampling, *, chats: bool = True, prompt_limit: PromptLimit | None = None
    ) -> None:
        self.complete, self.sampling, self.chats, self.prompt_limit = complete, sampling, chats, prompt_limit

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        """Reflections in the order of the prompts.

        Raises:
            ReflectionError: the engine could not generate them.
        """
        requests: Sequence[Any] = [[{"role": "user", "content": p}] if self.chats else p for p in prompts]
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
    chats = model.tokenizer is None or model.tokenizer.chat_template is not None
    count = estimated_tokens if model.tokenizer is None else prompt_tokens(model.tokenizer, model.template_options)
    limit = prompt_limit(model.context_length, sampling.max_completion_length, longest_prompt, count)
    return ModelReflection(model.complete, sampling, chats=chats, prompt_limit=limit)


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
