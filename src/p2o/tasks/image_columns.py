"""Images of custom data: the column that has them, paths beside the data file, files that are not there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

from p2o.images import COLUMNS, image_columns, image_key, images_of, is_address, stored_images
from p2o.tasks.layouts import DataError


def beside(dataset: Dataset, file: Path, column: str | None) -> Dataset:
    """The rows of a file, or of a folder, with paths of images as `datasets` stores images; nothing is decoded.

    Args:
        file: beside which relative paths are looked for; in a folder within it.
        column: with the images; None for `image` and `images`.

    Raises:
        DataError: a file that is not there, or neither an image nor a list of images, by row and field.
    """
    for name in [column] if column else image_columns(dataset):
        if name in dataset.column_names:
            dataset = _column_beside(dataset, file, name)
    return dataset


def _column_beside(dataset: Dataset, file: Path, name: str) -> Dataset:
    values = [
        row[name]
        for table in dataset.select_columns([name]).with_format("arrow").iter(100)
        for row in table.to_pylist()
    ]
    if all(map(_is_whole, values)):
        return dataset
    found = [_found(value, file, f"{file}, row {row}, field `{name}`") for row, value in enumerate(values)]
    paths = [path for value in found for path in _paths(value)]
    # What is on the web, or spelled out, the model's processor reads.
    one: Any = Value("string") if any(map(is_address, paths)) else Image()
    kind = List(one) if any(isinstance(value, list) for value in found) else one
    images = Dataset.from_dict({name: found}, features=Features({name: kind}))
    others = dataset.remove_columns([name])
    return concatenate_datasets([others, images], axis=1) if others.column_names else images


def _is_whole(value: Any) -> bool:
    """Whether a row has its images in it, or none."""
    several = value if isinstance(value, list) else [value]
    return all(one is None or (isinstance(one, dict) and one.get("bytes") is not None) for one in several)


def _paths(value: Any) -> list[str]:
    """Paths and addresses among the images of a row."""
    several = value if isinstance(value, list) else [value]
    paths = [one.get("path") if isinstance(one, dict) and one.get("bytes") is None else one for one in several]
    return [path for path in paths if isinstance(path, str)]


def _found(value: Any, file: Path, where: str) -> Any:
    """The images of a row, with the whole paths of files that are there."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_found(one, file, where) for one in value]
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value
    paths = _paths(value)
    if not paths:
        raise DataError(f"{where}: {type(value).__name__}, neither the path of an image nor a list of paths.")
    (path,) = paths
    if is_address(path):
        return path
    whole = (file if file.is_dir() else file.parent) / path
    if not whole.is_file():
        raise DataError(f"{where}: there is no file {whole}.")
    return str(whole.absolute())


def with_image_column(dataset: Dataset, column: str | None, name: str) -> Dataset:
    """The data set with its images in `image` or `images`, where TRL looks for them.

    Args:
        column: that has them; None where they are there.
        name: of the data, for people.

    Raises:
        DataError: no such column.
    """
    if column is None or column in COLUMNS:
        if column is not None and column not in dataset.column_names:
            raise _missing(dataset, column, name)
        return dataset.remove_columns([c for c in image_columns(dataset) if column not in (None, c)])
    if column not in dataset.column_names:
        raise _missing(dataset, column, name)
    dataset = dataset.remove_columns(image_columns(dataset))
    several = isinstance(dataset.features[column], List)
    return dataset.rename_column(column, "images" if several else "image")


def _missing(dataset: Dataset, column: str, name: str) -> DataError:
    return DataError(
        f"{name} has no `{column}` column; it has {', '.join(dataset.column_names) or 'none'}. Name the right one with "
        "--image_column."
    )


def with_stored_images(dataset: Dataset) -> Dataset:
    """Whose rows have images as they are stored, not decoded: all of them are read at once."""
    for name in image_columns(dataset):
        several = isinstance(dataset.features[name], List)
        if isinstance(dataset.features[name].feature if several else dataset.features[name], Image):
            stored: Any = Image(decode=False)
            dataset = dataset.cast_column(name, List(stored) if several else stored)
    return dataset


def image_keys(dataset: Dataset) -> Sequence[list[str]] | None:
    """What the images of each row are told apart by; None where the data set has none."""
    if not image_columns(dataset):
        return None
    return [list(map(image_key, images_of(row))) for row in stored_images(dataset)]
