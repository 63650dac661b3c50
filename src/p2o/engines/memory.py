"""Batches that are halved where a device runs out of memory."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from p2o.seeding import derive_seed, random_stream

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


@dataclass
class Halving:
    """Runs batches; one that memory does not suffice for is halved, and those that follow are no larger than its parts.

    accelerate's `find_executable_batch_size` starts over with all batches; here those that are done stay.

    Args:
        size: the largest batch that may be run; None while every one could be.
        times: how often a batch was halved.
    """

    size: int | None = None
    times: int = 0

    def run(self, run: Callable[[list[Item], int], list[Result]], batch: list[Item], seed: int) -> list[Result]:
        """`run(batch, seed)`; where it has to be in parts, each with a random stream of its own.

        Raises:
            RuntimeError: of `run`, in which even a batch of one does not fit (torch.OutOfMemoryError), or another one.
        """
        if self.size is None or len(batch) <= self.size:
            try:
                return run(batch, seed)
            except RuntimeError as error:
                if len(batch) == 1 or not out_of_memory(error):
                    raise
            # Behind the handler: the error holds on to the frames that it came through, and they to their tensors.
            clear_device_cache(garbage_collection=torch.cuda.is_available())
            self.size, self.times = len(batch) // 2, self.times + 1
            logger.warning("Out of memory with a batch of %d; going on with %d at once.", len(batch), self.size)
        starts = range(0, len(batch), self.size)
        parts = [(batch[start : start + (self.size or 1)], derive_seed(seed, "part", start)) for start in starts]
        results = []
        for part, stream in parts:
            with random_stream(stream):
                results += self.run(run, part, stream)
        return results
