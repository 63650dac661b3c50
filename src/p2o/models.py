"""Models with a name of their own, which every command takes: two that are shipped, one that comes in a package."""

from collections.abc import Callable

from p2o import pico, smollm2
from p2o.pico import tools

NAMED_MODELS: dict[str, Callable[[], str]] = {
    "pico": pico.model_path,
    "pico-tools": tools.model_path,
    "smollm2-135m": smollm2.model_path,
}


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a model: the directory of one with a name of its own, any other as it is.

    Raises:
        ImportError: the package that brings it is missing; the message says how to get it.
        OSError: it cannot be unpacked for want of room or permission.
    """
    return NAMED_MODELS[name]() if name in NAMED_MODELS else name
