"""Evolution of templates: GEPA's engine with our rollouts, reflections, parents and journal.

All parents of an iteration roll out together, reflect together, and their accepted children are scored together. Every
batch of rollouts or reflections is written to a journal when it is done, and evolution is deterministic given these:
an interrupted phase runs again from its journal and goes on where it stopped, to the same end.
"""

import logging
import random
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gepa

from p2o.ledger import Ledger
from p2o.prompt_phase.budget import metric_call_budget, split_hard_set
from p2o.prompt_phase.gepa_adapter import GepaAdapter
from p2o.prompt_phase.journal import Journal
from p2o.prompt_phase.parents import DistinctParents
from p2o.prompt_phase.proposals import ProposalStrategy
from p2o.prompt_phase.selection import select
from p2o.prompt_phase.shown_images import ImagesOf, no_images
from p2o.prompt_phase.traces import PromptLimit
from p2o.prompt_phase.types import (
    COMPONENT,
    Candidate,
    EvolutionConfig,
    EvolutionProgress,
    EvolutionResult,
    Question,
    ReflectionFn,
    RolloutFn,
    Stage,
)
from p2o.seeding import derive_seed

logger = logging.getLogger(__name__)


def evolve(
    questions: list[Question],
    rollout: RolloutFn,
    reflect: ReflectionFn,
    config: EvolutionConfig,
    *,
    seed: int,
    epoch: int,
    run_dir: Path,
    policy: str = "",
    special_tokens: Collection[str] = (),
    prompt_limit: PromptLimit | None = None,
    images: ImagesOf = no_images,
    spent: Ledger | None = None,
    on_progress: Callable[[EvolutionProgress], None] | None = None,
) -> EvolutionResult:
    """Templates for the hard questions; `run_dir` holds the journal from which an interrupted call goes on.

    Args:
        policy: digest of the weights that generate; a journal of others is not used.
        prompt_limit: the longest reflection prompt; None where it is not known.
        images: those of a question, by its id, for a reflection model that sees them.
        spent: an empty ledger, in which spending is counted as it happens; the result's.

    Raises:
        ValueError: fewer than two questions.
        Exception: whatever `rollout` or `reflect` raise, but for [`ReflectionError`]; nothing done before is lost.
    """
    spent = Ledger() if spent is None else spent
    if len(questions) < 2:
        raise ValueError(f"Evolution needs two hard questions, one to learn from and one to judge by; got {questions}.")
    by_id = {question.id: question for question in questions}
    feedback_ids, dev_ids = _split(list(by_id), config, derive_seed(seed, "prompt phase", epoch, "split"))
    limit = _limit(config, len(dev_ids))
    if limit <= len(dev_ids):
        logger.warning("No prompt phase: %d rollouts do not score the empty template.", limit)
        return EvolutionResult(feedback_ids, dev_ids, [], spent, 0)
    decides = {"seed": seed, "epoch": epoch, "limit": limit, "config": asdict(config), "policy": policy}
    with _journal(run_dir, questions, decides) as journal:
        adapter = GepaAdapter(by_id, frozenset(dev_ids), rollout, journal, seed, epoch, spent, config)
        proposals = ProposalStrategy(adapter, reflect, config, special_tokens, prompt_limit, images)
        progress = ProgressCallback(adapter, proposals, limit, on_progress)
        found = _optimize([by_id[i] for i in feedback_ids], [by_id[i] for i in dev_ids], proposals, progress)
        if proposals.error is not None:
            raise proposals.error
        candidates = _candidates(found, adapter, progress.found_in)
        _warn(proposals, epoch, limit, len(candidates))
        selected, trials = select([c.as_template() for c in candidates], config.selection_margin, adapter.try_again)
    found_by = (feedback_ids, dev_ids, candidates, spent)
    return EvolutionResult(
        *found_by,
        iterations=progress.iteration,
        rejections=dict(sorted(proposals.rejections.items())),
        successes=adapter.successes,
        events=dict(sorted((proposals.events + adapter.events).items())),
        ended_early=proposals.ended_early,
        selected=selected,
        trials={c.index: trials[c.text] for c in candidates if c.text in trials},
    )


def _split(ids: list[int], config: EvolutionConfig, seed: int) -> tuple[list[int], list[int]]:
    return split_hard_set(ids, max_dev=config.max_dev_questions, rng=random.Random(seed))


def _journal(run_dir: Path, questions: list[Question], decides: dict[str, Any]) -> Journal:
    ordered = sorted(questions, key=lambda question: question.id)
    return Journal(run_dir / "journal.jsonl", decides | {"questions": [question.to_dict() for question in ordered]})


