"""Conversations with tools beside TRL's own loop: turns of several processes, and those of a prompt phase."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from trl.chat_template_utils import parse_response

from p2o.engines.image_inputs import shown
from p2o.engines.processes import all_reduce_max
from p2o.templates import Prompt

Tool = Callable[..., Any]


@dataclass
class ToolTurns:
    """Turns after a tool's result, which all processes take together: engines and sharded weights are shared.

    Args:
        complete: one completion for each of this process's contexts; all processes call it together.
        under_way: whether what is generated now is such a turn.
        unknown: whether log-probabilities of such a turn could not be recorded, for all processes alike.
    """

    accelerator: Accelerator
    complete: Callable[..., Any]
    under_way: bool = False
    unknown: bool = False

    def taken_together(self, loop: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What TRL's loop over this process's tools returns, once no process has a result to hand to the model.

        Log-probabilities, in the fourth place, only if those of every turn are known.
        """
        self.under_way, self.unknown = True, False
        try:
            generated = loop()
            while all_reduce_max(self.accelerator, 0):
                self._complete([])
        finally:
            self.under_way = False
        return (*generated[:3], None, *generated[4:]) if self.unknown else generated

    def next(
        self, contexts: list[list[int]], images: Any, fields: Mapping[str, Any], num_generations: int, **more: Any
    ) -> Any:
        """Completions of conversations that a tool has returned something in.

        Args:
            images, fields: that they show, as TRL's `_generate_single_turn` has them.
            num_generations: 1.
            more: its further arguments, among them whether a tool returned any of the images.
        """
        all_reduce_max(self.accelerator, 1)  # tells those that have no more turns of their own
        return self._complete(contexts, images, shown(images, fields), **more)

    def _complete(self, contexts: list[list[int]], *images: Any, **more: Any) -> tuple[Any, Any]:
        ids, logprobs = self.complete(contexts, *images, **more)
        self.unknown |= logprobs is None
        return ids, [[0.0] * len(row) for row in ids] if logprobs is None else logprobs


ByName = list[dict[str, Tool]]


def tools_by_row(shared: Sequence[Tool], own: Iterable[Sequence[Tool]]) -> tuple[ByName, ByName]:
    """What TRL's loop calls for each row, beside what all share its own: functions by their names, and coroutines."""
    dicts: tuple[ByName, ByName] = ([], [])
    for of_row in own:
        for by_name, later in zip(dicts, (False, True), strict=True):
            tools = (tool for tool in (*shared, *of_row) if inspect.iscoroutinefunction(tool) is later)
            by_name.append({tool.__name__: tool for tool in tools})
    return dicts


def converse(
    loop: Callable[..., tuple[Any, ...]],
    tokenizer: Any,
    functions: ByName,
    coroutines: ByName,
    prompts: Sequence[Prompt],
    contexts: list[list[int]],
    completion_ids: list[list[int]],
    images: Any = None,
    fields: Mapping[str, Any] | None = None,
) -> tuple[list[list[int]], list[list[int]], list[list[dict[str, Any]]], list[int]]:
    """Conversations that begin with these completions.

    Args:
        loop: TRL's, over calls and further turns.
        tokenizer: has a response template, or TRL would have refused the tools.
        functions, coroutines: tools of each row by their names, see [`tools_by_row`].
        contexts: tokens of the prompts.
        images, fields: that the prompts show, as TRL's `_generate_single_turn` has them.

    Returns:
        Contexts, the completions' tokens, their messages, and how many of the tokens are not a tool's.
    """
    tools = ([*now.values(), *later.values()] for now, later in zip(functions, coroutines, strict=True))
    rows = zip(contexts, completion_ids, tools, strict=True)
    begun = [[parse_response(tokenizer, list(ids), prefix=list(c), tools=t)] for c, ids, t in rows]
    begin = (deepcopy(list(prompts)), contexts, completion_ids, begun)
    masks, conversations, ids, *_ = loop(*begin, None, images, dict(fields or {}))
    return contexts, ids, conversations, [sum(mask) for mask in masks]
