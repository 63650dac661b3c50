"""The events of a run that transformers does not have: what a tracker, a console or a notebook can listen to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState

from p2o.checkpointing import scale_learning_rates
from p2o.config import P2OConfig
from p2o.policy_phase.evaluation import EvaluationSet
from p2o.policy_phase.rewards import Rewards
from p2o.prompt_phase.types import EvolutionProgress, EvolutionResult
from p2o.state import P2OState
from p2o.templates import Prompt


class SampledRollout(NamedTuple):
    """One rollout as a watcher sees it.

    Args:
        prompt: the bare question.
        template: the instruction that it was sampled under; "" for none.
        completion: a text, or the messages of a chat.
        reward: weighted sum of the reward functions; NaN where none of them scored it.
    """

    prompt: Prompt
    template: str
    completion: str | list[dict[str, Any]]
    reward: float


class P2OCallback(TrainerCallback):
    """A `transformers.TrainerCallback` with P²O's events. Override those of interest; by default they do nothing.

    Every event gets, as transformers' own do, the configuration, transformers' state and the control object, and by
    name `p2o`, the state of the method: epoch, hard set, templates, assignment, ledger. It is called in every process;
    `state.is_world_process_zero` says which one may write. Take `**kwargs` as well: later releases may add to them.
    """

    def on_rollouts(
        self,
        args: P2OConfig,
        state: TrainerState,
        control: TrainerControl,
        *,
        p2o: P2OState,
        rollouts: Sequence[SampledRollout],
        **kwargs: Any,
    ) -> None:
        """A training batch was sampled and scored; `rollouts` are those of all processes, group by group."""

    def on_evaluation_rollouts(
        self,
        args: P2OConfig,
        state: TrainerState,
        control: TrainerControl,
        *,
        p2o: P2OState,
        rollouts: Sequence[SampledRollout],
        dataset: str,
        **kwargs: Any,
    ) -> None:
        """An evaluation batch was sampled and scored, without templates but those that its prompts themselves have.

        `dataset` is its name where there are several, else "". Not called for a batch that is larger than a training
        batch, of which TRL keeps no texts.
        """

    def on_prompt_phase_begin(
        self,
        args: P2OConfig,
        state: TrainerState,
        control: TrainerControl,
        *,
        p2o: P2OState,
        hard_set: Sequence[int],
        **kwargs: Any,
    ) -> None:
        """Evolution begins, before epoch `p2o.epoch`; `hard_set` are the rows of the training set that it is about: the
        hard ones, or with `template_questions="all"` all that this epoch asks."""

    def on_prompt_phase_progress(
        self,
        args: P2OConfig,
        state: TrainerState,
        control: TrainerControl,
        *,
        p2o: P2OState,
        progress: EvolutionProgress,
        **kwargs: Any,
    ) -> None:
        """Evolution has come further. Called in the first process only, which is the one that evolves."""

    def on_prompt_phase_end(
        self,
        args: P2OConfig,
        state: TrainerState,
        control: TrainerControl,
        *,
        p2o: P2OState,
        result: EvolutionResult | None,
        reason: str | None,
        **kwargs: Any,
    ) -> None:
        """Templates are selected and assigned (`p2o.templates`, `p2o.assignment`), or the phase was skipped.

        A skipped phase has no `result` but a `reason`, and had no `on_prompt_phase_begin`.
        """


class Alternation(TrainerCallback):
    """Alternates the phases where transformers' loop lets a callback in.

    Args:
        begin_epoch: called before an epoch with the batches of it that a resumed run skips.
        end_step: called after a step; whether it was an epoch's last. Returns whether training may go on.
        rate_factor: by what the learning rates are multiplied when training begins.
    """

    def __init__(
        self, begin_epoch: Callable[[int], None], end_step: Callable[[bool], bool], rate_factor: Callable[[], float]
    ) -> None:
        self.begin_epoch, self.end_step, self.rate_factor = begin_epoch, end_step, rate_factor
        self.steps_per_epoch = 1

    def on_train_begin(self, args: P2OConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        batches = len(kwargs["train_dataloader"])
        self.steps_per_epoch = -(-batches // args.gradient_accumulation_steps)
        # A resumed run has the intervals and rates of its checkpoint, whatever the options say by now.
        state.compute_steps(args, state.max_steps)
        scale_learning_rates(kwargs["optimizer"], kwargs["lr_scheduler"], self.rate_factor())

    def on_epoch_begin(self, args: P2OConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # At the beginning rather than the end: the checkpoint of an epoch's last step then says that the prompt phase
        # is still to come, and a run killed inside it resumes there.
        done = 0 if args.ignore_data_skip else state.global_step % self.steps_per_epoch
        self.begin_epoch(done * args.gradient_accumulation_steps)

    def on_step_end(self, args: P2OConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last_of_epoch = state.global_step % self.steps_per_epoch == 0
        if not self.end_step(last_of_epoch):
            control.should_training_stop = True
        if last_of_epoch and args.prompt_phase and args.save_strategy != "no":
            control.should_save = True


def notify(callbacks: Sequence[TrainerCallback], event: str, *args: Any, **kwargs: Any) -> None:
    """Calls the event of every callback that has it."""
    for callback in callbacks:
        if hasattr(callback, event):
            getattr(callback, event)(*args, **kwargs)


def report_rollouts(
    table: Mapping[str, Any],
    templates: Sequence[str],
    rewards: Rewards,
    notify: Callable[..., None],
    evaluation: EvaluationSet | None,
) -> None:
    """Tells watchers of the batch that TRL has just logged, and puts its templates into TRL's table.

    Args:
        templates: of this process's rows.
        rewards: of the rollouts, which may be fewer than the templates: a batch of an evaluation may be filled up.
        notify: calls an event of all callbacks.
        evaluation: that the batch belongs to; None in training.
    """
    totals = rewards.total.tolist()
    templates = gather_object(list(templates))[: len(totals)]
    table["extra"]["template"].extend(templates)
    prompts, completions = (list(table[column])[-len(templates) :] for column in ("prompt", "completion"))
    if not templates:
        return
    columns = zip(prompts, templates, completions, totals, strict=True)
    rollouts = [SampledRollout(*rollout) for rollout in columns]
    if evaluation is None:
        notify("on_rollouts", rollouts=rollouts)
    else:
        notify("on_evaluation_rollouts", rollouts=rollouts, dataset=evaluation.name)
