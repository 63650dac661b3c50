"""Checks of questions with images before any training: blocks and images, files, the model, options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers import ProcessorMixin

from p2o.config import P2OConfig
from p2o.engines.processes import is_sharded
from p2o.images import COLUMNS, image_columns, images_of, is_address, question_prompt, stored_images
from p2o.templates import Prompt


def check_options(dataset: Any, args: P2OConfig, called: list[str]) -> None:
    """
    Args:
        called: "tools", "environments", where there are any.

    Raises:
        ValueError: images together with what does not support them.
    """
    if not image_columns(dataset):
        return
    together = {
        "environments": "environments" in called,
        "rewrite_share": bool(args.rewrite_share),
        "reused_rollouts_per_group": bool(args.reused_rollouts_per_group),
        "dynamic_sampling_rounds": bool(args.dynamic_sampling_rounds),
        "context_distillation=False": not args.context_distillation,
    }
    for name, given in together.items():
        if given:
            raise ValueError(
                f"train_dataset has images, which {name} does not go together with. Leave it out, or remove the column "
                f"{image_columns(dataset)[0]!r}."
            )


def check_rows(dataset: Any, name: str) -> None:
    """
    Args:
        name: of the data set, for messages.

    Raises:
        ValueError: a row whose images are not as many as the blocks that show them, or no files; a prompt that is a
            text, beside images.
    """
    if not isinstance(dataset, Dataset) or not image_columns(dataset):
        return
    prompts = dataset["prompt"] if "prompt" in dataset.column_names else [[]] * len(dataset)
    for row, (prompt, values) in enumerate(zip(prompts, stored_images(dataset), strict=True)):
        try:
            question_prompt({"prompt": prompt, **values})
        except ValueError as error:
            raise ValueError(f"{name} row {row}, field `prompt`: {error}") from None
        for image in images_of(values):
            if (missing := _missing_file(image)) is not None:
                column = next(c for c in reversed(COLUMNS) if c in values)
                raise ValueError(f"{name} row {row}, field `{column}`: there is no file {missing}.")


def gathered_alike(accelerator: Accelerator, train: Any, evaluation: Any, tools: Any) -> bool:
    """Whether TRL may gather images for its table of completions: a process whose rows show none does not take part,
    and the others would wait for it.

    Args:
        evaluation: one data set or several by name; None for none.
        tools: which may return images to some processes only.

    Raises:
        ValueError: images, and sharded weights: those of the part that sees are gathered by all processes or by none.
    """
    several = list(evaluation.values()) if isinstance(evaluation, Mapping) else [evaluation]
    data = [one for one in (train, *several) if one is not None]
    if is_sharded(accelerator) and (names := [name for one in data for name in image_columns(one)]):
        raise ValueError(
            f"The data has images (column {names[0]!r}), and the weights are sharded (FSDP or ZeRO-3): a process whose "
            "rows show none would not take part in gathering them. Train with DDP or ZeRO-2, an adapter for instance."
        )
    return accelerator.num_processes == 1 or not (tools or any(map(_some_without, data)))


def _some_without(dataset: Any) -> bool:
    """Whether a row may have no image."""
    known = isinstance(dataset, Dataset) and bool(image_columns(dataset))
    return not known or not all(map(images_of, stored_images(dataset)))


def _missing_file(image: Any) -> str | None:
    """The path of an image that is not there; None for one that is, or that has another address."""
    path = image if isinstance(image, str) else None
    if isinstance(image, Mapping) and image.get("bytes") is None:
        path = image.get("path")
    if path is None or is_address(path) or Path(path).is_file():
        return None
    return path


@dataclass(frozen=True)
class ImagePrompts:
    """The prompts of a data set with images, which are decoded when they are read, a few at a time.

    Args:
        name: of the data set, for messages.
    """

    dataset: Any
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def tokens(self, rows: range, tokenize: Callable[[list[Prompt]], list[list[int]]]) -> list[list[int]]:
        """Tokens of the prompts of these rows.

        Raises:
            ValueError: an image that cannot be read, or that the model's processor refuses, by row.
        """
        prompts = [self._prompt(row) for row in rows]
        try:
            return tokenize(prompts)
        except (ValueError, OSError):
            for row, prompt in zip(rows, prompts, strict=True):
                try:
                    tokenize([prompt])
                except (ValueError, OSError) as error:
                    raise ValueError(f"{self._where(row)}: the model's processor refuses it: {error}") from None
            raise

    def _prompt(self, row: int) -> Prompt:
        try:
            return question_prompt(self.dataset[row])
        except OSError as error:  # Pillow's UnidentifiedImageError is one
            raise ValueError(f"{self._where(row)}: it cannot be read: {error}") from None

    def _where(self, row: int) -> str:
        return f"{self.name} row {row}, field `{image_columns(self.dataset)[-1]}`"


def check_model(processing_class: Any, data: Mapping[str, Any]) -> None:
    """
    Args:
        data: sets by their names in messages.

    Raises:
        ValueError: images, and a model that sees none.
    """
    if isinstance(processing_class, ProcessorMixin) and getattr(processing_class, "image_processor", None) is not None:
        return
    for name, dataset in data.items():
        if columns := image_columns(dataset):
            raise ValueError(
                f"{name} has images (column {columns[0]!r}), and the model reads texts only: its processor is a "
                f"{type(processing_class).__name__}. Train a vision-language model, or remove the column."
            )
