"""Own data: from a hub name, files, folders or a saved dataset to TRL's columns `prompt` and `solution`."""

import difflib
import glob
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from p2o.tasks.checks import Report, check_questions
from p2o.templates import Prompt, last_user_message

FILE_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class DataError(ValueError):
    """Data that cannot be used: what is wrong, where, and what to do."""


def load_splits(name: str, config: str | None = None, revision: str | None = None) -> DatasetDict:
    """All splits of a data set.

    Args:
        name: a .json, .jsonl, .csv or .parquet file, compressed or not, or a pattern such as `data/*.jsonl`; a folder
            of such files, in the hub's layout; a directory that `save_to_disk` wrote; a name on the hub.
        config: configuration of a data set on the hub.
        revision: commit, tag or branch on the hub.

    Raises:
        DataError: there is none, or it cannot be read; files in JSON are searched for the rows that are at fault.
    """
    path = Path(name)
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    try:
        if suffix in FILE_FORMATS:
            if not glob.glob(name):
                raise DataError(f"The dataset file {name} does not exist.")
            if suffix == path.suffix and suffix != ".parquet":
                for file in glob.glob(name):
                    Path(file).read_bytes().decode()  # the loader lets single bytes through that are not UTF-8
            return load_dataset(FILE_FORMATS[suffix], data_files=name)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(name)
            return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
        return load_dataset(name, config, revision=None if path.exists() else revision)
    except DataError:
        raise
    except Exception as error:  # whatever a loader of any format raises is bad input here
        files = [path, *path.rglob("*")] if path.is_dir() else map(Path, sorted(glob.glob(name)))
        faults = _unreadable_rows(files) or [str(error) or type(error).__name__]
        raise DataError("\n".join([f"Cannot load the dataset {name}: {faults[0]}", *faults[1:]])) from error


def _unreadable_rows(files: Iterable[Path], most: int = 5) -> list[str]:
    """The first rows of JSON Lines, and of CSV as far as bytes go, that no loader can read."""
    faults = []
    for file in sorted(files):
        if file.suffix not in (".jsonl", ".json", ".csv") or not file.is_file():
            continue
        raw = file.read_bytes()
        if not raw.strip():
            faults.append(f"{file} is empty.")
        # An array over several lines is not told by rows.
        lines = raw.splitlines() if file.suffix != ".json" or raw.lstrip()[:1] == b"{" else []
        for row, line in enumerate(line for line in lines if line.strip()):
            where = f"{file}, row {row - (file.suffix == '.csv')}"
            try:
                text = line.decode()
                if file.suffix != ".csv":
                    json.dumps(json.loads(text), ensure_ascii=False).encode()
            except UnicodeDecodeError as error:
                faults.append(f"{where}: not UTF-8 (byte {line[error.start]:#04x}, {error.start} bytes into the line).")
            except UnicodeEncodeError:
                faults.append(f"{where}: half of a surrogate pair (\\ud8xx), which is no character.")
            except json.JSONDecodeError as error:
                faults.append(f"{where}: not valid JSON ({error}).")
            if len(faults) == most:
                return faults
    return faults


def questions(
    dataset: Dataset,
    *,
    prompt_column: str = "prompt",
    solution_column: str = "solution",
    system_prompt: str | None = None,
    answer_format: str | None = None,
    as_chat: bool = False,
    too_long: Callable[[list[Prompt]], dict[int, int]] | None = None,
    unparsable: Callable[[list[str]], list[int]] | None = None,
    strict: bool = False,
    name: str = "data",
) -> tuple[Dataset, Report]:
    """The data set with TRL's columns, checked.

    A prompt that is text stays text, as in TRL: the model sees it as it is, without its chat template. With a
    `system_prompt`, with `as_chat`, or beside prompts that are chats, it becomes a chat of one user message.

    Args:
        dataset: as loaded. Its other columns stay; a `prompt` or `solution` of another meaning gives way.
        prompt_column: the questions, texts or chats.
        solution_column: the gold answers, texts or numbers. Without a column `solution` there are none.
        system_prompt: goes in front of chats that have none of their own.
        answer_format: goes behind the last user message, after a blank line.
        as_chat: whether texts become chats.
        too_long, unparsable, strict, name: as in [`check_questions`].

    Returns:
        The rows that passed, in their order, and the report. When the report stops, the data set is not to be used.

    Raises:
        DataError: no such column.
    """
    columns = dataset.column_names
    for option, column in (("prompt_column", prompt_column), ("solution_column", solution_column)):
        if column not in columns and (option, column) != ("solution_column", "solution"):
            near = difflib.get_close_matches(column, columns, 1)
            raise DataError(
                f"{name} has no `{column}` column; it has {', '.join(columns) or 'none'}. Name the right one with "
                f"--{option}{f', perhaps {near[0]}' if near else ''}."
            )
    prompts = _column(dataset, prompt_column)
    as_chat = as_chat or bool(system_prompt) or len({type(p) for p in prompts if isinstance(p, str | list)}) > 1
    prompts = [_formatted(prompt, system_prompt, answer_format, as_chat) for prompt in prompts]
    notes: tuple[str, ...] = ()
    solutions = None
    if solution_column in columns:
        given = _column(dataset, solution_column)
        solutions = [_as_text(solution) for solution in given]
        numbers = sum(isinstance(s, str) and not isinstance(g, str) for g, s in zip(given, solutions, strict=True))
        if numbers:
            notes = (f"{numbers} solutions are numbers and became texts.",)
    else:
        notes = ("There is no `solution` column: rewards and reflection have no gold answers.",)
    report = check_questions(
        prompts, solutions, too_long=too_long, unparsable=unparsable, strict=strict, name=name, notes=notes
    )
    if report.stops:
        return dataset, report
    made = {"prompt": prompts, **({} if solutions is None else {"solution": solutions})}
    made = {column: [values[row] for row in report.kept] for column, values in made.items()}
    others = [column for column in columns if column not in made]
    if not others:  # a data set without any column has no rows either
        return Dataset.from_dict(made), report
    kept = dataset.select(report.kept).select_columns(others)
    for column, values in made.items():
        kept = kept.add_column(column, values)
    return kept, report


def _column(dataset: Dataset, name: str) -> list[Any]:
    return dataset.select_columns([name])[:][name]


def _formatted(prompt: Any, system_prompt: str | None, answer_format: str | None, as_chat: bool) -> Any:
    """The prompt that is trained on; one that is not sound stays as it is, for the checks to name."""
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


def _as_text(solution: Any) -> Any:
    """A number as text; pandas reads whole numbers beside an empty cell as floats, and the cell as NaN."""
    if isinstance(solution, bool) or not isinstance(solution, int | float):
        return solution
    if isinstance(solution, float) and not math.isfinite(solution):
        return None
    return str(int(solution)) if solution == int(solution) else repr(solution)
