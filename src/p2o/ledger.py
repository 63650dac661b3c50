"""Every rollout, by what it was spent on. A comparison that hides the prompt phase is no comparison."""

from dataclasses import dataclass, field
from typing import Literal, get_args

Purpose = Literal["policy", "evolution_feedback", "evolution_dev", "reflection", "evaluation"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass
class Ledger:
    """Rollouts by purpose, over all processes; part of every checkpoint, so that a resumed run counts nothing twice."""

    rollouts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0))

    def add(self, purpose: Purpose, rollouts: int) -> None:
        self.rollouts[purpose] += rollouts

    @property
    def total_rollouts(self) -> int:
        """Everything generated in order to train: all purposes but evaluation."""
        return sum(count for purpose, count in self.rollouts.items() if purpose != "evaluation")
