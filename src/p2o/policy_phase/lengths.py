"""A watch on response length: one that collapses or explodes is an early sign of a run that goes wrong. Pure."""

from dataclasses import dataclass, replace
from statistics import fmean

WINDOW = 10


@dataclass(frozen=True)
class LengthWatch:
    """Mean completion lengths of generation batches, in tokens: the run's first and its most recent ones.

    Args:
        first: of the first ten batches.
        recent: of the last ten.
        outside: whether the last batch found them apart by more than is allowed.
    """

    first: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    outside: bool = False

    def after(self, mean_length: float, factor: float) -> "LengthWatch":
        """The watch after one more batch, outside where the moving mean is off the beginning by more than `factor`."""
        first = self.first if len(self.first) == WINDOW else (*self.first, mean_length)
        watch = LengthWatch(first, (*self.recent, mean_length)[-WINDOW:])
        ratio = watch.ratio
        return replace(watch, outside=not 1 / factor <= ratio <= factor)

    @property
    def ratio(self) -> float:
        """Moving mean by the mean of the beginning, in [0, inf); 1 within the first batches."""
        if len(self.first) < WINDOW or not any(self.first):
            return 1.0
        return fmean(self.recent) / fmean(self.first)

    def __str__(self) -> str:
        was, now = fmean(self.first), fmean(self.recent)
        return f"{now:.0f} tokens over the last {len(self.recent)} batches, {was:.0f} over the run's first"
