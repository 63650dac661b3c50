"""Checks that options of training and of the commands share. Pure."""

from collections.abc import Mapping
from typing import Any

# Of what is TRL's and transformers', and what neither looks at before the first step, or at all.
RANGES_OF_TRL: dict[str, float | str] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "num_train_epochs"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "[0, 1)"),
    **dict.fromkeys(("beta", "epsilon", "epsilon_high", "delta", "top_k"), 0),
    **dict.fromkeys(("temperature", "repetition_penalty"), "(0, inf)"),
    **{"top_p": "(0, 1]", "min_p": "[0, 1]", "top_entropy_quantile": "[0, 1]"},
    **dict.fromkeys(("num_iterations", "steps_per_generation", "num_generations_eval"), 1),
}


def check_ranges(options: Any, ranges: Mapping[str, float | str]) -> None:
    """
    Args:
        ranges: by name of an option, its least value, or an interval such as "(0, 1]".

    Raises:
        ValueError: an option that is set and out of its range, by name.
    """
    for name, wanted in ranges.items():
        value = getattr(options, name)
        if value is None:
            continue
        least, low, most, high = _interval(wanted)
        if not isinstance(value, int | float):
            raise ValueError(f"{name}={value!r} must be a number.")
        if not ((least <= value if low else least < value) and (value <= most if high else value < most)):
            if most == float("inf"):
                raise ValueError(f"{name}={value} must be {'at least' if low else 'greater than'} {least:g}.")
            raise ValueError(f"{name}={value} must be in {wanted}.")


def _interval(wanted: float | str) -> tuple[float, bool, float, bool]:
    """Its least value and whether that belongs to it, and likewise its greatest."""
    if not isinstance(wanted, str):
        return wanted, True, float("inf"), False
    least, most = wanted[1:-1].split(",")
    return float(least), wanted[0] == "[", float(most), wanted[-1] == "]"
