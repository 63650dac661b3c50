"""The reflection model that options name."""

import math
from collections.abc import Callable, Iterable

from p2o.ledger import Ledger
from p2o.prompt_phase.types import ReflectionFn
from p2o.reflection.endpoint import EndpointReflection
from p2o.reflection.options import ReflectionOptions


def make_reflection(
    options: ReflectionOptions,
    *,
    function: ReflectionFn | None,
    own: Callable[[], ReflectionFn],
    spent: Callable[[], Iterable[Ledger]],
) -> ReflectionFn:
    """The reflection model that the options name.

    Args:
        function: takes its place when there is one.
        own: makes the reflection of a model in this process; called where the options name such a model.
        spent: ledgers of what the run has spent so far, which count against the limits of an endpoint.

    Raises:
        ImportError: an endpoint, and no litellm.
        ValueError: an endpoint that cannot be used, or a limit on cost without known prices.
    """
    if function is not None:
        return function
    if not options.reflection_endpoint:
        return own()

    def left() -> tuple[float, float]:
        tokens, cost = options.reflection_token_limit or math.inf, options.reflection_cost_limit or math.inf
        for ledger in spent():
            tokens -= ledger.prompt_tokens["reflection"] + ledger.completion_tokens["reflection"]
            cost -= ledger.reflection_cost
        return tokens, cost

    endpoint = EndpointReflection(
        options.reflection_model,
        base_url=options.reflection_base_url,
        max_tokens=options.reflection_max_tokens,
        temperature=options.reflection_temperature,
        concurrency=options.reflection_concurrency,
        timeout=options.reflection_timeout,
        max_retries=options.reflection_max_retries,
        left=left,
        longest_prompt=options.reflection_max_prompt_tokens,
        sees_images=options.reflection_sees_images,
    )
    if options.reflection_cost_limit is not None and not endpoint.priced:
        raise ValueError(
            f"reflection_cost_limit={options.reflection_cost_limit} cannot be kept: litellm knows no price for "
            f"{options.reflection_model!r}. Set reflection_token_limit instead."
        )
    return endpoint
