"""Which candidates an iteration of evolution mutates, and on which feedback questions."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gepa.gepa_utils import remove_dominated_programs
from gepa.strategies.proposal_sampling import ProposalTask

from p2o.prompt_phase.types import EvolutionConfig
from p2o.seeding import derive_seed


class DistinctParents:
    """GEPA's sampling strategy: distinct parents from the Pareto front, each with a feedback minibatch of its own.

    A parent's weight is the number of dev questions on whose front it is, after GEPA has removed dominated candidates;
    a front that is smaller than `parents_per_iteration` takes part as a whole. The draws of an iteration depend on its
    number and on the front only.
    """

    def __init__(self, config: EvolutionConfig, seed: int, epoch: int) -> None:
        self.config, self.seed, self.epoch = config, seed, epoch

    def sample_tasks(
        self, state: Any, candidate_selector: Any, batch_sampler: Any, trainset: Any
    ) -> list[ProposalTask[Any, Any]]:
        rng = random.Random(derive_seed(self.seed, "prompt phase", self.epoch, "parents", state.i))
        scores = state.program_full_scores_val_set
        fronts = remove_dominated_programs(state.get_pareto_front_mapping(), scores)
        weights = Counter(parent for front in fronts.values() for parent in front)
        parents = draw_distinct(dict(sorted(weights.items())), self.config.parents_per_iteration, rng)
        ids = list(trainset.all_ids())
        size = min(self.config.feedback_minibatch_size, len(ids))
        tasks = []
        for parent in parents:
            batch = sorted(rng.sample(ids, size))
            tasks.append(ProposalTask(parent, state.program_candidates[parent], batch, trainset.fetch(batch)))
        return tasks


def draw_distinct(weights: Mapping[int, int], count: int, rng: random.Random) -> list[int]:
    """Up to `count` distinct keys, one after the other, each with probability proportional to its weight."""
    remaining = dict(weights)
    drawn: list[int] = []
    while remaining and len(drawn) < count:
        (choice,) = rng.choices(list(remaining), list(remaining.values()))
        del remaining[choice]
        drawn.append(choice)
    return drawn
