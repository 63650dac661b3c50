"""Named random streams. A draw outside the policy phase never touches the generators the policy phase uses."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derive_seed(*names: int | str) -> int:
    """A seed in [0, 2**63) for the stream of this name, such as `(seed, "evaluation")`; the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def get_rng_states() -> dict[str, Any]:
    """State of the process-wide generators of Python, NumPy and torch (all devices)."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Puts back what [`get_rng_states`] returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def random_stream(seed: int) -> Iterator[None]:
    """Seeds the process-wide generators inside and puts them back after: libraries that sample take no generator."""
    states = get_rng_states()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_states(states)
