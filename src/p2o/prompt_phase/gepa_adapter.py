"""GEPA's adapter: rollouts in, scores and traces out."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from gepa.core.adapter import EvaluationBatch

from p2o.ledger import Ledger, Purpose
from p2o.prompt_phase.journal import Journal
from p2o.prompt_phase.selection import Trial
from p2o.prompt_phase.shown_images import RolloutRecord
from p2o.prompt_phase.types import COMPONENT, EvolutionConfig, Question, Rollout, RolloutFn, Success
from p2o.seeding import derive_seed


@dataclass(frozen=True)
class Outcome:
    """One rollout as evolution and its journal keep it.

    Args:
        reward: None where nobody could score it.
        completion, feedback: "" for dev questions: reflection never sees them, and there can be thousands.
        kept: template and completion tokens of a success that may be reused, else empty.
    """

    reward: float | None
    solved: bool
    prompt_tokens: int
    completion_tokens: int
    completion: str
    feedback: str
    kept: list[Any]


@dataclass
class GepaAdapter:
    """Rollouts of questions under candidates' templates, in batches that go through the journal.

    A question is sampled once under a template, since the policy does not change within a prompt phase; a repeated
    request, for a parent's next minibatch, gets the first result again. The budget counts requests (`requested`),
    `spent` counts what was generated.

    Args:
        questions: by id, feedback and dev questions alike.
        spent: where rollouts and tokens are counted.
        config: for how templates are tried again.
    """

    questions: Mapping[int, Question]
    dev_ids: frozenset[int]
    rollout: RolloutFn
    journal: Journal
    seed: int
    epoch: int
    spent: Ledger
    config: EvolutionConfig
    known: dict[tuple[int, str], Outcome] = field(default_factory=dict)
    requested: int = 0
    best_reward: float = float("-inf")
    worst_reward: float = float("inf")
    events: Counter[str] = field(default_factory=Counter)
    successes: list[Success] = field(default_factory=list)

    propose_new_texts = None  # of GEPA's protocol: proposals are the reflection strategy's

    def dev_results(self, template: str) -> dict[int, Outcome]:
        """The outcome on each dev question under a template that was evaluated on all of them."""
        return {question: self.known[question, template] for question in sorted(self.dev_ids)}

    def score(self, outcome: Outcome) -> float:
        """The reward; where nobody could score the rollout, the lowest that was seen, and 0 before there is one."""
        if outcome.reward is not None:
            return float(outcome.reward)
        return self.worst_reward if math.isfinite(self.worst_reward) else 0.0

    def all_solved(self, state: Any) -> bool:
        """Whether a template solves every dev question for the highest reward that was ever seen.

        It is then the whole selection, ties go to the earlier one, and only a reward yet unseen could change that.
        """
        templates = (candidate[COMPONENT] for candidate in state.program_candidates)
        return any(
            template and all(o.solved and self._is_best(o) for o in self.dev_results(template).values())
            for template in templates
        )

    def _is_best(self, outcome: Outcome) -> bool:
        return outcome.reward is not None and outcome.reward >= self.best_reward

    def batch_seed(self, position: int) -> int:
        """The seed of the batch at this position of the journal."""
        return derive_seed(self.seed, "prompt phase", self.epoch, "batch", position)

    def evaluate(
        self, batch: list[Question], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Any, Any]:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(
        self, items: list[tuple[dict[str, str], list[Question]]], capture_traces: bool = True
    ) -> list[EvaluationBatch[Any, Any]]:
        """Scores of several (candidate, questions) at once: rollouts of all of them are one batch."""
        keys = [(question.id, candidate[COMPONENT]) for candidate, batch in items for question in batch]
        self.requested += len(keys)
        self._sample([key for key in dict.fromkeys(keys) if key not in self.known])
        batches = []
        for candidate, batch in items:
            outcomes = [self.known[question.id, candidate[COMPONENT]] for question in batch]
            batches.append(
                EvaluationBatch(
                    outputs=[outcome.solved for outcome in outcomes],
                    scores=[self.score(outcome) for outcome in outcomes],
                    trajectories=list(zip(batch, outcomes, strict=True)),
                )
            )
        return batches

    def _sample(self, keys: list[tuple[int, str]]) -> None:
        """Rollouts of these questions under these templates, in one batch, into `known`."""
        if not keys:
            return
        dev = keys[0][0] in self.dev_ids
        outcomes = self._run("dev" if dev else "feedback", keys, dev)
        self.known.update(zip(keys, outcomes, strict=True))

    def try_again(self, templates: list[str]) -> dict[str, Trial] | None:
        """Further rollouts of every dev question under each of these templates, in one batch; None where there is
        nothing left of a run's rollouts for them."""
        keys = [(question, text) for text in templates for question in sorted(self.dev_ids)]
        keys *= self.config.selection_rollouts
        limit = self.config.max_metric_calls
        if limit is not None and self.spent.total_rollouts + len(keys) > limit:
            self.events["templates_not_tried_again"] += sum(map(bool, templates))
            return None
        found = defaultdict(list)
        for (question, text), outcome in zip(keys, self._run("trial", keys, dev=True), strict=True):
            found[text].append((question, outcome))
        return {text: self._trial(found[text]) for text in templates}

    def _trial(self, outcomes: list[tuple[int, Outcome]]) -> Trial:
        solved = Counter({question: 0 for question, _ in outcomes})
        solved.update(question for question, outcome in outcomes if outcome.solved)
        shares = {question: count / self.config.selection_rollouts for question, count in solved.items()}
        return Trial(shares, fmean(self.score(outcome) for _, outcome in outcomes))

    def _run(self, kind: str, keys: list[tuple[int, str]], dev: bool) -> list[Outcome]:
        """Rollouts of these questions under these templates, in one batch, through the journal and into the ledger."""
        requests = [(self.questions[question], template) for question, template in keys]

        def run(position: int) -> list[Any]:
            rollouts = self.rollout(requests, seed=self.batch_seed(position))
            if len(rollouts) != len(requests):
                raise RuntimeError(f"{len(requests)} rollouts were requested, {len(rollouts)} came back.")
            return [_record(rollout, dev) for rollout in rollouts]

        outcomes = [Outcome(*record) for record in self.journal.call(kind, keys, run)]
        purpose: Purpose = "evolution_dev" if dev else "evolution_feedback"
        tokens = (sum(o.prompt_tokens for o in outcomes), sum(o.completion_tokens for o in outcomes))
        self.spent.add(purpose, len(outcomes), *tokens)
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome.reward is None:
                self.events["unscored_rollouts"] += 1
            else:
                self.best_reward = max(self.best_reward, outcome.reward)
                self.worst_reward = min(self.worst_reward, outcome.reward)
            if outcome.kept:
                self.successes.append(Success(key[0], *outcome.kept))
        return outcomes

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Any, Any], components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The minibatch as records to reflect on; none where all of it is solved: there is nothing to learn."""
        trajectories = [(q, outcome) for q, outcome in eval_batch.trajectories or [] if outcome.reward is not None]
        if all(outcome.solved for _, outcome in trajectories):
            return {}
        return {
            COMPONENT: [
                RolloutRecord(question, outcome.completion, outcome.feedback) for question, outcome in trajectories
            ]
        }


def _record(rollout: Rollout, dev: bool) -> list[Any]:
    """The fields of an [`Outcome`], as the journal keeps them."""
    texts = ["", ""] if dev else [rollout.completion, rollout.feedback]
    kept = [rollout.template, rollout.completion_ids] if rollout.solved and rollout.completion_ids else []
    return [rollout.reward, rollout.solved, rollout.prompt_tokens, rollout.completion_tokens, *texts, kept]
