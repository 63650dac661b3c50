"""Hard sample mining: which questions the policy cannot solve in this epoch. Pure, no tensors.

A question counts once an epoch: the first group of rollouts it gets decides. A rollout without any score (every reward
function answered None) is no evidence: neither a success nor a failure.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean


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


def taken_over(
    templated: Mapping[int, Outcome], outcomes: Mapping[int, Outcome], assignment: Collection[int]
) -> dict[str, float]:
    """Whether the weights have taken over what templates did: success of the same questions under them, then bare.

    Args:
        templated: of the questions that had templates in the epoch before.
        outcomes: of this epoch, so far.
        assignment: questions with templates in this epoch, which do not count.

    Returns:
        Metrics, in [0, 1]; none where there is no such question.
    """
    bare = [question for question in sorted(templated) if question in outcomes and question not in assignment]
    if not bare:
        return {}
    return {
        "p2o/taken_over/templated": fmean(templated[q].successes / templated[q].rollouts for q in bare),
        "p2o/taken_over/bare": fmean(outcomes[q].successes / outcomes[q].rollouts for q in bare),
    }
