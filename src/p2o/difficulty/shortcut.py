"""A watch for shortcuts: answers become short and sure while the reward still pays for them. Pure.

"Mechanistically Interpreting the Role of Sample Difficulty in RLVR for LLMs" (arXiv 2605.28388) rewards a single
question whose bare answer is right: mean length falls from 511 to 46 tokens before accuracy does. It prints no
criterion. Ours: the moving means of response length and of the entropy of a token have both fallen below the run's
beginning by a factor, and the share of successes has not fallen.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from p2o.policy_phase.lengths import Course


@dataclass(frozen=True)
class ShortcutWatch:
    """Entropy and success of generation batches; their lengths are in a course of their own.

    Args:
        entropies: mean entropy of a sampled token, in nats.
        successes: share of the scored rollouts that succeeded, in [0, 1].
        passes: entropies that the loss saw since the last batch.
        suspected: whether the last batch looked like a shortcut.
    """

    entropies: Course = field(default_factory=Course)
    successes: Course = field(default_factory=Course)
    passes: tuple[float, ...] = ()
    suspected: bool = False

    def with_passes(self, entropies: Iterable[float]) -> "ShortcutWatch":
        """The watch after passes of the loss over the batch under way."""
        return replace(self, passes=(*self.passes, *filter(math.isfinite, entropies)))

    def after(self, lengths: Course, success_rate: float | None, factor: float, margin: float) -> "ShortcutWatch":
        """The watch after one more batch was sampled.

        Args:
            lengths: mean tokens of a completion, this batch included.
            success_rate: None where no rollout was scored.
            factor: by which both length and entropy have fallen in a suspected shortcut, greater than 1.
            margin: by how much the success rate may have fallen in it.
        """
        watch = replace(
            self,
            entropies=self.entropies.followed_by(fmean(self.passes)) if self.passes else self.entropies,
            successes=self.successes if success_rate is None else self.successes.followed_by(success_rate),
            passes=(),
        )
        shrunk = max(lengths.ratio, watch.entropies.ratio) <= 1 / factor
        return replace(watch, suspected=shrunk and watch.successes.change >= -margin)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ShortcutWatch":
        """Of `dataclasses.asdict`, after JSON; {} is a watch that has seen nothing."""
        courses = {name: Course(*map(tuple, data[name].values())) for name in ("entropies", "successes") if data}
        return replace(cls(**{**data, **courses}), passes=tuple(data.get("passes", ())))
