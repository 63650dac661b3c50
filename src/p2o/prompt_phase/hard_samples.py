"""Hard sample mining: which questions the policy cannot solve in this epoch. Pure, no tensors.

A question counts once an epoch: the first group of rollouts it gets decides. A rollout without any score (every reward
function answered None) is no evidence: neither a success nor a failure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """Of one group of rollouts: `successes` among the `rollouts` that were scored."""

    successes: int
    rollouts: int


@dataclass
class HardSamples:
    """Successes per question over one epoch.

    Args:
        near_hard: whether a question with exactly one success counts as hard beside those with none.
    """

    near_hard: bool = True
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def record(self, question: int, rewards: Sequence[float], threshold: float = 0.0) -> None:
        """Takes the rewards of one group; a success is a reward greater than `threshold`, NaN is no evidence."""
        scored = [reward for reward in rewards if not math.isnan(reward)]
        if question not in self.outcomes and scored:
            self.outcomes[question] = Outcome(sum(r > threshold for r in scored), len(scored))

    def is_hard(self, outcome: Outcome) -> bool:
        # With a single scored rollout one success is all of them: that is no near-hard question.
        near = self.near_hard and outcome.successes == 1 and outcome.rollouts > 1
        return outcome.successes == 0 or near

    def hard_set(self) -> list[int]:
        """Hard questions in ascending order, so that the set does not depend on the order of processes."""
        return sorted(question for question, outcome in self.outcomes.items() if self.is_hard(outcome))

    def clear(self) -> None:
        """Starts a new epoch."""
        self.outcomes.clear()
