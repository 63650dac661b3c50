"""Loads custom data from a hub name, files, folders or a saved dataset into TRL's columns `prompt` and `solution`."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.data_files import DataFilesDict, get_data_patterns

from p2o.images import COLUMNS
from p2o.tasks.checks import Report, check_questions
from p2o.tasks.files import FILE_FORMATS, as_dataset, check_is_data_file, columns_of, read_file, suffix_of
from p2o.tasks.image_columns import beside, image_keys, with_image_column
from p2o.tasks.layouts import SOLUTION, DataError, read_columns
from p2o.templates import last_user_message

READ_HERE = ("json", "csv")
# TRL passes these to reward functions itself: a column of that name fails the first batch or is lost.
TAKEN = (
    "prompts",
    "completions",
    "completion",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)


def load_splits(
    name: str, config: str | None = None, revision: str | None = None, image_column: str | None = None
) -> DatasetDict:
    """All splits of a data set. Relative paths of images in a file are those beside it.

    Args:
        name: a .json, .jsonl, .csv, .tsv or .parquet file, compressed or not, or a pattern such as `data/*.jsonl`; a
            folder of such files, in the hub's layout; a directory that `save_to_disk` wrote; a name on the hub.
        config: configuration of a data set on the hub.
        revision: commit, tag or branch on the hub.
        image_column: column with images; None for `image` and `images`.

    Raises:
        DataError: it does not exist or cannot be read; for JSON and CSV files the faulty rows are named. An image that
            is not there, by file, row and field.
    """
    path = Path(name)
    suffix = suffix_of(path)
    try:
        if "://" not in name and not path.is_dir() and (suffix in FILE_FORMATS or path.is_file()):
            files = [Path(file) for file in sorted(glob.glob(name))] or ([path] if path.is_file() else [])
            if not files:
                raise DataError(f"The dataset file {name} does not exist.")
            if suffix not in FILE_FORMATS:
                known = ", ".join(FILE_FORMATS)
                raise DataError(f"The dataset file {name} has an unsupported format; supported are {known}.")
            return _read({"train": files}, FILE_FORMATS[suffix], image_column)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(name)
            splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
            return DatasetDict({split: beside(data, path, image_column) for split, data in splits.items()})
        if path.is_dir():
            return _folder(path, config, image_column)
        return load_dataset(name, config, revision=revision)
    except DataError:
        raise
    except Exception as error:  # whatever a loader of any format raises is bad input here
        raise DataError(f"Cannot load the dataset {name}: {str(error) or type(error).__name__}") from error


def _folder(path: Path, config: str | None, image_column: str | None) -> DatasetDict:
    """A folder in the hub's layout, where file names determine the splits; or of images, with their `metadata`."""
    found = [file for file in sorted(path.rglob("*")) if suffix_of(file) in FILE_FORMATS and file.is_file()]
    for file in found:
        if file.name not in ("dataset_infos.json", "dataset_info.json"):
            check_is_data_file(file)
    if not found:
        raise DataError(f"The folder {path} contains no file in a supported format ({', '.join(FILE_FORMATS)}).")
    builder = load_dataset_builder(str(path), config)
    data_files = builder.config.data_files or {}
    if type(builder).__name__ == "ImageFolder" and any(file.stem != "metadata" for file in found):
        # Images that the data refers to: `datasets` takes them for the data where there are more of them.
        patterns = get_data_patterns(str(path))
        suffixes = sorted({file.suffix for file in found})
        data_files = DataFilesDict.from_patterns(patterns, base_path=str(path), allowed_extensions=suffixes)
    splits = {str(split): [Path(file) for file in files] for split, files in data_files.items() if files}
    form = FILE_FORMATS[suffix_of(found[0])]
    if all(suffix_of(file) in FILE_FORMATS for files in splits.values() for file in files):
        if form in READ_HERE or data_files is not builder.config.data_files:
            return _read(splits, form, image_column)
        loaded = load_dataset(str(path), config)
        return DatasetDict({split: beside(data, path, image_column) for split, data in loaded.items()})
    return load_dataset(str(path), config)


def _read(splits: dict[str, list[Path]], form: str, image_column: str | None) -> DatasetDict:
    """Reads and concatenates the files of every split."""
    if form not in READ_HERE:
        for file in (file for files in splits.values() for file in files):
            check_is_data_file(file)
        loaded = load_dataset(form, data_files={split: [str(f) for f in files] for split, files in splits.items()})
        columns = {image_column, *COLUMNS}
        if not any(columns & set(data.column_names) for data in loaded.values()):
            return loaded
    parts: dict[str, list[Dataset]] = {}
    for split, files in splits.items():
        for file in files:
            read = read_file(file) if form in READ_HERE else load_dataset(form, data_files=str(file))
            for inner, dataset in read.items():
                inner = inner if form in READ_HERE and inner else split
                parts.setdefault(inner, []).append(beside(dataset, file, image_column))
    return DatasetDict({split: _joined(datasets) for split, datasets in parts.items()})


