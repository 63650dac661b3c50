"""Completions and how they are sampled, whatever the engine. Pure: neither models nor servers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from p2o.templates import Prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_completion_length: in tokens.
        temperature: 0 is greedy.
        top_p: share of probability that is kept, in (0, 1].
        top_k: most probable tokens that are kept; 0 keeps all.
    """

    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Decoded(NamedTuple):
    """A completion as reward functions and feedback read it.

    Args:
        completion: as TRL hands it to reward functions: a text, or a list of messages, more than one where tools were
            called.
        text: all of it, without special tokens; of several messages see [`conversation_text`].
        answer: what feedback is about: without a thought that the tokenizer tells from the answer, or with its marks.
        thought_taken_out: whether such a thought was taken out of it.
        ids: its tokens; None where a server returned a text.
    """

    completion: Any
    text: str
    answer: str
    thought_taken_out: bool = False
    ids: Sequence[int] | None = None

    @property
    def content(self) -> str:
        """What is said last."""
        return final_text(self.completion)


def final_text(completion: Any) -> str:
    """What a completion as TRL has it says last: a text itself, the content of the last message of several.

    "" where the model has not said anything after what a tool returned.
    """
    if isinstance(completion, str):
        return completion
    last = completion[-1]
    return (last.get("content") or "") if last.get("role") != "tool" else ""


def conversation_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages of the model and of its tools as a text: what was said, each call with its arguments, each result."""
    lines = []
    for message in messages:
        content = message.get("content") or ""
        if message.get("role") == "tool":
            lines.append(f"[{message.get('name', 'tool')} returned] {_as_text(content)}")
            continue
        lines += [content] if content else []
        for call in message.get("tool_calls") or ():
            function = call.get("function", {})
            lines.append(f"[calls {function.get('name')}] {_as_text(function.get('arguments', {}))}")
    return "\n".join(lines)


def _as_text(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(block, Mapping) and block.get("type") == "image" for block in value):
        return "\n".join("[an image]" if b.get("type") == "image" else str(b.get("text", "")) for b in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def in_conversation(decoded: Decoded, messages: list[dict[str, Any]]) -> Decoded:
    """A completion whose tokens were `decoded`, as these messages: of several the last one is the answer."""
    if len(messages) == 1 and not messages[0].get("tool_calls"):
        return decoded._replace(completion=messages)
    return decoded._replace(completion=messages, text=conversation_text(messages), answer=final_text(messages))


def as_message(text: str, *, chat: bool, answer: str | None = None, ids: Sequence[int] | None = None) -> Decoded:
    """A text as it is, in a message where it answers a chat; `answer` is the text where nothing else is given."""
    completion = [{"role": "assistant", "content": text}] if chat else text
    return Decoded(completion, text, text if answer is None else answer, ids=ids)


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt, and what it cost.

    Args:
        text: "" where there is an `error`.
        prompt_tokens: read; None where a server does not report it. A failed request may have cost tokens too.
        completion_tokens: generated, the one that ended it included; None as above.
        cost: US dollars, as far as prices are known.
        error: why there is no completion, without credentials; "" where there is one.
        truncated: whether the limit on its length ended it.
        decoded: as its tokens say; None where there are none, as from a server.
    """

    text: str
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost: float = 0.0
    error: str = ""
    truncated: bool = False
    decoded: Decoded | None = None


def decoded(completion: Completion, prompt: Prompt) -> Decoded:
    """What a scorer reads of a completion of this prompt."""
    return completion.decoded or as_message(completion.text, chat=not isinstance(prompt, str))


@dataclass(frozen=True)
class Call:
    """Prompts to complete, one completion each, from a stream seeded by `seed`."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    seed: int


class GenerationError(Exception):
    """Completions that could not be generated; the message holds no credentials."""


class CompleteFn(Protocol):
    """One completion for each prompt, in their order, from a stream seeded by `seed`; repeat a prompt for several.

    Raises:
        GenerationError: not all of them could be generated.
    """

    def __call__(self, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int) -> list[Completion]: ...
