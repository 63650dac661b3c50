"""From an epoch just completed to templates for the next one: what a prompt phase does beside evolving."""

import logging
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator

from p2o.config import P2OConfig
from p2o.engines.processes import FINISHED, Tasks
from p2o.identity import policy_digest
from p2o.images import images_in, marked_text
from p2o.ledger import Ledger
from p2o.policy_phase.sampler import EpochSampler
from p2o.prompt_phase import hints
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.policy_rollouts import PolicyRollouts, Request
from p2o.prompt_phase.selection import drawn_rate
from p2o.prompt_phase.traces import limit_of
from p2o.prompt_phase.types import (
    EvolutionConfig,
    EvolutionResult,
    Question,
    ReflectionFn,
    Rollout,
)
from p2o.reflection.endpoint import EndpointReflection
from p2o.reflection.own_model import OwnReflection
from p2o.seeding import derive_seed
from p2o.state import P2OState
from p2o.templates import Prompt, assign_templates, mean_similarity, question_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """Why there is no prompt phase.

    Args:
        reason: for whoever watches the run; None where the configuration wants none any more.
    """

    reason: str | None = None


def next_epoch(state: P2OState, args: P2OConfig, step: int) -> bool:
    """Goes on to the next epoch where one is complete; whether templates are to be found for the one that now begins.

    Args:
        step: optimizer steps done.
    """
    if state.epoch_complete:
        state.begin_next_epoch(near_hard=args.near_hard)
        return True
    # Where all questions get templates, none has to be mined before.
    return args.template_questions == "all" and step == 0


def questions_of(state: P2OState, args: P2OConfig, sampler: EpochSampler | None) -> list[int]:
    """Rows of the training set that a prompt phase is about, and that get templates in the epoch to come."""
    return sampler.coming() if args.template_questions == "all" and sampler is not None else state.hard_set


def begin(state: P2OState, args: P2OConfig, reflect: ReflectionFn, questions: Sequence[int]) -> Skipped | None:
    """None where evolution on these questions is to follow. Drops the last epoch's templates, unless they stay in use
    without it."""
    if args.max_prompt_phases is not None and state.prompt_phases >= args.max_prompt_phases:
        return Skipped()
    if isinstance(reflect, EndpointReflection) and (reached := reflect.limit_reached()) is not None:
        logger.warning("Prompt phase skipped, the last templates stay in use: %s", reached)
        return Skipped(reached)
    state.templates = []
    if len(questions) < args.min_hard_questions:
        kind = "hard questions" if args.template_questions == "hard" else "questions"
        logger.warning(
            "Prompt phase skipped: %d %s, fewer than min_hard_questions=%d; epoch %d is untemplated.",
            len(questions),
            kind,
            args.min_hard_questions,
            state.epoch,
        )
        return Skipped(f"too few {kind}")
    return None


def remaining_rollouts(state: P2OState, args: P2OConfig) -> int | None:
    """What is left of `max_rollouts`; None where there is no limit."""
    return None if args.max_rollouts is None else max(args.max_rollouts - state.ledger.total_rollouts, 0)


@dataclass(frozen=True)
class Evolution:
    """Evolution on some questions: the first process evolves, all of them generate, and all get the result.

    Args:
        policy: the model that generates.
        rollouts: tries templates.
        notify: `notify(event, **data)`: tells whoever watches.
        questions: rows of the training set.
    """

    args: P2OConfig
    accelerator: Accelerator
    policy: Any
    rollouts: PolicyRollouts
    reflect: ReflectionFn
    notify: Callable[..., None]
    questions: Sequence[int]

    def __call__(self, state: P2OState, *, go_on: bool) -> EvolutionResult:
        """
        Args:
            go_on: from the journal of an interrupted run; a fresh one does not continue what lies in the same place.
        """
        state.phase_ledger = Ledger()
        policy = policy_digest(self.policy, self.accelerator)
        with Tasks.of(self.accelerator) as tasks:
            if not self.accelerator.is_main_process:
                parts: dict[str, Callable[..., Any]] = {"rollouts": self.rollouts}
                if isinstance(self.reflect, OwnReflection):
                    parts["reflections"] = self.reflect.in_all_processes
                return tasks.serve(parts)
            with tasks.told_of_failure():
                result = self._evolve(state, tasks, policy, go_on=go_on)
            tasks.tell(FINISHED, result)
            return result

    def _evolve(self, state: P2OState, tasks: Tasks, policy: str, *, go_on: bool) -> EvolutionResult:
        reflect = replace(self.reflect, tasks=tasks) if isinstance(self.reflect, OwnReflection) else self.reflect

        def roll_out(requests: list[Request], *, seed: int) -> list[Rollout]:
            return tasks.run("rollouts", self.rollouts, requests, seed)

        directory = Path(self.args.output_dir) / "evolution" / f"epoch-{state.epoch:03d}"
        if not go_on:
            shutil.rmtree(directory, ignore_errors=True)
        dataset, column = self.rollouts.dataset, self.args.solution_column
        result = evolve(
            [question(dataset, row, column, self.rollouts.asked(row)) for row in self.questions],
            roll_out,
            reflect,
            self._config(state),
            seed=self.args.seed,
            epoch=state.epoch,
            policy=policy,
            run_dir=directory,
            special_tokens=set(self.rollouts.tokenizer.all_special_tokens),
            prompt_limit=limit_of(self.reflect, self.args.reflection_max_prompt_tokens),
            images=lambda row: images_in(self.rollouts.asked(row)),
            spent=state.phase_ledger,
            on_progress=lambda progress: self.notify("on_prompt_phase_progress", progress=progress),
        )
        if isinstance(self.reflect, OwnReflection):
            for event in list(self.reflect.events):
                state.event(event, self.reflect.events.pop(event))
        return result

    def _config(self, state: P2OState) -> EvolutionConfig:
        left = remaining_rollouts(state, self.args)
        return self.args.evolution_config(wording=self.args.reflection_prompt, max_metric_calls=left)