def _limit(config: EvolutionConfig, dev_questions: int) -> int:
    """Rollouts of the phase: its budget, or what is left of the run's."""
    budget = metric_call_budget(config.budget, dev_questions)
    return budget if config.max_metric_calls is None else min(budget, config.max_metric_calls)


def _warn(proposals: ProposalStrategy, epoch: int, limit: int, candidates: int) -> None:
    """Says why evolution ended before its time, and what to do about reflections that were cut off."""
    spent = proposals.adapter.spent
    if proposals.ended_early is not None:
        logger.warning(
            f"The prompt phase before epoch {epoch} ends early, after {spent.metric_calls} of {limit} rollouts and "
            f"with the {candidates} candidate(s) it has, the empty one included: {proposals.ended_early}"
        )
    if cut_off := proposals.events["reflection_truncated"]:
        logger.warning(
            f"{cut_off} of {spent.rollouts['reflection']} reflections before epoch {epoch} were cut off at the limit "
            "of their length, and no unfinished one becomes a template. Raise reflection_max_tokens: a model that "
            "thinks first needs more of them."
        )


def _optimize(
    feedback: list[Question], dev: list[Question], proposals: ProposalStrategy, progress: "ProgressCallback"
) -> Any:
    """GEPA's result; its engine with our strategies."""
    adapter = proposals.adapter
    return gepa.optimize(
        seed_candidate={COMPONENT: ""},
        trainset=feedback,
        valset=dev,
        adapter=adapter,
        sampling_strategy=DistinctParents(proposals.config, adapter.seed, adapter.epoch),
        reflection_strategy=proposals,
        skip_perfect_score=False,  # the adapter's reflective dataset is empty where there is nothing to learn
        max_metric_calls=progress.limit,
        stop_callbacks=[proposals.stopped, adapter.all_solved],
        track_best_outputs=False,
        logger=_DebugLogger(),
        callbacks=[progress],
        raise_on_exception=True,
        seed=0,
    )


def _candidates(found: Any, adapter: GepaAdapter, found_in: dict[int, int]) -> list[Candidate]:
    """GEPA's candidates with their scores by dev question."""
    return [
        Candidate(
            index=index,
            text=candidate[COMPONENT],
            parents=[parent for parent in found.parents[index] if parent is not None],
            iteration=found_in[index],
            dev_rewards={q: adapter.score(o) for q, o in adapter.dev_results(candidate[COMPONENT]).items()},
            dev_solved={q: bool(o.solved) for q, o in adapter.dev_results(candidate[COMPONENT]).items()},
        )
        for index, candidate in enumerate(found.candidates)
    ]


class ProgressCallback:
    """GEPA's callbacks: reports progress, and records the iteration in which each candidate was found."""

    def __init__(
        self,
        adapter: GepaAdapter,
        proposals: ProposalStrategy,
        limit: int,
        on_progress: Callable[[EvolutionProgress], None] | None,
    ) -> None:
        self.adapter, self.proposals, self.limit, self.on_progress = adapter, proposals, limit, on_progress
        self.iteration = 0
        self.found_in: dict[int, int] = {}
        self.best_score, self.best_template = float("-inf"), ""

    def _report(self, stage: Stage) -> None:
        if self.on_progress is not None:
            self.on_progress(
                EvolutionProgress(
                    stage=stage,
                    iteration=self.iteration,
                    metric_calls=self.adapter.requested,
                    max_metric_calls=self.limit,
                    candidates=len(self.found_in),
                    best_dev_score=max(self.best_score, 0.0) if not self.found_in else self.best_score,
                    best_template=self.best_template,
                    rejected=sum(self.proposals.rejections.values()),
                )
            )

    def on_optimization_start(self, event: Any) -> None:
        self._report("seed")

    def on_iteration_start(self, event: Any) -> None:
        self.iteration = event["iteration"]
        self._report("feedback")

    def on_proposal_end(self, event: Any) -> None:
        self._report("minibatch")

    def on_valset_evaluated(self, event: Any) -> None:
        self.found_in[event["candidate_idx"]] = event["iteration"]
        if event["average_score"] > self.best_score:
            self.best_score, self.best_template = event["average_score"], event["candidate"][COMPONENT]
        self._report("dev")

    def on_optimization_end(self, event: Any) -> None:
        self._report("done")


class _DebugLogger:
    """GEPA's log lines at our debug level."""

    def log(self, message: str) -> None:
        logger.debug("gepa: %s", message)
