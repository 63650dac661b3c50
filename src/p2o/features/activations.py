"""Residual-stream activations of a `transformers` model: read at the output of a layer, or put in their place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from p2o.features.autoencoder import DictionaryError
from p2o.features.quality import Splice
from p2o.features.shards import Passage

DEPTH = 4 / 7  # of the default layer: arXiv 2605.28388 reads layer 16 of 28


def layer_names(model: PreTrainedModel) -> list[str]:
    """Names of the modules whose outputs are the residual stream after each layer, in order."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name in sorted(found, key=len):
        if len(model.get_submodule(name)) == count:
            return [f"{name}.{number}" for number in range(count)]
    return []


def find_layer(model: PreTrainedModel, wanted: str | None) -> str:
    """The module's name of a layer.

    Args:
        wanted: its number, counted from 0, or the name of a module; None for the one at 4/7 of the depth.

    Raises:
        DictionaryError: the model has no such layer; the message names those it has.
    """
    names = layer_names(model)
    if wanted is None and names:
        return names[int(len(names) * DEPTH)]
    if wanted is not None and wanted.isdigit() and int(wanted) < len(names):
        return names[int(wanted)]
    if wanted is not None and not wanted.isdigit() and wanted in dict(model.named_modules()):
        return wanted
    has = f"its layers are 0 to {len(names) - 1} ({names[0]} to {names[-1]})" if names else "name one of its modules"
    raise DictionaryError(f"{model.name_or_path} has no layer {wanted}: {has}. Choose one with --layer.")


@contextmanager
def _hooked(model: PreTrainedModel, layer: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside, the layer's output goes through `change`, and becomes what that returns, unless None."""

    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = change(hidden)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def read_activations(
    model: PreTrainedModel, layer: str, passages: Sequence[Passage], batch_size: int
) -> list[Float[Tensor, "tokens width"]]:
    """Activations of the `ids` of each passage, float32 on the CPU.

    Args:
        layer: a module's name, by [`find_layer`].
        batch_size: passages that the model reads at once, which are sorted by length.
    """
    found: dict[int, Tensor] = {}
    order = sorted(range(len(passages)), key=lambda number: len(passages[number].input_ids))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        rows = [passages[number].input_ids for number in numbers]
        width = max(map(len, rows))
        # Padding is behind, where what a causal model reads before it does not see it.
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        hidden = _output(model, layer, ids, mask)
        for row, number in enumerate(numbers):
            first = len(passages[number].context)
            found[number] = hidden[row, first : first + len(passages[number].ids)].float().cpu()
    return [found[number] for number in range(len(passages))]


def _output(model: PreTrainedModel, layer: str, ids: Tensor, mask: Tensor) -> Float[Tensor, "rows tokens width"]:
    seen: list[Tensor] = []
    with _hooked(model, layer, seen.append):
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    if not seen or not isinstance(seen[-1], Tensor) or seen[-1].ndim != 3 or seen[-1].shape[:2] != ids.shape:
        raise DictionaryError(f"What {layer} returns is no residual stream: name a whole layer with --layer.")
    return seen[-1]


@torch.no_grad()
def completion_loss(model: PreTrainedModel, layer: str, passage: Passage, splice: Splice | None) -> float:
    """The model's mean loss on the completion of a passage, in nats a token.

    Args:
        splice: what is put in place of the activations of the passage's `ids`; None leaves them.
    """
    first = len(passage.context)

    def change(hidden: Tensor) -> Tensor | None:
        if splice is None:
            return None
        changed = hidden.clone()
        changed[0, first:] = splice(hidden[0, first:].float().cpu()).to(hidden)
        return changed

    ids = torch.tensor([passage.input_ids], device=model.device)
    with _hooked(model, layer, change):
        logits = model(input_ids=ids, use_cache=False).logits[0, first:-1].float()
    return float(nn.functional.cross_entropy(logits, ids[0, first + 1 :]))
