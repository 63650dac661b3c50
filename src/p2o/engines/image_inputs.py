"""What a vision model reads of images beside tokens: pixels, grids, types of tokens; by rows of a batch.

The layouts are TRL's, which differ by model: a tensor with a row for each image, for each patch of each image, or for
each row of the batch, and a list or tensor with a type for each token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from p2o.images import COLUMNS, images_in, images_of
from p2o.templates import Prompt

TYPES = ("token_type_ids", "mm_token_type_ids")
PIXELS = (
    *("pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids"),
    *("num_tiles", "num_images"),
)
"""Names in a batch, and arguments of TRL's forward pass."""

AT_ONCE = 16  # prompts with images that are tokenized together: their pixels are held until they are counted

Fields = dict[str, Any]


def fields_of(batch: Mapping[str, Any]) -> Fields:
    """What a batch, or the arguments of a pass, have of images."""
    return {name: batch[name] for name in (*TYPES, *PIXELS) if batch.get(name) is not None}


def counted(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch, or arguments of a pass. Where pixels have a row for each of its rows, padded to the most images of one
    (Idefics), `num_images` becomes 1 for a row that shows any and 0 for others.

    TRL takes pixels to have a row for each image where they have as many rows as there are images, which may be by
    chance.
    """
    pixels, mask = batch.get("pixel_values"), batch.get("pixel_attention_mask")
    if not isinstance(pixels, Tensor) or pixels.dim() != 5 or mask is None:
        return batch
    return {**batch, "num_images": mask.flatten(1).any(dim=1).long().tolist()}


def countable(conversations: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of TRL's loop over calls of tools, whose last are fields; pixels as tensors, which TRL splits by rows.

    Processors without torchvision return arrays.
    """
    *others, fields = conversations
    arrays = {n: v for n, v in fields.items() if n in PIXELS and not isinstance(v, Tensor)}
    return *others, counted({**fields, **{name: torch.tensor(np.array(array)) for name, array in arrays.items()}})


def select(fields: Mapping[str, Any], rows: Sequence[int]) -> Fields:
    """The part that belongs to these rows. Without any image among them, what is left are types of tokens."""
    split = split_pixel_values_by_grid(dict(fields))
    chosen = {name: _rows(values, rows) for name, values in split.items()}
    if "num_images" in chosen and not any(chosen["num_images"]):
        return {name: values for name, values in chosen.items() if name in TYPES}
    return dict(unsplit_pixel_values_by_grid(chosen))


def _rows(values: Any, rows: Sequence[int]) -> Any:
    return [values[row] for row in rows] if isinstance(values, list) else values[list(rows)]


def of_rows(
    rows: Tensor | None, ids: Tensor, mask: Tensor, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Arguments of a forward pass over some rows of a batch; None for all of them."""
    if rows is None:
        return ids, mask, arguments
    if fields := fields_of(arguments):
        arguments = {n: v for n, v in arguments.items() if n not in fields} | select(fields, rows.tolist())
    return ids[rows], mask[rows], arguments


def in_passes(forward: Callable[..., Any], model: Any, ids: Tensor, mask: Tensor, *args: Any, **arguments: Any) -> Any:
    """TRL's forward pass. Where it would pass rows without any image together, they are passed without pixels.

    Models do not take empty tensors of pixels, as TRL hands them over.
    """
    arguments = counted(arguments)
    counts = arguments.get("num_images")
    size = arguments.get("batch_size") or len(ids)
    starts = range(0, len(ids), size)
    if counts is None or all(any(counts[start : start + size]) for start in starts):
        return forward(model, ids, mask, *args, **arguments)
    fields = fields_of(arguments)
    others = {name: value for name, value in arguments.items() if name not in fields}
    done = []
    for start in starts:
        rows = range(start, min(start + size, len(ids)))
        part = slice(rows.start, rows.stop)
        done.append(forward(model, ids[part], mask[part], *args, **others, **select(fields, rows)))
    logps, entropies, auxiliary = zip(*done, strict=True)
    return (
        torch.cat(logps),
        None if entropies[0] is None else torch.cat(entropies),
        None if auxiliary[0] is None else torch.stack(auxiliary).mean(),
    )


def in_context(fields: Mapping[str, Any], bare_ids: Tensor, context_ids: Tensor) -> Fields:
    """Fields of the same rows behind other prompts, which show the same images.

    Args:
        bare_ids: tokens of the prompts that the fields are of, (rows, prompt).
        context_ids: tokens of the other prompts, (rows, context).
    """
    moved = dict(fields)
    for name in TYPES:
        if name not in fields:
            continue
        before = fields[name][:, : bare_ids.size(1)]
        types = torch.zeros_like(context_ids)
        for kind in before.unique().tolist():
            if kind:
                types[torch.isin(context_ids, bare_ids[before == kind].unique())] = kind
        moved[name] = torch.cat([types, fields[name][:, bare_ids.size(1) :]], dim=1)  # a tool may return images
    return moved


def with_empty_rows(fields: Mapping[str, Any], count: int) -> Fields:
    """With so many rows behind the others that show no image."""
    if not count:
        return dict(fields)
    more: Fields = {name: [*fields[name], *[0] * count] for name in ("num_images", "num_tiles") if name in fields}
    by_row = list(TYPES)
    if not fields.keys() & {"image_grid_thw", "image_position_ids", "spatial_shapes", "num_tiles"}:
        pixels, shown = fields.get("pixel_values"), fields.get("num_images", [])
        by_row += ["pixel_values", "pixel_attention_mask"] if pixels is not None and len(pixels) != sum(shown) else []
    more |= {name: torch.cat([fields[name], _zeros(fields[name], count)]) for name in by_row if name in fields}
    return {**fields, **more}


def _zeros(like: Tensor, rows: int) -> Tensor:
    return like.new_zeros((rows, *like.shape[1:]))


def with_lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a batch of which some have no image: all get a column `images`, an empty list for none, as TRL wants it.

    Rows that all have images, or no column for them, stay as they are.
    """
    if not rows or not any(name in rows[0] for name in COLUMNS) or all(map(images_of, rows)):
        return rows
    return [{**row, "images": images_of(row)} for row in rows]


def tokens(
    tokenize: Callable[[list[Prompt]], Any], prompts: Sequence[Prompt], *, together: bool = False
) -> list[list[int]]:
    """Tokens of prompts; of those with images a few at a time, whose pixels are dropped.

    Args:
        tokenize: TRL's: tokens, images and pixels of some prompts.
        together: all at once.
    """
    size = AT_ONCE if not together and any(map(images_in, prompts)) else max(len(prompts), 1)
    return [ids for start in range(0, len(prompts), size) for ids in tokenize(list(prompts[start : start + size]))[0]]


def lists_of_images(generated: tuple[Any, ...]) -> tuple[Any, ...]:
    """What TRL's `_generate` returns, with an empty list in the place of None for a row without images.

    A processor does not take None.
    """
    *others, images, of_tools = generated
    return *others, images and [of_row or [] for of_row in images], of_tools


def seen(tokenize: Callable[[list[Prompt]], Any], prompts: Sequence[Prompt]) -> tuple[Any, Fields]:
    """Images and fields of prompts, as TRL's `_generate_single_turn` takes them; (None, {}) without images."""
    if not any(map(images_in, prompts)):
        return None, {}
    _, images, fields = tokenize(list(prompts))
    return images, fields


def beside(contexts: Sequence[Any], images: Any) -> Any:
    """Images of contexts behind which the first one is repeated; None where there are no images."""
    return images and [*images, *[images[0]] * (len(contexts) - len(images))]


def fill(contexts: Sequence[Any], images: Any, fields: Any) -> tuple[Any, Fields]:
    """Images, see [`beside`], and fields of contexts, as TRL's `_generate_single_turn` takes them."""
    return beside(contexts, images), fields or {}


def shown(images: Any, fields: Mapping[str, Any]) -> Fields:
    """Fields as TRL's `_generate_single_turn` takes them; where no row shows an image, those that are left."""
    return dict(fields) if images and any(images) else {n: v for n, v in fields.items() if n in TYPES}


def sampled_from(
    rows: Sequence[int], contexts: Sequence[list[int]], images: Any, fields: Mapping[str, Any]
) -> tuple[list[list[int]], Any, Fields]:
    """What these rows of a batch are sampled from: contexts, images and fields, as TRL has them of all rows."""
    chosen = [contexts[row] for row in rows]
    if len(rows) == len(contexts) or not fields:
        return chosen, images and [images[row] for row in rows], dict(fields)
    counted = {**fields, "num_images": [len(of_row or ()) for of_row in images]} if images else dict(fields)
    part = select(counted, rows)
    part.pop("num_images", None)
    return chosen, images and [images[row] for row in rows], part
