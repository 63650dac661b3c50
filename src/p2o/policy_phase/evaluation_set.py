"""One evaluation set while it is being answered. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2o.policy_phase.rewards import Rewards


@dataclass
class EvaluationSet:
    """Counts successes over all rollouts of a set: TRL averages over batches, of which the last may be smaller.

    Args:
        name: "" where there is only one set.
        successes: of the scored rollouts so far.
        logged: whether its accuracy is in the log. What is logged between an evaluation and the next step, such as the
            run time, is not of it.
    """

    name: str
    successes: list[bool] = field(default_factory=list)
    logged: bool = False

    def add(self, rewards: Rewards) -> None:
        """A batch of it; rollouts that nobody scored do not count."""
        self.successes += rewards.successes[~rewards.unscored].tolist()

    def accuracy(self) -> float:
        """Share of successes in [0, 1]; NaN where no rollout was scored."""
        return sum(self.successes) / len(self.successes) if self.successes else math.nan

    def metrics(self, trl: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """TRL's metrics of an evaluation with the accuracy of the set, under its name.

        TRL names them alike for every set of a dictionary; the last one would win.
        """
        found = dict(trl)
        if not self.logged:
            self.logged = True
            found["accuracy"] = [self.accuracy()]
        return {f"{self.name}_{name}": values for name, values in found.items()} if self.name else found