def question(dataset: Any, row: int, solution_column: str, prompt: Prompt | None = None) -> Question:
    """A row of the training set as evolution sees it; `prompt` is its own where nothing else is given."""
    values = dataset[row]
    prompt = values["prompt"] if prompt is None else prompt
    solution = str(values.get(solution_column, ""))
    return Question(id=row, text=question_text(prompt), solution=solution, marked=marked_text(prompt))


def adopt(state: P2OState, result: EvolutionResult) -> dict[str, float]:
    """Takes over the templates that were selected, and counts what it took; returns metrics."""
    state.templates = result.selected
    state.selected[state.epoch] = state.templates
    if not state.templates:
        tried = result.trials or "templates_not_tried_again" in result.events
        why = "is better than none by selection_margin" if tried else "solved any dev question"
        logger.warning("No template %s: epoch %d is untemplated.", why, state.epoch)
    if result.within_noise:
        state.event("selection_within_noise")
        logger.warning(
            "The templates of epoch %d solve no more dev questions than none at all, but by chance. `selection_margin` "
            "asks more of a template.",
            state.epoch,
        )
    state.prompt_phases += 1
    state.ledger.merge(result.spent)
    state.phase_ledger = Ledger()
    for event, count in result.events.items():
        state.event(event, count)
    if result.ended_early is not None:
        state.event("prompt_phase_ended_early")
    covered = frozenset().union(*(template.solves for template in state.templates))
    return {
        "p2o/candidates": len(result.candidates),
        "p2o/evolution_rollouts": result.metric_calls,
        "p2o/dev_covered": len(covered),
        **dev_success(result),
        **{f"p2o/rejected/{reason}": count for reason, count in result.rejections.items()},
    }


def dev_success(result: EvolutionResult) -> dict[str, float]:
    """Bare and templated success, in [0, 1], on the same dev questions: the empty template's and the selected set's."""
    if not result.candidates or not result.dev_ids:
        return {}
    metrics = {"p2o/dev_success/bare": fmean(result.solved(0).values())}
    if result.selected:
        solved = [result.solved(template.candidate) for template in result.selected]
        metrics["p2o/dev_success/templated"] = drawn_rate(result.selected, solved)
    return metrics


def assign(state: P2OState, args: P2OConfig, questions: Sequence[int]) -> dict[str, float]:
    """Draws which of these questions' rollouts get which template in the epoch to come; returns metrics."""
    state.assignment = assign_templates(
        questions,
        state.templates,
        args.num_generations,
        rng=random.Random(derive_seed(args.seed, state.epoch, "assignment")),
        same_template_per_group=args.same_template_per_group,
        bare_rollouts_per_group=args.bare_rollouts_per_group,
    )
    drawn = {index for draws in state.assignment.values() for index in draws if index is not None}
    texts = [state.templates[index].text for index in sorted(drawn)]
    if len(texts) == 1:
        state.event("single_template")
        logger.warning("A single template is in use in epoch %d: %r", state.epoch, texts[0])
    metrics: dict[str, float] = {"p2o/templates": len(texts)}
    return metrics | ({"p2o/template_similarity": mean_similarity(texts)} if texts else {})


def assign_hints(state: P2OState, args: P2OConfig, dataset: Any) -> dict[str, float]:
    """Gives hard questions hints for the epoch to come, where `hint_column` asks for them; returns metrics."""
    if args.hint_column is None:
        return {}
    levels = hints.next_levels(state.hard_set, state.hint_levels, state.templated_outcomes, args.hint_parts)
    found = hints.assign_hints(
        levels,
        state.hard_set,
        {question: dataset[question] for question in state.hard_set},
        column=args.hint_column,
        solution_column=args.solution_column,
        parts=args.hint_parts,
        num_generations=args.num_generations,
        bare_rollouts_per_group=args.bare_rollouts_per_group,
        shows_answer=args.hint_shows_answer,
    )
    state.hint_levels, state.templates, state.assignment = levels, found.templates, found.assignment
    state.event("hint_unavailable", len(found.without))
    shown = [levels[question] / args.hint_parts for question in found.assignment]
    return {"p2o/hinted_questions": len(shown), **({"p2o/hint_share": fmean(shown)} if shown else {})}


def reflector(args: P2OConfig, reflect: ReflectionFn) -> str | None:
    """Name of who proposes instructions, for a reader; None where the configuration has no prompt phase."""
    if not args.prompt_phase:
        return None
    if isinstance(reflect, OwnReflection | EndpointReflection):
        return args.reflection_model
    return getattr(reflect, "__qualname__", type(reflect).__qualname__)
