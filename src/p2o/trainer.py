"""P²O: joint policy and prompt optimization (Lu et al., arXiv 2603.21877) as a `GRPOTrainer`.

What an epoch consists of:

1. Policy phase. GRPO as TRL has it; but rollouts of a question that was hard in the last epoch are sampled under an
   instruction z, T(x, z), while the loss is on the bare question x: so the policy learns to do without it.
2. Mining. A question is hard if none of its rollouts, templated or not, succeeds, or one at most (`near_hard`).
3. Context distillation. Tokens that the bare policy would hardly have written are masked.
4. Prompt phase. GEPA evolves instructions; of a small set that covers the hard questions, their rollouts get one each.

TRL's hooks, which are overridden in this file only, in the order in which they are called (indented: from within):

    on_epoch_begin -> _begin_epoch              here runs the prompt phase that ends the epoch before
    iter(dataloader) -> EpochSampler
    _generate_and_score_completions             once for a generation batch, and for each batch of an evaluation
        _sample                                 once, and again in each round of dynamic sampling
            _generate                           the two contexts meet: T(x, z) in, tokens of x out
                _generate_single_turn           and again after calls of tools, from _tool_call_loop
            _get_per_token_logps_and_entropies  without gradient: log π_old(y|x), only where TRL needs it
            _calculate_rewards                  then mining and context distillation
    _compute_loss                               once for a batch of the dataloader; TRL has shuffled the rows by now
        _get_per_token_logps_and_entropies      with gradient: applies the context mask, unless it could be before
    on_step_end -> _end_step
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc

from p2o import checkpointing, image_checks, input_checks, model_card, thoughts
from p2o.callbacks import Alternation, notify, report_rollouts
from p2o.config import P2OConfig
from p2o.engines import generation, image_inputs, processes, vllm
from p2o.engines.environments import Environments, Episode
from p2o.engines.sampled_logprobs import recorded
from p2o.engines.tools import ToolTurns, converse, tools_by_row
from p2o.identity import RunIdentity
from p2o.policy_phase.context_distillation import TEMPLATED
from p2o.policy_phase.evaluation import EvaluationSet, completing_real_rows, evaluation_batch
from p2o.policy_phase.logprobs import CompletionLogprobs
from p2o.policy_phase.phase import PolicyPhase
from p2o.policy_phase.rewards import Rewards, Scoring
from p2o.policy_phase.rollouts import Batch, Completions
from p2o.policy_phase.sampler import EpochSampler, drawn_questions, epoch_sampler
from p2o.policy_phase.zero_advantage import LossPass
from p2o.prompt_phase import phase as prompt_phase
from p2o.prompt_phase.policy_rollouts import FeedbackFn, Generated, PolicyRollouts, default_feedback, generated_by
from p2o.prompt_phase.types import ReflectionFn
from p2o.reflection.make import make_reflection
from p2o.reflection.own_model import OwnReflection, make_own
from p2o.seeding import derive_seed, get_rng_states, random_stream
from p2o.state import P2OState, uncounted_on_failure
from p2o.templates import Prompt

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class P2OTrainer(GRPOTrainer):
    """`GRPOTrainer` that does not give up on hard questions.

    Takes what `GRPOTrainer` takes, in the same order and with the same meaning, but for:

    Args:
        reward_funcs: required, since mining needs rewards, unless an environment owns its reward.
        args: a [`P2OConfig`].
        train_dataset: a `datasets.Dataset` with a column `prompt`, and `image` or `images` if need be; not streamed.
        callbacks: transformers', and [`P2OCallback`]s with the events of P²O.
        tools: called in both phases, like what `environment_factory` makes; what they return is not learnt.
        rollout_func: generates in TRL's place in both phases, from T(x, z); reward functions get its further fields.
        feedback_func: feedback on a rollout, for reflection. By default right or wrong, the gold answer, the reward.
        reflect: reflection model as a function of prompts. Its `ReflectionError` ends a prompt phase, others the run.

    Raises:
        ValueError, ImportError: before any training: what cannot work, or needs a package that is not there.
    """

    _tag_names: ClassVar = ["trl", "grpo", "p2o"]
    _name, _paper = "P2O", model_card.PAPER
    _last_loaded_step = vllm.LastLoadedStep()  # TRL's attribute, which overlooks weights that changed without a step
    args: P2OConfig
    # Set by a hook for those that TRL calls within or after it. Batch and pass are None where none is under way.
    _batch: Batch | None = None
    _loss_pass: LossPass | None = None
    _evaluation: EvaluationSet | None = None
    _checkpoint: checkpointing.StagedCheckpoint | None = None
    _sampler: EpochSampler | None = None
    _first_pass_of_epoch, _resumed, _batch_environments = 0, False, None

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: P2OConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable[..., Any]] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
        *,
        feedback_func: FeedbackFn | None = None,
        reflect: ReflectionFn | None = None,
    ) -> None:
        args = args or P2OConfig(f"{(model if isinstance(model, str) else model.name_or_path).split('/')[-1]}-P2O")
        given = (reward_funcs, rollout_func, tools, environment_factory)
        questions = input_checks.training_questions(args, model, train_dataset, *given)
        self.p2o = P2OState()
        if reflect is None and args.prompt_phase and args.reflection_endpoint:  # checked before a model is loaded
            reflect = make_reflection(args, function=None, own=self._own_reflection, spent=lambda: self.p2o.ledgers)
        vllm.check(args, model)
        data = (questions, eval_dataset, processing_class, reward_processing_classes, callbacks)
        rest = (optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory)
        with vllm.generation_backend(args):
            super().__init__(model, reward_funcs, args, *data, *rest)
        self._vllm, self._turns = getattr(self, "vllm_generation", None), ToolTurns(self.accelerator, self._complete)
        self.max_prompt_length = input_checks.longest_prompt(args, self.model, vllm.context_length(self._vllm))
        own = (self.train_dataset, eval_dataset, self.processing_class, self._tokens, self.max_prompt_length)
        self._filler = input_checks.check_prompts(*own, self.tools, self.environment_factories, args.template_position)
        reading = thoughts.thought_reading(args.thoughts, self._tokenizer, args.chat_template_kwargs)
        self.log_multimodal &= image_checks.gathered_alike(self.accelerator, self.train_dataset, eval_dataset, tools)
        self.reward_funcs[:] = reading.given_to(*self.reward_funcs)
        (self.feedback_func,) = reading.given_to(feedback_func or default_feedback(args.solution_column))
        self.reflect: ReflectionFn = reflect or self._own_reflection()
        scoring = Scoring(self.reward_weights, args.success_threshold, args.success_reward, self.reward_func_names)
        forward = partial(self._get_per_token_logps_and_entropies, batch_size=args.per_device_train_batch_size)
        logprobs = CompletionLogprobs(forward, lambda: self.model, self.accelerator, self._tokenizer.pad_token_id)
        parts = (self._tokens, self.max_prompt_length, scoring, logprobs, self._log_metrics)
        self._policy_phase = PolicyPhase(args, self.accelerator, *parts, self.environment_factories is not None)
        self.add_callback(Alternation(self._begin_epoch, self._end_step, lambda: self.p2o.take_rate_factor()))
        run = (args, self.accelerator, lambda: self.model, self.train_dataset, self.processing_class)
        facts = (self.reward_func_names, self.reward_weights, self.max_prompt_length, self.feedback_func)
        self.fingerprint = RunIdentity(*run, *facts, prompt_phase.reflector(args, self.reflect)).fingerprint

    def _own_reflection(self) -> OwnReflection:
        parts = (self.ref_model, self._vllm, self.processing_class, self.args)
        return make_own(self.accelerator, lambda: self.model, *parts)

    # -- policy phase: sample under T(x, z), learn on x --------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        return super().create_scheduler(self.args.steps_within_budget(num_training_steps), optimizer)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        self._sampler = epoch_sampler(super()._get_train_sampler, self.train_dataset, self.args, lambda: self.p2o)
        return self._sampler

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A generation batch: rollouts, their rewards, and all that the loss reads."""
        if not self.model.training:
            with evaluation_batch(self._evaluation, self.accelerator, len(inputs), self._logs):
                return self._sample(inputs, [])[0]
        passes, global_rows = self._step - self._first_pass_of_epoch, len(inputs) * self.accelerator.num_processes
        questions = drawn_questions(self._sampler, passes, global_rows)
        run = (self.accelerator, self.args, self.state, passes, get_rng_states())
        save = partial(self._save_checkpoint, self.model_wrapped, trial=None)
        with checkpointing.rescued(*run, save), uncounted_on_failure(self.p2o, self._metrics["train"]):
            output, rewards = self._sample(inputs, questions)
            self._policy_phase.replace_collapsed(output, rewards, self._sample, self.train_dataset, self._step)
        return output

    def _sample(self, inputs: list[dict[str, Any]], questions: list[int]) -> tuple[dict[str, Any], Rewards]:
        """Rollouts of these rows, scored, mined and distilled. `questions` are all processes'; none in evaluation."""
        plan = self._policy_phase.plan(self.p2o, len(inputs), questions)
        self._batch = Batch(replace(plan, repeats=self._evaluation.batches[-1].repeats) if self._evaluation else plan)
        output = image_inputs.counted(super()._generate_and_score_completions(self._policy_phase.visible(inputs)))
        (plan, rewards), self._batch = self._batch.plan_and_rewards(), None
        rewards = self._evaluation.add(rewards, output, self._logs) if self._evaluation else rewards
        is_sampled = self._policy_phase.charge(self.p2o, plan, output)
        report_rollouts(self._logs, plan.templates, rewards, self._notify, self._evaluation)
        if questions:
            self._policy_phase.guide(self.p2o, output, rewards)
            self._policy_phase.mine(self.p2o, output, plan, rewards, is_sampled)
            self._policy_phase.prepare_distillation(self.p2o, output, plan, rewards, self._metrics["train"])
        return output, rewards

    def _generate(self, prompts: list[Prompt]) -> tuple[Any, ...]:
        """TRL generates from T(x, z), or a `rollout_func` from tokens of its own; what follows gets the tokens of x."""
        self._batch = self._batch and self._policy_phase.fit(self.p2o, self._batch, prompts)
        if self._batch is None or not self._batch.plan.two_contexts:
            generated = image_inputs.lists_of_images(super()._generate(prompts))
            ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
            return self._evaluation.add_completions(generated, ends) if self._evaluation else generated
        prompt_ids, *others = image_inputs.lists_of_images(super()._generate(self._batch.plan.prompts(prompts)))
        self._batch = replace(self._batch, plan=replace(self._batch.plan, contexts=tuple(prompt_ids)))
        return (self._tokens(prompts) if self.args.context_distillation else prompt_ids), *others

    def _generate_single_turn(self, ids: Any, images: Any, fields: Any, *args: Any, **kwargs: Any) -> Completions:
        """Kept rollouts are not sampled again. Log-probabilities of the others come from the engine or are recorded."""
        if self._turns.under_way:
            return self._turns.next(ids, images, fields, *args, **kwargs)
        if self._batch is None or not self._batch.plan.two_contexts or self.rollout_func is not None:
            repeats = 0 if self._batch is None or vllm.is_shared(self._vllm) or fields else self._batch.plan.repeats
            with vllm.tensor_parallel_stream(self._vllm), generation.only_asked_settings(self.model):
                turn = super()._generate_single_turn
                return completing_real_rows(lambda some: turn(some, images, fields, *args, **kwargs), ids, repeats)
        plan = self._batch.plan
        given = image_inputs.sampled_from(plan.sampled_rows(), ids, images, fields)
        return plan.with_kept_rollouts(*self._complete(*given))

    def _tool_call_loop(self, *conversations: Any) -> Any:
        return self._turns.taken_together(partial(super()._tool_call_loop, *image_inputs.countable(conversations)))

    def _complete(self, contexts: list[list[int]], images: Any = None, fields: Any = None, **more: Any) -> Completions:
        """One completion of each context. Processes that have fewer contexts generate fillers, which are dropped."""
        padded = processes.pad_to_longest(self.accelerator, contexts, self._filler, shared=self.use_vllm)
        generate = partial(super()._generate_single_turn, padded, *image_inputs.fill(padded, images, fields), 1, **more)
        by_engine = self.use_vllm or self.use_transformers_continuous_batching
        if self._batch and self._batch.plan.two_contexts and not by_engine:
            generate = partial(recorded, self.accelerator, self.model, self.temperature, generate)
        with vllm.tensor_parallel_stream(self._vllm), generation.only_asked_settings(self.model):
            ids, logprobs = generate()
        return ids[: len(contexts)], None if logprobs is None else logprobs[: len(contexts)]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """TRL's rewards of all processes' rows, (rollouts, functions); where one process fails, all of them do."""
        judge: Callable[[], Tensor] = partial(super()._calculate_rewards, inputs, prompts, completions, completion_ids)
        if self._evaluation is not None:
            judge = self._evaluation.judging(judge, self.reward_funcs, self._pending_metrics, self._pending_extra_logs)
        by_function = processes.judge_or_fail_together(self.accelerator, judge, len(prompts), len(self.reward_funcs))
        if self._batch is not None:
            self._batch = replace(self._batch, rewards=self._policy_phase.scoring.rewards(by_function))
        else:  # the prompt phase asks: what reward functions log would count for a training batch
            self._pending_extra_logs.clear()
            self._pending_metrics.clear()
        return by_function

    # -- the loss: without zero advantages, and under the context mask -------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss. Rollouts without advantage are left out of its pass where no other term needs them."""
        if not self.model.training:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss if self._evaluation is None else self._evaluation.add_loss(loss, inputs)
        others = self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0 or self.aux_loss_enabled
        self._loss_pass = LossPass.over(inputs, skips=self.args.may_skip_rollouts and not others)
        self._log_metrics(self._loss_pass.metrics())
        try:
            return super()._compute_loss(model, self._loss_pass.batch)
        finally:
            self._loss_pass = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Every pass over sampled tokens, TRL's and ours. One with a gradient is the loss's own."""
        loss_pass = self._loss_pass if torch.is_grad_enabled() else None
        if loss_pass is not None:
            input_ids, attention_mask, kwargs = image_inputs.of_rows(loss_pass.rows, input_ids, attention_mask, kwargs)
        tokens = int(processes.all_reduce_sum(self.accelerator, int(attention_mask.sum()))[0])
        self.p2o.ledger.add_pass(tokens, backward=torch.is_grad_enabled())
        run = (super()._get_per_token_logps_and_entropies, model, input_ids, attention_mask, logits_to_keep)
        logps, entropies, auxiliary = image_inputs.in_passes(*run, *args, **kwargs)
        if loss_pass is not None:
            logps, entropies = loss_pass.over_all_rows(logps, entropies)
            if TEMPLATED in loss_pass.batch:
                # Not masked yet: TRL takes this pass for log π_old(y|x) as well. It reads the advantages after it.
                self._policy_phase.mask(loss_pass.batch, logps.detach())
        return logps, entropies, auxiliary

    # -- prompt phase ------------------------------------------------------------------------------------------------

    def _begin_epoch(self, batches_done: int) -> None:
        self._first_pass_of_epoch = self._step - batches_done
        if prompt_phase.next_epoch(self.p2o, self.args, self.state.global_step):
            self._prompt_phase()

    def _end_step(self, last_of_epoch: bool) -> bool:
        self.p2o.end_step(last_of_epoch, self._metrics["train"], self.args.gradient_accumulation_steps)
        return prompt_phase.remaining_rollouts(self.p2o, self.args) != 0

    def _prompt_phase(self) -> None:
        """From the epoch just completed to the assignment for the next one."""
        state, args, result = self.p2o, self.args, None
        if not args.prompt_phase:
            return self._log_metrics(prompt_phase.assign_hints(state, args, self.train_dataset))
        questions = prompt_phase.questions_of(state, args, self._sampler)
        skipped = prompt_phase.begin(state, args, self.reflect, questions)
        if skipped is None:
            self._notify("on_prompt_phase_begin", hard_set=questions)
            given = (args, self.accelerator, self.model, self.policy_rollouts, self.reflect, self._notify)
            result = prompt_phase.Evolution(*given, questions)(state, go_on=self._resumed)
            self._log_metrics(prompt_phase.adopt(state, result))
            state.kept = self._policy_phase.keep_successes(state, result.successes, self.train_dataset, self.model)
        self._log_metrics(prompt_phase.assign(state, args, questions))
        if skipped is None or skipped.reason is not None:
            self._notify("on_prompt_phase_end", result=result, reason=skipped.reason if skipped else None)

    @property
    def policy_rollouts(self) -> PolicyRollouts:
        """How evolution tries templates: with the present policy, the reward functions and the feedback of this run."""
        given = (self.args, self.accelerator, self.train_dataset, self._tokenizer, self.max_prompt_length)
        hooks = (self._generate_for_evolution, self._calculate_rewards, self._policy_phase.scoring, self.feedback_func)
        pool = Environments.of(self.environment_factories, self.args, self.reward_funcs)
        return PolicyRollouts(*given, self._tokens, *hooks, self.p2o.event, bool(self.tools), pool, self._bind)

    def _bind(self, episodes: list[Episode]) -> None:
        """What TRL's loop and its rewards find of the tools and environments of evolution's next rollouts."""
        own = (episode.tools() for episode in episodes)
        self._sync_tool_dicts, self._async_tool_dicts = tools_by_row(self._standalone_tools, own)
        if self.environment_factories is not None:
            self.environments, self._batch_environments = [e.instance for e in episodes], [e.name for e in episodes]

    def _generate_for_evolution(self, prompts: list[Prompt], contexts: list[list[int]]) -> list[Generated]:
        if self.rollout_func is not None:
            self._last_loaded_step = vllm.load(self._vllm, self._last_loaded_step, self.state.global_step)
            return generated_by(self.rollout_func(prompts, self), len(prompts))
        ids, _ = self._complete(contexts, *(seen := image_inputs.seen(self._tokenize_prompts, prompts)))
        if not self.tools:
            return list(map(Generated, contexts, ids))
        tools = (self._tokenizer, self._sync_tool_dicts, self._async_tool_dicts)
        return list(map(Generated, *converse(self._tool_call_loop, *tools, prompts, contexts, ids, *seen)))

    # -- evaluation, always bare and from a random stream of its own; what watchers see ------------------------------

    def _notify(self, event: str, **kwargs: Any) -> None:
        notify(self.callback_handler.callbacks, event, self.args, self.state, self.control, p2o=self.p2o, **kwargs)

    def _log_metrics(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self.p2o.metrics(near_hard=self.args.near_hard))
        elif self._evaluation is not None:
            self._metrics["eval"] = self._evaluation.metrics(self._metrics["eval"], logs, self.reward_func_names)
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As `Trainer.evaluate`; `<prefix>_accuracy` is the share of successes, by the same criterion as in mining."""
        input_checks.check_evaluation(self.args)
        self._evaluation = EvaluationSet(self.args, self.accelerator, metric_key_prefix, self.callback_handler)
        try:
            with random_stream(derive_seed(self.args.seed, "evaluation")):
                metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._evaluation = None
        self.p2o.watch_accuracy(metric_key_prefix, metrics, self.args.regression_margin)
        return metrics

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As TRL's, with what P²O did: epochs, prompt phases, templates with their scores, the ledger."""
        super().create_model_card(model_name, *args, **kwargs)
        model_card.add_section(self.args, model_name, self.p2o, self.state, self.reflect)

    # -- checkpoints, and going on from one --------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; resuming continues exactly, from the newest complete checkpoint when given `True`.

        Raises:
            CheckpointError: nothing to resume from, or a checkpoint of another configuration or version.
        """
        input_checks.check_environments(self.train_dataset, self.eval_dataset, self.environment_factories)
        checkpoint = checkpointing.resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
        fingerprint = self.fingerprint()  # of the model before it is trained, and by all processes
        self._last_loaded_step, self._resumed = -1, False  # steps are counted from zero again, with other weights
        if checkpoint is not None:
            self.p2o, self._buffered_inputs = checkpointing.load(checkpoint, self.accelerator, fingerprint)
            self._resumed, self._step = True, self.p2o.trainer_step
            self._metrics["train"].update(self.p2o.pending_metrics)
            checkpointing.load_renamed(self.accelerator.unwrap_model(self.model), checkpoint)
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes into a staging directory and renames it: what is called a checkpoint is complete, whenever we die."""
        with checkpointing.staged(self.accelerator, self.args, self.state) as self._checkpoint:
            super()._save_checkpoint(model, trial)
            if self._step % (self.args.steps_per_generation * self.num_iterations):  # within a generation batch
                checkpointing.save_buffer(self._checkpoint.path, self.accelerator, self._buffered_inputs)
            if self.args.should_save:
                self.p2o.note_progress(self._step, self._metrics["train"])
                self.p2o.save(self._checkpoint.path, self.fingerprint())
        if self._checkpoint.to_push:
            super()._push_from_checkpoint(str(self._checkpoint.final))

    def _get_output_dir(self, trial: Any) -> str:
        return checkpointing.staging(self._checkpoint) or str(super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not checkpointing.pushed_later(self._checkpoint):
            super()._push_from_checkpoint(checkpoint_folder)

    def _tokens(self, prompts: list[Prompt], names: list[str | None] | None = None) -> list[list[int]]:
        self._batch_environments = names or self._batch_environments  # of TRL's, where a batch is under way
        return image_inputs.tokens(self._tokenize_prompts, prompts, together=self.environment_factories is not None)
