"""Reflections of a model behind an HTTP endpoint, within the limits of a run."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from p2o.engines.endpoint import Endpoint
from p2o.images import interleaved, url_block
from p2o.prompt_phase.traces import prompt_limit
from p2o.prompt_phase.types import Reflection, ReflectionError

logger = logging.getLogger(__name__)


class EndpointReflection(Endpoint):
    """A [`p2o.prompt_phase.types.ReflectionFn`] of a model behind an HTTP endpoint.

    Args:
        left: tokens and US dollars that may still be spent before this batch. No request begins once the batch has
            spent them; those under way then may exceed them.
        longest_prompt: in tokens, where less than the model takes is wanted; what it takes is litellm's to know.
        sees_images: whether it is sent the images of questions, as `data:` URLs.
        settings: as [`p2o.engines.endpoint.Endpoint`].

    Raises:
        ImportError, ValueError: as [`p2o.engines.endpoint.Endpoint`].
    """

    def __init__(
        self,
        model: str,
        *,
        left: Callable[[], tuple[float, float]] = lambda: (math.inf, math.inf),
        longest_prompt: int | None = None,
        sees_images: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        self.left, self.sees_images = left, sees_images
        self.prompt_limit = prompt_limit(self.context_length, self.max_tokens, longest_prompt)
        self._warned_of_usage = False

    def limit_reached(self, tokens: int = 0, cost: float = 0.0) -> str | None:
        """Which limit forbids a further request, this batch having spent so much; None when none does."""
        tokens_left, cost_left = self.left()
        if tokens_left <= tokens:
            return "The run has spent the tokens of reflection_token_limit; raise it to go on reflecting."
        if cost_left <= cost:
            return "The run has spent the US dollars of reflection_cost_limit; raise it to go on reflecting."
        return None

    def __call__(self, prompts: list[str], *, seed: int, images: Sequence[Sequence[Any]] = ()) -> list[Reflection]:
        """Reflections in the order of the prompts; those that failed have an `error` and no text.

        Args:
            images: of each prompt those that its marks stand for; empty where none has any.

        Raises:
            ReflectionError: all of them failed.
        """
        shown = images or [()] * len(prompts)
        chats = [[{"role": "user", "content": _content(*asked)}] for asked in zip(prompts, shown, strict=True)]
        reflections = self.complete(chats, seed=seed, limit=self.limit_reached)
        if any(r.prompt_tokens is None for r in reflections) and not self._warned_of_usage:
            self._warned_of_usage = True
            logger.warning(
                "The reflection endpoint for %s does not say how many tokens it used: the ledger counts none for it, "
                "and reflection_token_limit and reflection_cost_limit cannot hold.",
                self.model,
            )
        failures = Counter(reflection.error for reflection in reflections if reflection.error)
        if not failures:
            return reflections
        failed = failures.total()
        causes = "; ".join(f"{count} × {cause}" for cause, count in failures.most_common(3))
        if failed == len(reflections):
            raise ReflectionError(f"None of {failed} reflection(s) by {self.model} succeeded: {causes}", reflections)
        logger.warning("%d of %d reflections by %s failed: %s", failed, len(reflections), self.model, causes)
        return reflections


def _content(prompt: str, images: Sequence[Any]) -> str | list[dict[str, Any]]:
    """A text, or the blocks of one with images, as OpenAI's API has them."""
    if not images:
        return prompt
    return interleaved(prompt, images, url_block)
