"""A frozen dictionary that reads the policy in training: how strong reasoning is in each token of a batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from p2o.features.autoencoder import DictionaryError
from p2o.features.saved import SavedDictionary, load_dictionary
from p2o.features.spans import COMPUTATION, DELIBERATION

REASONING = (COMPUTATION, DELIBERATION)
ROWS = 16  # that are read at once: few, so that they are of similar lengths


class _Read(Exception):
    """Ends a pass at the layer that was to be read: the rest of the model has nothing to say."""


@dataclass(frozen=True)
class Guidance:
    """A dictionary and its reasoning features, chosen on the base and the same for the whole run."""

    saved: SavedDictionary
    reasoning: list[int]

    @classmethod
    def load(cls, directory: str) -> "Guidance":
        """
        Raises:
            DictionaryError: no dictionary there, or one without reasoning features.
        """
        saved = load_dictionary(Path(directory))
        reasoning = [feature for kind in REASONING for feature in saved.labels.group(kind)]
        if not reasoning:
            raise DictionaryError(
                f"No feature of the dictionary in {directory} is labelled as one of {' or '.join(REASONING)}: train "
                "one on rollouts that reason, such as instructed ones."
            )
        return cls(saved, reasoning)

    @torch.no_grad()
    def strengths(
        self, model: Any, batch: dict[str, Tensor], wanted: Bool[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows after_each_token"], int]:
        """The share of reasoning features in the activation of all, and how many tokens were read for it.

        Args:
            model: the policy, unwrapped.
            batch: as TRL has it, prompts on the left and completions on the right.
            wanted: rows to read.

        Returns:
            Strengths in [0, 1] at the last token of the prompt and at each of the completion's; 0 where nothing was
            read: in other rows, and behind the end of a completion.
        """
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        first = batch["prompt_ids"].size(1) - 1
        dictionary = self.saved.dictionary.to(ids.device)
        strength = torch.zeros(len(ids), ids.size(1) - first, device=ids.device)
        rows = wanted.to(ids.device).nonzero().squeeze(1)
        rows = rows[mask[rows].sum(dim=1).argsort(stable=True)]
        for part in rows.split(ROWS) if len(rows) else ():
            # Of similar lengths, these rows need less padding on either side than all of the batch.
            begin = first + 1 - int(batch["prompt_mask"][part].sum(dim=1).max())
            end = first + 1 + int(batch["completion_mask"][part].sum(dim=1).max())
            hidden = _hidden(model, self.saved.origin.layer, ids[part, begin:end], mask[part, begin:end])
            features = dictionary.encode(hidden[:, first - begin :].float())
            shares = features[..., self.reasoning].sum(-1) / features.sum(-1).clamp(min=1e-6)
            strength[part, : end - first] = shares * mask[part, first:end]
        return strength, int(mask[rows].sum())


def _hidden(model: Any, layer: str, ids: Tensor, mask: Tensor) -> Float[Tensor, "rows tokens width"]:
    """The output of a layer; the layers behind it are not computed."""
    seen: list[Tensor] = []

    def hook(module: torch.nn.Module, given: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Read

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = base.get_submodule(layer).register_forward_hook(hook)
    try:
        base.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Read:
        pass
    finally:
        handle.remove()
    return seen[0]
