"""A reward for benchmarks: whatever the model can do, some rollouts succeed by it and some do not."""

import zlib
from typing import Any


def chance(completions: list[Any], **kwargs: Any) -> list[float]:
    """1 for one completion in five, by its text."""
    return [float(zlib.crc32(c[-1]["content"].encode()) % 5 == 0) for c in completions]
