"""What has to be the same for a checkpoint to be continued exactly, and what people change on purpose. Pure.

Every option stands in one of three lists: `REQUIRED`, `CHANGEABLE` or `WITHOUT_INFLUENCE`. One that stands in none, of
a later TRL or of a subclass, counts as required until somebody has decided about it; a test names those of the
installed TRL.
"""

import dataclasses
import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# Options that define the method, its data or its random draws: with another value it is another run.
REQUIRED = frozenset(
    # the optimizer and the precision of its numbers
    "optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 "
    "average_tokens_across_devices neftune_noise_alpha router_aux_loss_coef disable_dropout cast_lm_head_to_fp32 "
    # which questions come in which order, with which columns
    "seed data_seed shuffle_dataset ignore_data_skip accelerator_config dataloader_drop_last dataloader_in_order "
    "remove_unused_columns solution_column difficulty rewrite_share epoch_batches "
    # features
    "feature_dictionary feature_token_weight feature_proxy_reward feature_proxy_patience "
    # sampling
    "num_generations generation_batch_size max_completion_length temperature top_p top_k min_p generation_kwargs "
    "chat_template_kwargs repetition_penalty vllm_structured_outputs_regex max_tool_calling_iterations thoughts "
    # rewards, advantages and the loss
    "success_threshold success_reward multi_objective_aggregation scale_rewards loss_type mask_truncated_completions "
    "beta num_iterations epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_k_neg "
    "vespo_lambda_pos vespo_lambda_neg importance_sampling_level sync_ref_model ref_model_mixup_alpha "
    "ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max "
    "entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl "
    "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
    "vllm_importance_sampling_clip_min vllm_importance_sampling_cap kl_on_collapsed_groups "
    # templates in the policy phase, and context distillation
    "template_position same_template_per_group bare_rollouts_per_group reused_rollouts_per_group drop_failed_templated "
    "dynamic_sampling_rounds context_distillation context_mask context_ratio_min context_ratio_max "
    "old_logprobs_context "
    # the prompt phase
    "prompt_phase template_questions hint_column hint_parts hint_shows_answer "
    "near_hard min_hard_questions max_dev_questions evolution_budget parents_per_iteration "
    "feedback_minibatch_size max_template_length selection_margin selection_rollouts max_prompt_phases "
    "reflection_model reflection_sees_images reflection_prompt reflection_max_prompt_tokens reflection_max_tokens "
    "reflection_temperature".split()
)

_SCHEDULE = "the learning rate takes another course"
_LAYOUT = "batches are divided otherwise, so sums round otherwise and random streams are others"
_KERNELS = "the same sums are computed by other kernels, which round otherwise"
_SAMPLER = "completions are sampled by another engine, or in other batches"
_EVALUATION = "evaluations are others or come at other steps; the weights are not concerned"
_RECORD = "logs and checkpoints come at other steps; the weights are not concerned"
_LIMIT = "the run may go on longer, or end earlier"

# Options that people change on purpose, each with what changing it does to a continued run.
CHANGEABLE = {
    **dict.fromkeys("learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps".split(), _SCHEDULE),
    **dict.fromkeys("num_train_epochs max_steps max_rollouts".split(), f"{_LIMIT}; {_SCHEDULE}"),
    **dict.fromkeys("reflection_token_limit reflection_cost_limit".split(), "prompt phases end at another limit"),
    **dict.fromkeys(
        "per_device_train_batch_size gradient_accumulation_steps steps_per_generation auto_find_batch_size "
        "parallelism_config fsdp fsdp_config deepspeed ddp_backend ddp_bucket_cap_mb prompt_phase_batch_size".split(),
        _LAYOUT,
    ),
    **dict.fromkeys(
        "use_cpu tf32 torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
        "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
        "gradient_checkpointing_kwargs full_determinism pad_to_multiple_of skip_zero_advantages "
        "model_init_kwargs".split(),
        _KERNELS,
    ),
    **dict.fromkeys(
        "use_vllm vllm_mode vllm_model_impl vllm_max_model_length vllm_gpu_memory_utilization "
        "vllm_tensor_parallel_size cache_implementation use_transformers_continuous_batching "
        "transformers_continuous_batching_config use_transformers_paged".split(),
        _SAMPLER,
    ),
    **dict.fromkeys(
        "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size num_generations_eval "
        "bf16_full_eval fp16_full_eval".split(),
        _EVALUATION,
    ),
    **dict.fromkeys("logging_strategy logging_steps logging_first_step save_strategy save_steps".split(), _RECORD),
    **dict.fromkeys(
        "load_best_model_at_end metric_for_best_model greater_is_better".split(),
        "another checkpoint may become the final model",
    ),
    "environment_timeout": "environments of prompt phases are waited for longer, or less long",
    "restore_callback_states_from_checkpoint": "callbacks begin with another state",
}

