"""In which order questions are asked, and which question a row of a batch is."""

from collections.abc import Callable, Iterator

import torch
from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler, with an order that depends on seed and epoch alone, and a memory of what it has drawn.

    A resumed process has not lived through the epochs before, so their draws are made up for. The sampler runs in every
    process and draws for all of them; workers of a dataloader may be ahead of training, so what it remembers is looked
    up by place.

    Args:
        sampler: TRL's.
        epoch: the present epoch.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.__dict__.update(sampler.__dict__)
        self.epoch = epoch
        self.drawn: list[int] = []

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        self.drawn = []
        for index in super().__iter__():
            self.drawn.append(index)
            yield index


def drawn_questions(sampler: EpochSampler | None, batch: int, rows: int) -> list[int]:
    """Rows of the training set that a batch of this epoch is about, over all processes: `rows` of them, in their order.

    Raises:
        RuntimeError: the batch does not come from this sampler.
    """
    found = sampler.drawn[batch * rows : (batch + 1) * rows] if sampler is not None else []
    if len(found) != rows:
        raise RuntimeError(
            "P2OTrainer cannot tell which questions this batch is about: it was not drawn by its sampler. A subclass "
            "that overrides `_get_train_sampler` or `get_train_dataloader` has to build on super()'s, and a data "
            "collator has to return as many rows as it is given."
        )
    return found
