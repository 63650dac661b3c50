"""Checks that options of training and of the commands share. Pure."""

from collections.abc import Mapping
from typing import Any


def check_least(options: Any, least: Mapping[str, float]) -> None:
    """
    Raises:
        ValueError: an option that is set and below its least value, by name.
    """
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"{name}={value} must be at least {minimum}.")
