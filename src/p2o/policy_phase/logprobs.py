"""Log-probabilities of completions that already exist, by a pass of the policy without a gradient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from p2o.engines.image_inputs import fields_of, in_context, select, with_empty_rows
from p2o.engines.processes import all_reduce_max

Forward = Callable[..., tuple[Float[Tensor, "rows completion"], Any, Any]]
"""`forward(model, input_ids, attention_mask, completion width, **images)`: log-probabilities of completions, and more.

`images` is what the model reads of images, see [`p2o.engines.image_inputs`].
"""


@dataclass(frozen=True)
class CompletionLogprobs:
    """log π(y|context) of the present policy. All processes call it together, with as many rows as each has, or none.

    Args:
        forward: a pass of the policy.
        model: the policy.
    """

    forward: Forward
    model: Callable[[], Any]
    accelerator: Accelerator
    pad_token_id: int

    def of(self, contexts: list[list[int]], completions: list[list[int]]) -> Float[Tensor, "rows completion"]:
        """Of completions as lists of tokens, one a context; arbitrary behind the end of a shorter one."""
        tokens = [torch.tensor(ids, device=self.accelerator.device) for ids in completions]
        ids, mask = self._padded(tokens, side="right")
        return self.under(contexts, ids, mask)

    def under(
        self, contexts: list[list[int]], ids: Int[Tensor, "rows completion"], mask: Int[Tensor, "rows completion"]
    ) -> Float[Tensor, "rows completion"]:
        """Of padded completions, one a context."""
        return self._pass(*self._prompts(contexts, ids), ids, mask, {})

    def of_rows(
        self, batch: Mapping[str, Any], rows: Bool[Tensor, " batch"], contexts: list[list[int]]
    ) -> Float[Tensor, "rows completion"]:
        """Of these rows of a padded batch, behind other contexts that show the same images, one a row."""
        ids, mask = batch["completion_ids"][rows], batch["completion_mask"][rows]
        prompts, attention = self._prompts(contexts, ids)
        fields = fields_of(batch)
        if fields:
            fields = select(fields, rows.nonzero().flatten().tolist())
            fields = in_context(fields, batch["prompt_ids"][rows], prompts)
        return self._pass(prompts, attention, ids, mask, fields)

    def of_batch(self, batch: Mapping[str, Any]) -> Float[Tensor, "rows completion"]:
        """Of a padded batch as TRL has it: prompts on the left, completions on the right."""
        prompts, completions = ((batch[f"{part}_ids"], batch[f"{part}_mask"]) for part in ("prompt", "completion"))
        return self._pass(*prompts, *completions, fields_of(batch))

    @torch.no_grad()
    def _pass(
        self, prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor, fields: dict[str, Any]
    ) -> Float[Tensor, "rows completion"]:
        input_ids, attention = torch.cat([prompt_ids, ids], dim=1), torch.cat([prompt_mask, mask], dim=1)
        # Wrapped models synchronise in every pass: each process takes as many as the one with most rows, on empty rows.
        missing = all_reduce_max(self.accelerator, len(ids)) - len(ids)
        if not len(ids) + missing:
            return torch.zeros_like(ids, dtype=torch.float32)
        input_ids, attention = (pad(tensor, (0, 0, 0, missing)) for tensor in (input_ids, attention))
        images = with_empty_rows(fields, missing)
        logps, *_ = self.forward(self.model(), input_ids, attention, ids.size(1), **images)
        return logps[: len(ids)]

    def _prompts(self, contexts: list[list[int]], ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask of contexts, padded on the left."""
        if not contexts:
            return ids.new_zeros((0, 1)), ids.new_zeros((0, 1))
        return self._padded([torch.tensor(context, device=ids.device) for context in contexts], side="left")

    def _padded(self, rows: list[Tensor], *, side: str) -> tuple[Tensor, Tensor]:
        """Tokens and mask, padded to one width."""
        mask = [torch.ones_like(row) for row in rows]
        return (
            pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id, padding_side=side),
            pad_sequence(mask, batch_first=True, padding_value=0, padding_side=side),
        )