def _joined(datasets: list[Dataset]) -> Dataset:
    """Concatenates data sets whose columns may have different types."""
    if len(datasets) == 1:
        return datasets[0]
    if len({str(dataset.features) for dataset in datasets}) == 1:
        return concatenate_datasets(datasets)
    return as_dataset(columns_of([row for dataset in datasets for row in dataset]))


def questions(
    dataset: Dataset,
    *,
    prompt_column: str = "prompt",
    solution_column: str = "solution",
    system_prompt: str | None = None,
    answer_format: str | None = None,
    as_chat: bool = False,
    cut_last_answer: bool | None = None,
    image_column: str | None = None,
    name: str = "data",
    **checks: Any,
) -> tuple[Dataset, Report]:
    """The data set with TRL's columns, checked.

    A text prompt stays text, as in TRL, and is not passed through the chat template. With a `system_prompt`, with
    `as_chat`, with images, or if other prompts are chats, it becomes a chat of one user message.

    Args:
        dataset: as loaded. Its other columns are kept, except a `prompt` or `solution` column that is not used, and
            columns with the names of arguments that TRL passes to reward functions.
        prompt_column: the questions, texts or chats; `column.part` for a part of a column of mappings.
        solution_column: gold answers, texts or numbers, in the same way. Without it and without one of the layouts in
            [`p2o.tasks.layouts`] there are none.
        system_prompt: prepended to chats that have no system prompt.
        answer_format: appended to the last user message, after a blank line.
        as_chat: whether texts become chats.
        cut_last_answer: for a chat that ends with an assistant message: True removes the message, False lets the model
            continue it, None makes it a fault.
        image_column: column with images, which becomes `image` or `images`; None for these.
        name, checks: of the data, for people; for [`check_questions`].

    Returns:
        The rows that passed, in their order, and the report. If the report stops the run, do not use the data.

    Raises:
        DataError: no such column.
    """
    images = image_keys(dataset := with_image_column(dataset, image_column, name))
    found = read_columns(dataset, prompt_column, solution_column, name)
    prompts, notes = found.prompts, list(found.notes)
    if cut_last_answer:
        prompts = [_without_last_answer(prompt) for prompt in prompts]
        if count := sum(new is not old for new, old in zip(prompts, found.prompts, strict=True)):
            notes.append(f"{count} chats ended with the assistant's answer, which was removed.")
    kinds = {type(prompt) for prompt in prompts if isinstance(prompt, str | list) and prompt}
    as_chat = as_chat or bool(system_prompt) or len(kinds) > 1 or any(images or ())
    prompts = [_formatted(prompt, system_prompt, answer_format, as_chat) for prompt in prompts]
    if taken := [column for column in dataset.column_names if column in TAKEN]:
        notes.append(
            f"Dropped columns {', '.join(taken)}: TRL passes arguments of these names to reward functions itself."
        )
    report = check_questions(
        prompts, found.solutions, images, answered=cut_last_answer is False, name=name, notes=tuple(notes), **checks
    )
    if report.stops:
        return dataset, report
    made = {"prompt": prompts, **({} if found.solutions is None else {SOLUTION: found.solutions})}
    others = [column for column in dataset.column_names if column not in made and column not in taken]
    return _with_columns(dataset, others, made, report.kept), report


def _with_columns(dataset: Dataset, others: list[str], made: dict[str, list[Any]], kept: Sequence[int]) -> Dataset:
    """The kept rows, with these other columns of the data set and the new ones."""
    mapped = as_dataset({column: [values[row] for row in kept] for column, values in made.items()})
    if not others:
        return mapped
    return concatenate_datasets([dataset.select(kept).select_columns(others), mapped], axis=1)


def _without_last_answer(prompt: Any) -> Any:
    """The prompt, without the assistant messages at its end if it is a chat."""
    if not isinstance(prompt, list):
        return prompt
    end = len(prompt)
    while end and isinstance(prompt[end - 1], dict) and prompt[end - 1].get("role") == "assistant":
        end -= 1
    return prompt[:end] if 0 < end < len(prompt) else prompt


def _formatted(prompt: Any, system_prompt: str | None, answer_format: str | None, as_chat: bool) -> Any:
    """The prompt to train on; a malformed one is unchanged, so that the checks report it."""
    if isinstance(prompt, str) and prompt.strip():
        if answer_format:
            prompt = f"{prompt.rstrip()}\n\n{answer_format}"
        if not as_chat:
            return prompt
        chat = [{"role": "user", "content": prompt}]
    else:
        try:
            last = last_user_message(prompt)
            if last is None:
                return prompt
            chat = [dict(message) for message in prompt]
            if answer_format:
                content = chat[last]["content"]
                if isinstance(content, str):
                    chat[last]["content"] = f"{content.rstrip()}\n\n{answer_format}" if content.strip() else content
                else:
                    chat[last]["content"] = [*content, {"type": "text", "text": answer_format}]
        except (ValueError, KeyError, TypeError):
            return prompt
    if system_prompt and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": system_prompt})
    return chat
