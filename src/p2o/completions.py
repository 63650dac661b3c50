"""Completions and how they are sampled, whatever the engine. Pure: neither models nor servers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
    """

    text: str
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost: float = 0.0
    error: str = ""
    truncated: bool = False


class GenerationError(Exception):
    """Completions that could not be generated; the message holds no credentials."""


class CompleteFn(Protocol):
    """One completion for each prompt, in their order, from a stream seeded by `seed`; repeat a prompt for several.

    Raises:
        GenerationError: not all of them could be generated.
    """

    def __call__(self, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int) -> list[Completion]: ...
