"""Prompts against the model's tokenizer and chat template: those it refuses, those too long."""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from p2o.tasks.checks import text_of
from p2o.templates import Prompt


def refused_chats(prompts: Sequence[Prompt], tokenizer: Any, **template_options: Any) -> dict[int, str]:
    """Which chats the chat template refuses, as index to its message: no role `system`, say, or no two users in a row.

    Templates refuse roles and their order, so one chat of each order is rendered.

    Raises:
        ValueError: chats, and a tokenizer without a chat template.
    """
    said: dict[tuple[str, ...], str] = {}
    refused = {}
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            continue
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("The prompts are chats, but the model's tokenizer has no chat template.")
        roles = tuple(message["role"] for message in prompt)
        if roles not in said:
            try:
                tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **template_options)
                said[roles] = ""
            except (TemplateError, TypeError, ValueError, KeyError) as error:  # what templates raise is up to them
                said[roles] = f"roles {', '.join(roles)}: {error or type(error).__name__}"
        if said[roles]:
            refused[index] = said[roles]
    return refused


def long_prompts(prompts: Sequence[Prompt], tokenizer: Any, limit: int, **template_options: Any) -> dict[int, int]:
    """Which prompts are longer than `limit` tokens, as index to tokens.

    Chats are counted as the chat template renders them with the generation prompt, as TRL does. Only prompts with more
    bytes than `limit` are tokenized, since a token is a byte at least; so a generous limit costs next to nothing.

    Args:
        prompts: sound ones.
        tokenizer: of the model, a fast one.
        limit: in tokens.
        template_options: for `apply_chat_template`.

    Raises:
        ValueError: chats, and a tokenizer without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None) and any(not isinstance(prompt, str) for prompt in prompts):
        raise ValueError("The prompts are chats, but the model's tokenizer has no chat template.")

    def render(batch: list[Prompt]) -> list[str]:
        if isinstance(batch[0], str):
            return batch  # type: ignore[return-value]
        return tokenizer.apply_chat_template(batch, add_generation_prompt=True, tokenize=False, **template_options)

    around: dict[tuple[str, ...], int] = {(): 0}  # bytes that the template adds, by the roles of the chat
    suspects = []
    for index, prompt in enumerate(prompts):
        roles = () if isinstance(prompt, str) else tuple(message["role"] for message in prompt)
        size = len(text_of(prompt).encode())
        if roles not in around:
            around[roles] = max(len(render([prompt])[0].encode()) - size, 0) + 16
        if size + around[roles] > limit:
            suspects.append(index)
    long = {}
    for texts in (True, False):
        chosen = [index for index in suspects if isinstance(prompts[index], str) is texts]
        for start in range(0, len(chosen), 1000):
            batch = chosen[start : start + 1000]
            # A chat template writes the special tokens itself.
            encoded = tokenizer(render([prompts[index] for index in batch]), add_special_tokens=texts)["input_ids"]
            long.update({i: len(ids) for i, ids in zip(batch, encoded, strict=True) if len(ids) > limit})
    return long
