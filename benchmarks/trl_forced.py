"""`P2OTrainer` whose prompt phase happens in the shortest training: for TRL's own tests, see `trl_tests.py`.

A coin decides which rollouts succeed, so that some questions are hard and some templates solve them; the reflection is
a fixed usable one; hard set and budget are small. Rewards, and with them what is learned, are the test's own.
"""

import itertools
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.policy_phase.rewards import Rewards, Scoring
from p2o.prompt_phase.types import Reflection

SUCCESS = 0.25  # with 3 rollouts, five questions of six have one success at most

COUNTS: Counter[str] = Counter()
"""What happened since it was last cleared: trainings, prompt phases, templated rollouts, …"""


@dataclass
class ForcedConfig(P2OConfig):
    """`P2OConfig` with a prompt phase of the smallest size."""

    min_hard_questions: int = 2
    max_dev_questions: int = 4
    evolution_budget: str = "16"
    parents_per_iteration: int = 1
    feedback_minibatch_size: int = 2


@dataclass(frozen=True)
class CoinRewards(Rewards):
    """Rewards of which a coin says which are successes.

    Args:
        batch: names the coins.
        rows: which of its coins belong to these rollouts; the first ones when None.
    """

    batch: int = 0
    rows: tuple[int, ...] | None = None

    @property
    def success_scores(self) -> Tensor:
        rows = range(len(self.by_function)) if self.rows is None else self.rows
        coins = [float(random.Random(f"{self.batch} {row}").random() < SUCCESS) for row in rows]
        return torch.tensor(coins, device=self.by_function.device).masked_fill(self.total.isnan(), torch.nan)

    def of(self, rows: Any) -> "CoinRewards":
        own = torch.arange(len(self.by_function)) if self.rows is None else torch.tensor(self.rows)
        kept = own[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        return replace(self, by_function=self.by_function[rows], rows=tuple(kept))


class CoinScoring(Scoring):
    """Scoring by which every rollout that anybody scores may succeed."""

    def rewards(self, by_function: Tensor) -> Rewards:
        COUNTS["scored batches"] += 1
        return CoinRewards(by_function, self.weights, batch=COUNTS["scored batches"])


class Count(P2OCallback):
    """Counts what shows that both phases happened."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        COUNTS["trainings"] += 1

    def on_prompt_phase_end(self, *_: Any, result: Any, **__: Any) -> None:
        COUNTS["prompt phases"] += result is not None
        COUNTS["skipped prompt phases"] += result is None

    def on_rollouts(self, *_: Any, rollouts: Any, **__: Any) -> None:
        COUNTS["rollouts"] += len(rollouts)
        COUNTS["templated rollouts"] += sum(bool(rollout.template) for rollout in rollouts)


class ForcedTrainer(P2OTrainer):
    """`P2OTrainer` with a coin for success and a reflection that always proposes something."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        numbers = itertools.count(1)

        def reflect(prompts: list[str], *, seed: int) -> list[Reflection]:
            return [Reflection(f"```\nTake another way, number {next(numbers)}.\n```") for _ in prompts]

        super().__init__(*args, **kwargs, reflect=reflect)
        kept = self._policy_phase.scoring
        coin = CoinScoring(kept.weights, kept.threshold, kept.success_reward, kept.names)
        self._policy_phase = replace(self._policy_phase, scoring=coin)
        self.add_callback(Count())
