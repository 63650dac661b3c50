"""Reads questions and gold answers from columns of any name, from parts of columns, and from known layouts.

| layout | question | gold answer |
|---|---|---|
| TRL | `prompt` | `solution` |
| verl, DAPO | `prompt`, a chat | `reward_model.ground_truth` |
| Alpaca | `instruction`, and `input` if present | `output` |
| ShareGPT | `conversations` of `from` and `value` | |
| chats | `messages` | |

A layout applies if the first row's column is missing and no column is named. Every conversion is counted and reported.
"""

import ast
import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from p2o.tasks.files import is_chat, number_text

PROMPT, SOLUTION = "prompt", "solution"
USUAL = {
    PROMPT: ("question", "problem", "query", "instruction", "input", "messages", "conversations"),
    SOLUTION: ("answer", "final_answer", "gold", "target", "output", "ground_truth", "label", "expected_answer"),
}
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "observation": "tool"}
TAKEN_KEYS = ("role", "content", "from", "value")
# The last line of GSM8K's worked answers.
_FINAL_LINE = re.compile(r"(?:\A|\n)[ \t]*####[ \t]*(\S[^\n]*?)\s*\Z")


class DataError(ValueError):
    """Data that cannot be used: what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Columns:
    """The questions and gold answers of a data set.

    Args:
        prompts: texts or chats, one per row; values that are neither are kept as they were.
        solutions: texts in the same way; None if there is no such column.
        notes: which values were converted, and how.
    """

    prompts: list[Any]
    solutions: list[Any] | None
    notes: tuple[str, ...]


def read_columns(dataset: Dataset, prompt_column: str, solution_column: str, name: str) -> Columns:
    """Questions and gold answers of a data set.

    Args:
        dataset: as loaded.
        prompt_column, solution_column: as in [`p2o.tasks.loading.questions`].
        name: of the data, for people.

    Raises:
        DataError: no such column, or no such part of one.
    """
    notes: list[str] = []
    names = dataset.column_names
    prompts = _prompts(dataset, prompt_column, name, notes)
    if solution_column != SOLUTION or SOLUTION in names:
        solutions = _values(dataset, solution_column, SOLUTION, name)
    elif "reward_model" in names and any(isinstance(v, dict) and "ground_truth" in v for v in dataset["reward_model"]):
        solutions = _values(dataset, "reward_model.ground_truth", SOLUTION, name)
        notes.append("Gold answers: `reward_model.ground_truth`, as in verl's layout.")
    elif {"instruction", "output"} <= set(names) and prompt_column in (PROMPT, "instruction"):
        solutions = _values(dataset, "output", SOLUTION, name)
        notes.append("Gold answers: `output`, as in Alpaca's layout.")
    else:
        usual = _usual(names, SOLUTION)
        hint = f" (perhaps --solution_column {usual})" if usual else ""
        notes.append(f"No `solution` column{hint}: rewards and reflection have no gold answers.")
        return Columns(_read(prompts, chat_of, "prompts", notes), None, tuple(notes))
    prompts = _read(prompts, chat_of, "prompts", notes)
    return Columns(prompts, _read(solutions, gold_of, "solutions", notes), tuple(notes))


def _prompts(dataset: Dataset, column: str, name: str, notes: list[str]) -> list[Any]:
    names = set(dataset.column_names)
    if column != PROMPT or PROMPT in names:
        return _values(dataset, column, PROMPT, name)
    if {"instruction", "output"} <= names:
        notes.append("Questions: `instruction` followed by `input`, as in Alpaca's layout.")
        asked = _values(dataset, "instruction", PROMPT, name)
        given = _values(dataset, "input", PROMPT, name) if "input" in names else [None] * len(asked)
        return [
            f"{a}\n\n{i}" if isinstance(a, str) and a.strip() and isinstance(i, str) and i.strip() else a
            for a, i in zip(asked, given, strict=True)
        ]
    for chats in ("conversations", "messages"):
        if chats in names and any(map(is_chat, dataset[chats])):
            notes.append(f"Questions: the chats in `{chats}`.")
            return _values(dataset, chats, PROMPT, name)
    return _values(dataset, column, PROMPT, name)


def _values(dataset: Dataset, column: str, what: str, name: str) -> list[Any]:
    """The values of a column, or of `column.part` where the column holds mappings."""
    names = dataset.column_names
    first, *path = [column] if column in names else column.split(".")
    if first not in names:
        option = f"--{what}_column"
        near = next(iter(difflib.get_close_matches(column, names, 1)), None) or _usual(names, what)
        hint = f", perhaps {near}" if near else ""
        raise DataError(
            f"{name} has no `{column}` column; it has {', '.join(names) or 'none'}. Name the right one with "
            f"{option}{hint}."
        )
    values = list(dataset.select_columns([first])[:][first])
    for depth, part in enumerate(path):
        values = [_mapping(value) for value in values]
        if not any(isinstance(value, dict) and part in value for value in values):
            parts = dict.fromkeys(key for value in values if isinstance(value, dict) for key in value)
            where = ".".join([first, *path[:depth]])
            raise DataError(
                f"{name}: `{where}` has no part `{part}`; "
                + (f"it has {', '.join(parts)}." if parts else "it holds no mappings.")
                + f" Name the right one with --{what}_column."
            )
        values = [value.get(part) if isinstance(value, dict) else None for value in values]
    return values


def part_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of `column.part`, in one row; None if absent."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = _mapping(value)
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _mapping(value: Any) -> Any:
    """A mapping that is serialized as text, parsed; anything else unchanged."""
    return (_loads(value) or value) if isinstance(value, str) and value[:1] == "{" else value


def _usual(names: Sequence[str], what: str) -> str | None:
    """The first column with a usual name, or None."""
    return next((column for column in USUAL[what] if column in names), None)


def _read(values: list[Any], read: Callable[[Any], tuple[Any, str]], what: str, notes: list[str]) -> list[Any]:
    """The values converted by `read`; each kind of conversion is added to the notes with its count."""
    found = [read(value) for value in values]
    for done, count in Counter(done for _, done in found if done).items():
        notes.append(f"{count} {what} {done}.")
    return [value for value, _ in found]


# -- single values -----------------------------------------------------------------------------------------------------


def chat_of(value: Any) -> tuple[Any, str]:
    """A prompt in TRL's layout, and how it was converted ("" if it was not)."""
    done = ""
    if isinstance(value, bytes):
        value, done = _utf8(value), "were decoded from bytes"
    if isinstance(value, str):
        loaded = _loads(value) if re.match(r"\s*[\[{]", value) and ("content" in value or "value" in value) else None
        if not (is_chat(loaded) or is_chat([loaded])):
            return value, done
        value, done = loaded, "were chats serialized as text: parsed"
    if is_chat([value]):
        value, done = [value], done or "were single messages: wrapped into chats"
    elif isinstance(value, list) and len(value) == 1 and is_chat(value[0]):
        value, done = value[0], done or "were chats in a one-element list: unwrapped"
    if not is_chat(value):
        return value, done
    chat = []
    for message in value:
        if not isinstance(message.get("role"), str) or "content" not in message:
            role, content = ROLES.get(message["from"], message["from"]), message["value"]
            message = {"role": role, "content": content, **{k: v for k, v in message.items() if k not in TAKEN_KEYS}}
            done = done or "used `from`/`value`: converted to `role`/`content`"
        # Arrow gives every message the keys of all others, and templates ask whether `tool_calls` is there.
        chat.append({key: item for key, item in message.items() if item is not None or key in ("role", "content")})
    return chat, done


def gold_of(value: Any) -> tuple[Any, str]:
    """A gold answer as text where it can be unwrapped, and how it was converted ("" if it was not)."""
    done = ""
    if isinstance(value, dict) and "ground_truth" in value:
        value, done = value["ground_truth"], "were mappings: used `ground_truth`"
    if isinstance(value, bytes):
        value, done = _utf8(value), "were decoded from bytes"
    if isinstance(value, str) and value.lstrip()[:2] in ('["', "['"):
        loaded = _loads(value)
        if isinstance(loaded, list) and len(loaded) == 1 and isinstance(loaded[0], str):
            value, done = loaded[0], "were one-element lists serialized as text: unwrapped"
    while isinstance(value, list) and len(value) == 1:
        value, done = value[0], "were one-element lists: unwrapped"
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = number_text(value)
        return text, "" if text is None else done or "were numbers: converted to text"
    if isinstance(value, str) and (final := _FINAL_LINE.search(value)):
        return final[1], "end in `#### …`: used the part after it"
    return value, done


def _utf8(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _loads(text: str) -> Any:
    """A text parsed as JSON or as a Python literal (pandas writes chats to CSV as such); None for neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
