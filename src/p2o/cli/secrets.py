"""Secrets among options: they reach child processes in the environment, and no file or command line."""

import json
import re
from collections.abc import Mapping
from typing import Any

from p2o.cli.errors import InputError
from p2o.cli.words import take_option

# Options that are secrets, with the variable from which the library that needs one takes it as well.
VARIABLES = {"hub_token": "HF_TOKEN"}
_NAME = re.compile(r"(?:.*_)?(?:api_?key|secret|password|credentials?)|(?:(?:hub|hf|auth|use_auth|access)_)?token")


def is_secret(name: str) -> bool:
    """Whether an option of this name, or an entry of a mapping, is a secret."""
    return _NAME.fullmatch(name.lower()) is not None


def take_secrets(argv: list[str]) -> dict[str, str]:
    """Removes secrets from a command line and returns them by environment variable.

    Raises:
        InputError: a secret option without its value.
    """
    found = {variable: take_option(argv, f"--{name}") for name, variable in VARIABLES.items()}
    return {variable: value for variable, value in found.items() if value is not None}


def refuse_nested_secrets(settings: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        InputError: a secret within another option's mapping, which would be saved with it.
    """
    for name, value in settings.items():
        value = _mapping(value)
        if value is not None:
            for inner in value:
                if is_secret(str(inner)):
                    raise InputError(
                        f"{where}: {name}.{inner} is a secret and would be saved with the run. Take it out and put it "
                        "into the environment, a token of the hub as HF_TOKEN."
                    )
            refuse_nested_secrets(value, f"{where}: {name}")


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """The value as a mapping, which on a command line is written as JSON; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:  # which its own option's check will say
            return None
    return value if isinstance(value, Mapping) else None
