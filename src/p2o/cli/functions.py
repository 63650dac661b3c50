"""Loads custom functions by name and checks the columns that they need."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import trl.rewards

from p2o.cli.errors import InputError
from p2o.verifiers import COLUMNS, VERIFIERS

EMBEDDED_FUNCTIONS = {
    "reward_funcs": "p2o.pico.world:accuracy_reward",
    "feedback_func": "p2o.pico.world:feedback",
    "reflection_func": "p2o.pico.teacher:reflect",
}
EMBEDDED = "pico"
# What TRL passes to every reward function besides the columns of the data.
HANDED = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}


def load_function(name: str, option: str) -> Any:
    """A function by `module:function`; for rewards also a verifier's, by its name in `trl.rewards`, or 'pico'.

    Raises:
        InputError: it cannot be imported, or is not a function.
    """
    if name == EMBEDDED:
        name = EMBEDDED_FUNCTIONS[option]
    if name in VERIFIERS and option == "reward_funcs":
        name = f"p2o.verifiers.rewards:{name}"
    if ":" not in name and "." not in name:
        if option == "tools":
            raise InputError(f"tools: {name!r} is not of the form module:function.")
        if option == "reward_funcs" and not hasattr(trl.rewards, name):
            raise InputError(f"reward_funcs: unknown reward {name!r}{_like(name)}")
        name = f"trl.rewards:{name}"
    module, _, function = name.replace(":", ".").rpartition(".")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module can fail in any way
        raise InputError(f"{option}: cannot import {name!r} ({type(error).__name__}: {error}).") from error
    if not callable(found):
        raise InputError(f"{option}: {name!r} is not a function.")
    return found


def load_tools(names: Sequence[str]) -> list[Any]:
    """The tools of these names, see [`load_function`].

    Raises:
        InputError: one of them cannot be had, or two would be called by the same name.
    """
    tools = [load_function(name, "tools") for name in names]
    called = [getattr(tool, "__name__", None) for tool in tools]
    for name, tool, word in zip(names, tools, called, strict=True):
        if word is None or isinstance(tool, type):
            raise InputError(f"tools: {name!r} is not a function.")
        if called.count(word) > 1:
            raise InputError(f"tools: the model calls a tool by the name of its function, and two are named {word!r}.")
    return tools


def _like(name: str) -> str:
    known = [*VERIFIERS, EMBEDDED, *(n for n in trl.rewards.__all__ if n.endswith("_reward"))]
    near = [f"{name}_reward"] if f"{name}_reward" in known else difflib.get_close_matches(name, known, 1)
    hint = f" (perhaps {near[0]})" if near else ""
    return f"{hint}; known are {', '.join(known)}, and module:function for a custom one."


def refuse_missing_columns(functions: Sequence[Any], names: Sequence[str], columns: Sequence[str], where: str) -> None:
    """
    Args:
        functions: the rewards.
        names: their names as given in the options.
        columns: of the mapped data.
        where: the data's name, for messages.

    Raises:
        InputError: a reward that needs a missing column, and would fail on its first batch.
    """
    for function, name in zip(functions, names, strict=True):
        missing = [column for column in needed_columns(function, name) if column not in columns]
        if not missing:
            continue
        has = ", ".join(columns)
        if missing == ["solution"]:
            raise InputError(
                f"The reward {name} needs gold answers, but {where} has none; its columns are {has}. Name the "
                "column of the gold answers with --solution_column, or another reward with --reward_funcs."
            )
        raise InputError(f"The reward {name} needs the column {', '.join(missing)}; {where} has {has}.")


def needed_columns(function: Any, name: str) -> list[str]:
    """The columns a reward requires: its parameters without a default, except those that TRL passes itself."""
    if name in COLUMNS:
        return list(COLUMNS[name])
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # no signature available
        return []
    return [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in {*HANDED, "prompt"}
    ]
