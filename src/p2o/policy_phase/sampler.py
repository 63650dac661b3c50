"""In which order questions are asked, and which question a row of a batch is."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

from p2o.config import P2OConfig
from p2o.difficulty.exchange import draw_exchange, questions_alone, rewrites_by_question
from p2o.state import P2OState


class EpochSampler(RepeatSampler):
    """TRL's sampler, with an order that depends on seed and epoch alone, and a memory of what it has drawn.

    A resumed process has not lived through the epochs before, so their draws are made up for. The sampler runs in every
    process and draws for all of them; workers of a dataloader may be ahead of training, so what it remembers is looked
    up by place.

    Args:
        sampler: TRL's.
        epoch: the present epoch.
        exchange: called at its beginning: rows that are asked in place of others, by these.
        batches: generation batches of an epoch, which takes the next ones of an endless row of passes over the
            questions; None for the batches of one pass.
    """

    def __init__(
        self,
        sampler: RepeatSampler,
        epoch: Callable[[], int],
        exchange: Callable[[], Mapping[int, int]] = dict,
        batches: int | None = None,
    ) -> None:
        self.__dict__.update(sampler.__dict__)
        self.epoch, self.exchange, self.batches = epoch, exchange, batches
        self.drawn: list[int] = []

    def __iter__(self) -> Iterator[int]:
        self.drawn, exchanged = [], self.exchange()
        for drawn in self._epoch():
            index = exchanged.get(drawn, drawn)
            self.drawn.append(index)
            yield index

    def __len__(self) -> int:
        """Rows of an epoch."""
        if self.batches is None:
            return super().__len__()
        return self.batches * self.batch_size * self.repeat_count * self.mini_repeat_count

    def coming(self) -> list[int]:
        """Questions that the present epoch asks, in ascending order; to be called before it begins."""
        return sorted(set(self._epoch()))

    def _epoch(self) -> Iterator[int]:
        """Rows of the present epoch."""
        size, whole = len(self), super().__len__()
        begin, end = self.epoch() * size, (self.epoch() + 1) * size
        for number in range(begin // whole, -(-end // whole)):
            first = number * whole
            yield from islice(self._pass(number), max(begin - first, 0), min(end - first, whole))

    def _pass(self, number: int) -> Iterator[int]:
        """Rows of a pass over all questions."""
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(number):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


def epoch_sampler(
    make: Callable[[Any], RepeatSampler], dataset: Any, args: P2OConfig, state: Callable[[], P2OState]
) -> EpochSampler:
    """The sampler of a training set's questions, in which rewrites take places of hard ones.

    Args:
        make: TRL's sampler of a data set.
        dataset: of which [`p2o.difficulty.exchange`] knows the rewrites.
        state: the present one, which is told what is exchanged.
    """
    rewrites = rewrites_by_question(dataset)

    def exchange() -> dict[int, int]:
        now = state()
        drawn = draw_exchange(now.hard_set, rewrites, args.rewrite_share, args.seed, now.epoch)
        now.rewritten = {rewrite: question for question, rewrite in drawn.items()}
        return drawn

    return EpochSampler(make(questions_alone(dataset)), lambda: state().epoch, exchange, args.epoch_batches)


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