# Where something is written, what is shown, how long something is waited for: no number of the run depends on it.
WITHOUT_INFLUENCE = frozenset(
    "output_dir label_smoothing_factor use_cache torch_empty_cache_steps log_on_each_node logging_nan_inf_filter "
    "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project "
    "trackio_space_id trackio_bucket_id trackio_static_space_id prediction_loss_only eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model "
    "save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id "
    "hub_strategy hub_always_push hub_revision dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context label_names "
    "train_sampling_strategy length_column_name ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph "
    "ddp_timeout debug skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint local_rank "
    "trust_remote_code ds3_gather_for_generation vllm_enable_sleep_mode vllm_server_base_url vllm_server_host "
    "vllm_server_port vllm_server_timeout vllm_group_port log_completions log_multimodal num_completions_to_print "
    "log_unique_prompts log_completions_hub_repo reflection_base_url reflection_concurrency reflection_timeout "
    "reflection_max_retries regression_margin length_change_factor "
    "shortcut_factor "
    # where the profile lies; what it selects shows in the questions of the run, see `Facts`
    "difficulty_profile "
    # the same of the file of rewrites
    "rewrites "
    # what is in force of these two is a fact of the run, see `Facts`
    "reward_weights max_prompt_length".split()
)


@dataclass(frozen=True)
class Facts:
    """What decides the course of a run beside its options.

    Args:
        rollouts_per_update: over all processes and accumulated passes.
        reward_functions: their names, in order.
        reward_weights_in_force: of each.
        max_prompt_length_in_force: None for no limit.
        feedback_function, reflector: names.
        questions: how many there are.
        prompts, gold_answers, other_columns: digests of these columns of the training set; None where there are none.
        tokenizer: digest of what prompts become, chat template included.
        architecture: digest of the model's configuration.
        start_weights: digest of the weights that training starts from; None where the run does not read them again.
        processes: how many.
        device: kind of device, such as "cuda".
        versions: of the libraries that compute, such as "torch 2.13.0".
    """

    rollouts_per_update: int
    reward_functions: list[str]
    reward_weights_in_force: list[float]
    max_prompt_length_in_force: int | None
    feedback_function: str
    reflector: str | None
    questions: int
    prompts: str
    gold_answers: str | None
    other_columns: str | None
    tokenizer: str
    architecture: str
    start_weights: str | None
    processes: int
    device: str
    versions: str


CHANGEABLE_FACTS = {
    "processes": _LAYOUT,
    "device": _KERNELS,
    "versions": _KERNELS,
    "reflector": "instructions are proposed by another one",
    "other_columns": "reward functions are given other columns",
}

NAMED = 8  # of settings that cannot be compared, so many are named

# What to do where more than the old value helps.
_ADVICE = {
    "prompts": "resume with the training set, and its difficulty profile, that the run began with",
    "questions": "resume with the training set, and its difficulty profile, that the run began with",
    "gold_answers": "resume with the answers that the run began with",
    "start_weights": "resume with the model that the run began with, not with a checkpoint of it",
    "architecture": "resume with the model that the run began with",
    "tokenizer": "resume with the tokenizer and chat template that the run began with",
    "rollouts_per_update": (
        "keep per_device_train_batch_size × gradient_accumulation_steps × processes as it was, and "
        "generation_batch_size"
    ),
    "generation_batch_size": "set generation_batch_size to its old value",
}


@dataclass(frozen=True)
class Change:
    """A setting that differs.

    Args:
        reason: what the change does to a continued run.
    """

    name: str
    was: Any
    now: Any
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} was {self.was!r}, is {self.now!r}"


