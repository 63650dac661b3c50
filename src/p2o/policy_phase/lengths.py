"""A watch on response length: one that collapses or explodes is an early sign of a run that goes wrong. Pure."""

from dataclasses import dataclass, replace
from statistics import fmean
from typing import Self

WINDOW = 10


@dataclass(frozen=True)
class Course:
    """A number of each generation batch: in the run's first batches and in its most recent ones.

    Args:
        first: of the first ten batches.
        recent: of the last ten.
    """

    first: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()

    def followed_by(self, value: float) -> Self:
        """The course with one more batch."""
        first = self.first if len(self.first) == WINDOW else (*self.first, value)
        return replace(self, first=first, recent=(*self.recent, value)[-WINDOW:])

    @property
    def is_known(self) -> bool:
        """Whether there were ten batches to hold later ones against."""
        return len(self.first) == WINDOW

    @property
    def ratio(self) -> float:
        """Moving mean by the mean of the beginning, in [0, inf) for numbers from 0; 1 within the first batches."""
        if not self.is_known or not any(self.first):
            return 1.0
        return fmean(self.recent) / fmean(self.first)

    @property
    def change(self) -> float:
        """Moving mean less the mean of the beginning; 0 within the first batches."""
        return fmean(self.recent) - fmean(self.first) if self.is_known else 0.0


@dataclass(frozen=True)
class LengthWatch(Course):
    """Mean completion lengths of generation batches, in tokens.

    Args:
        outside: whether the last batch found them apart by more than is allowed.
    """

    outside: bool = False

    def after(self, mean_length: float, factor: float) -> "LengthWatch":
        """The watch after one more batch, outside where the moving mean is off the beginning by more than `factor`."""
        watch = self.followed_by(mean_length)
        return replace(watch, outside=not 1 / factor <= watch.ratio <= factor)

    def __str__(self) -> str:
        was, now = fmean(self.first), fmean(self.recent)
        return f"{now:.0f} tokens over the last {len(self.recent)} batches, {was:.0f} over the run's first"