@dataclass(frozen=True)
class Comparison:
    """A checkpoint's fingerprint against that of the run that is to continue it.

    Args:
        refused: changes that make it another run.
        told: changes under which it goes on, though not exactly.
        unknown: what only one of the two records: the other release had no such setting.
    """

    refused: tuple[Change, ...]
    told: tuple[Change, ...]
    unknown: tuple[str, ...]

    def refusal(self) -> str:
        """All refused changes in words, with what to do."""
        advice = dict.fromkeys(_ADVICE[change.name] for change in self.refused if change.name in _ADVICE)
        options = " ".join(f"{change.name}={change.was!r}" for change in self.refused if change.name not in _ADVICE)
        steps = [*([f"give the old values again ({options})"] if options else []), *advice]
        return (
            f"{'; '.join(map(str, self.refused))}. To continue it, {', and '.join(steps)}; or start a new run in "
            "another output_dir."
        )

    def notice(self) -> str | None:
        """One line about what makes the run inexact; None where nothing does."""
        by_reason: dict[str, list[str]] = {}
        for change in self.told:
            by_reason.setdefault(change.reason, []).append(str(change))
        parts = [f"{', '.join(changes)} ({reason})" for reason, changes in by_reason.items()]
        if self.unknown:
            named = ", ".join(self.unknown[:NAMED]) + ", …" * (len(self.unknown) > NAMED)
            parts.append(f"{named} cannot be compared (another release wrote the checkpoint)")
        return (
            f"From here on the run is no longer exactly the one that was begun: {'; '.join(parts)}." if parts else None
        )


def settings(options: Any) -> dict[str, Any]:
    """The options with influence on a run, of a configuration (a dataclass), as plain JSON values."""
    names = (field.name for field in dataclasses.fields(options))
    return {name: plain(getattr(options, name)) for name in names if name not in WITHOUT_INFLUENCE}


def plain(value: Any) -> Any:
    """As JSON would give it back; what JSON has no form for by its own `to_dict`, else by the name of its type."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # which, unlike the number, equals itself
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(value.to_dict()) if hasattr(value, "to_dict") else type(value).__qualname__


def compare(was: Mapping[str, Any], now: Mapping[str, Any], *, without: Collection[str] = ()) -> Comparison:
    """What differs between a checkpoint's fingerprint and the present one.

    Args:
        without: names that are not compared.
    """
    names = sorted((was.keys() | now.keys()) - set(without) - WITHOUT_INFLUENCE)
    reasons = CHANGEABLE | CHANGEABLE_FACTS
    changes = [
        Change(name, was[name], now[name], reasons.get(name, ""))
        for name in names
        if name in was and name in now and was[name] != now[name] and name not in _unread(was, now)
    ]
    return Comparison(
        refused=tuple(change for change in changes if change.name not in reasons),
        told=tuple(change for change in changes if change.name in reasons),
        unknown=tuple(name for name in names if (name in was) != (name in now)),
    )


def _unread(was: Mapping[str, Any], now: Mapping[str, Any]) -> Collection[str]:
    """What only one of the two runs reads, and so cannot differ: another setting says why."""
    return [name for name in ("start_weights",) if was.get(name) is None or now.get(name) is None]


def division_problem(passes: int, was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why a checkpoint within a generation batch cannot be continued; None at the end of one, or where it can.

    Its remaining rollouts lie in a file of each process, in as many parts as passes are left.
    """
    if (
        not was.get("steps_per_generation")
        or passes % (was["steps_per_generation"] * was.get("num_iterations", 1)) == 0
    ):
        return None
    names = ("processes", "steps_per_generation", "per_device_train_batch_size", "gradient_accumulation_steps")
    changes = [Change(n, was[n], now[n]) for n in names if n in was and n in now and was[n] != now[n]]
    if not changes:
        return None
    return (
        f"it stands within a generation batch, whose remaining rollouts are divided by the old values: "
        f"{'; '.join(map(str, changes))}. Continue it with these until the batch is done, or from a checkpoint at the "
        "end of one."
    )


def passes_done(passes: int, was: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """A count of passes at the end of a generation batch, in passes of the present division of such batches."""
    before, after = was.get("steps_per_generation"), now.get("steps_per_generation")
    return passes * after // before if before and after else passes


def learning_rate_factor(was: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    """By what the rates that a checkpoint brings along are to be multiplied: new rate over old, 1 where unknown."""
    before, after = was.get("learning_rate"), now.get("learning_rate")
    return after / before if before and after is not None else 1.0


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two sets of settings, in words; empty when nothing does."""
    return "; ".join(
        f"{name} was {was.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    )
