"""P²O: joint policy and prompt optimization (Lu et al., arXiv 2603.21877) as a `GRPOTrainer`.

The whole story, in the order in which an epoch runs:

1. Policy phase. GRPO as TRL has it, with one twist: a question that was hard last epoch samples its rollouts under an
   instruction z put in front of it, T(x, z), while the loss is computed on the bare question x. What the policy could
   do only when told how, it learns to do untold. Tokens far from anything the bare policy would write are masked.
2. Mining. A question none (or just one) of whose rollouts succeeded is hard: GRPO has no advantage to learn from.
3. Prompt phase. GEPA evolves instructions under which the present policy does solve the hard questions; a small set
   that covers them is kept, and every hard question draws from it in the next epoch.

What differs from the textbook: the policy phase is TRL's code, not a copy of it. The two contexts meet in two hooks
that TRL offers to subclasses: `rollout_func` (generate under T(x, z), hand back the tokens of x) and advantages per
token (the mask is a factor on them, so every loss of TRL works and its denominators stay).
"""

import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import gather_object, set_seed
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.trainer.utils import RepeatSampler, pad, use_adapter

from p2o import engine
from p2o.config import P2OConfig
from p2o.distillation import ContextStatistics, context_mask, context_ratio, token_advantages
from p2o.evolution.feedback import rollout_feedback
from p2o.evolution.prompt_phase import (
    EvolutionConfig,
    EvolutionProgress,
    EvolutionResult,
    Question,
    Reflection,
    ReflectionFn,
    Rollout,
    evolve,
)
from p2o.evolution.reflection import TransformersReflection
from p2o.hard_samples import HardSamples
from p2o.seeding import derive_seed, get_rng_states, random_stream, set_rng_states
from p2o.state import STATE_FILE, CheckpointError, P2OState
from p2o.templates import (
    Prompt,
    Template,
    apply_template,
    assign_templates,
    mean_similarity,
    question_text,
    select_templates,
)

logger = logging.getLogger(__name__)

FeedbackFn = Callable[[str, dict[str, Any]], str]
"""`feedback_func(completion, row)`: what to tell the reflection model; `row` is the dataset's plus its `reward`."""

QUESTION_ID = "p2o_question_id"
BUFFER_FILE = "p2o_buffer.pt"
STAGING_DIR = ".incomplete"


class P2OTrainer(GRPOTrainer):
    """`GRPOTrainer` that does not give up on hard questions.

    Takes what `GRPOTrainer` takes. `args` may be a plain `GRPOConfig`'s fields in a [`P2OConfig`]; `reward_funcs` is
    required, because mining needs rewards; tools, environments and images are not supported yet.

    Args:
        feedback_func: feedback on one rollout for the reflection model. By default: wrong or right, the gold answer
            of `args.solution_column`, the reward.
        reflect: reflection model as a function of a batch of prompts. By default the frozen reference: the policy as
            it was before training (the paper's self-reflection).

    Raises:
        ValueError: before any training: an option, a column, a prompt or a combination that cannot work.
    """

    _tag_names: ClassVar = ["trl", "grpo", "p2o"]
    # What TRL's model card says of the method.
    _name = "P2O"
    _paper: ClassVar = {
        "title": "P²O: Joint Policy and Prompt Optimization",
        "id": "2603.21877",
        "citation": (
            "@article{lu2026p2o,\n"
            "    title  = {{P²O: Joint Policy and Prompt Optimization}},\n"
            "    author = {Lu and others},\n"
            "    year   = 2026,\n"
            "    eprint = {arXiv:2603.21877},\n"
            "}"
        ),
    }

    args: P2OConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: P2OConfig | None = None,
        train_dataset: Any = None,
        *pos: Any,
        feedback_func: FeedbackFn | None = None,
        reflect: ReflectionFn | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = P2OConfig(f"{name.split('/')[-1]}-P2O")
        if not isinstance(args, P2OConfig):
            raise ValueError(f"args must be a P2OConfig, not {type(args).__name__}: the names swap in pairs.")
        for option in ("tools", "environment_factory"):
            if kwargs.get(option) is not None:
                raise ValueError(f"P2OTrainer does not support `{option}`: templates are defined for single turns.")
        train_dataset = check_questions(train_dataset, args)
        if args.use_vllm:
            engine.check(args, model)
        with engine.generation_backend(args.device):
            super().__init__(model, reward_funcs, args, train_dataset, *pos, **kwargs)
        if args.use_vllm:
            # A colocated vLLM samples from the process-wide generators, and has just seeded them with a constant.
            set_seed(args.seed, device_specific=True)

        if args.success_reward is not None and args.success_reward not in self.reward_func_names:
            raise ValueError(
                f"success_reward={args.success_reward!r} is none of the reward functions: "
                f"{', '.join(self.reward_func_names)}."
            )
        if args.prompt_phase and self.accelerator.num_processes > 1:
            raise ValueError(
                f"The prompt phase runs in one process so far, this is one of {self.accelerator.num_processes}. "
                "Start a single process, or set prompt_phase=False for plain GRPO."
            )
        if args.dynamic_sampling_rounds and self.accelerator.num_processes > 1:
            raise ValueError("dynamic_sampling_rounds works in a single process so far; set it to 0 or start one.")
        self.max_prompt_length = args.max_prompt_length or self._room_for_prompt()
        self._check_prompt_lengths()

        self.p2o = P2OState()
        self.mined = HardSamples(near_hard=args.near_hard, outcomes=self.p2o.outcomes)
        self.feedback_func = feedback_func or self._default_feedback
        self.rollout_func: Any = self.rollout_func
        self._users_rollout_func = self.rollout_func
        self._resume_directory: Path | None = None
        self._steps_per_epoch = 0
        self._deferred_push: str | None = None
        self._eval_set = ""
        self._eval_successes: list[bool] | None = None
        # Rows of the batch under way: the template of each ("" for none), the tokens of T(x, z) it was sampled under.
        self._row_templates: list[str] = []
        self._row_contexts: list[list[int]] = []
        self._row_rewards: Float[Tensor, "global_batch funcs"] | None = None
        self._collapsed: Bool[Tensor, " groups"] = torch.zeros(0, dtype=torch.bool)
        self.reflect: ReflectionFn = reflect or self._reference_reflection
        self._frozen_model = self._freeze_reference() if args.prompt_phase and reflect is None else None
        self.add_callback(_Phases(self))

    # -- before training ---------------------------------------------------------------------------------------------

    def _room_for_prompt(self) -> int | None:
        """Tokens that the model's positions leave for a prompt; None when the model states no limit."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if self.args.use_vllm:
            positions = min(positions or math.inf, engine.context_length(self.vllm_generation))
        return None if positions is None else int(positions) - self.max_completion_length

    def _check_prompt_lengths(self) -> None:
        if self.max_prompt_length is None:
            return
        prompts = self.train_dataset["prompt"]
        too_long = []
        for start in range(0, len(prompts), 1000):
            ids, _, _ = self._tokenize_prompts(list(prompts[start : start + 1000]))
            too_long += [(start + i, len(row)) for i, row in enumerate(ids) if len(row) > self.max_prompt_length]
        if too_long:
            rows = ", ".join(f"row {row}: {length} tokens" for row, length in too_long[:5])
            raise ValueError(
                f"{len(too_long)} of {len(prompts)} training prompts are longer than {self.max_prompt_length} tokens "
                f"({rows}{', …' if len(too_long) > 5 else ''}). Drop them from the dataset, raise max_prompt_length, "
                "or lower max_completion_length."
            )

    def _freeze_reference(self) -> Any:
        """The policy as it is before training, for reflection: TRL's own reference model where there is one."""
        if self.ref_model is not None and not self.args.sync_ref_model:
            return self.ref_model
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            return None  # the base without its adapter is the reference; see _reference_reflection
        frozen = copy.deepcopy(model).requires_grad_(False).eval()
        # TRL and accelerate patch `forward` on the instance with closures over the policy, which a copy would share: it
        # would reflect with the policy's weights.
        vars(frozen).pop("forward", None)
        return frozen.to(torch.bfloat16) if self.args.bf16 else frozen

    def _reference_reflection(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        with contextlib.ExitStack() as stack:
            model = self._frozen_model
            if model is None:
                model = self.accelerator.unwrap_model(self.model)
                stack.enter_context(use_adapter(model, "ref" if "ref" in model.peft_config else None))
            reflection = TransformersReflection(
                model,
                self._tokenizer,
                max_new_tokens=self.args.reflection_max_tokens,
                temperature=self.args.reflection_temperature,
                batch_size=self.args.prompt_phase_batch_size,
            )
            return reflection(prompts, seed=seed)

    # Before every generation TRL asks whether this is the present step, and sends the weights where it is not. But
    # weights change without a step, too: when the best checkpoint is loaded at the end, or when somebody edits them.
    @property
    def _last_loaded_step(self) -> int:
        return self._loaded_step if self._loaded_weights == engine.weight_versions(self.model) else -1

    @_last_loaded_step.setter
    def _last_loaded_step(self, step: int) -> None:
        self._loaded_step, self._loaded_weights = step, engine.weight_versions(self.model)

    # -- policy phase: sample under T(x, z), learn on x --------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> "EpochSampler":
        sampler = super()._get_train_sampler(dataset)
        return EpochSampler(sampler, lambda: self.p2o.epoch)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return self._sample(inputs, "eval")
        before = get_rng_states()
        counted = copy.deepcopy((self.p2o.ledger, self.p2o.outcomes, self.p2o.events, dict(self._metrics["train"])))
        try:
            output = self._sample(inputs, "train")
            for attempt in range(self.args.dynamic_sampling_rounds):
                if not self._replace_collapsed(output, attempt):
                    break
        except Exception as error:
            # The batch is tried again from here, so nothing of it may have been counted.
            self.p2o.ledger, self.p2o.outcomes, self.p2o.events, metrics = counted
            self.mined.outcomes = self.p2o.outcomes
            self._metrics["train"] = defaultdict(list, metrics)
            self._rescue(error, before)
            raise
        if self.args.dynamic_sampling_rounds:
            self._metric("p2o/collapsed_after_resampling", self._collapsed.float().mean().item())
        return output

    def _sample(self, inputs: list[dict[str, Any]], mode: Literal["train", "eval"]) -> dict[str, Any]:
        """Rollouts of these rows, scored, mined and distilled: what TRL learns from."""
        questions = [row.get(QUESTION_ID) for row in inputs]
        # Reward functions see the dataset's own columns only.
        inputs = [{k: v for k, v in row.items() if k != QUESTION_ID} for row in inputs]
        self._row_templates = self._draw_templates(questions) if mode == "train" else [""] * len(inputs)
        self._row_contexts = []
        templated = any(self._row_templates)
        self.rollout_func = _rollout_under_templates if templated else self._users_rollout_func
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if templated and self.args.context_distillation:
            self._leave_two_contexts_out_of_mismatch(output)
        self._logs["extra"]["template"].extend(gather_object(self._row_templates))
        rollouts = len(inputs) * self.accelerator.num_processes
        read = sum(map(len, self._row_contexts)) or int(output["prompt_mask"].sum())
        lengths = output["completion_mask"].sum(1)
        # Truncated completions, whose mask TRL clears on request, have the full length.
        lengths[lengths == 0] = output["completion_mask"].size(1)
        spent = torch.tensor([read, int(lengths.sum())], device=self.accelerator.device)
        tokens = self.accelerator.reduce(spent, reduction="sum").tolist()
        self.p2o.ledger.add("policy" if mode == "train" else "evaluation", rollouts, *tokens)
        scored = self._success_scores()
        successes = (scored[~scored.isnan()] > self.args.success_threshold).tolist()
        prompts, completions = (list(self._logs[column])[-rollouts:] for column in ("prompt", "completion"))
        templates = list(self._logs["extra"]["template"])[-rollouts:]
        if len(prompts) == rollouts:  # an evaluation batch larger than a training one is not kept by TRL
            batch = zip(prompts, templates, completions, self._rewards().tolist(), strict=True)
            event = "on_rollouts" if mode == "train" else "on_evaluation_rollouts"
            self._phase_event(event, rollouts=list(batch), dataset=self._eval_set)
        if self._eval_successes is not None:
            self._eval_successes += successes
        if mode == "train":
            self._mine(questions)
            self._metric("p2o/rollout_success", sum(successes) / max(len(successes), 1))
            self._metric("p2o/templated_rollouts", sum(map(bool, self._row_templates)) / len(inputs))
            groups = self._rewards().view(-1, self.num_generations)
            # Unscored rollouts are no evidence: a group of ones and NaN has no variance.
            high = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
            low = groups.nan_to_num(nan=torch.inf).amin(dim=1)
            self._collapsed = (high <= low) | torch.isclose(high, low)
            if templated and self.args.context_distillation:
                self._distil(output)
        return output

    def _replace_collapsed(self, output: dict[str, Any], attempt: int) -> bool:
        """Replaces the groups without variance in `output` by those of freshly drawn questions that have some.

        Returns False where there was nothing to replace. DAPO's dynamic sampling (arXiv 2503.14476, section 3.2).
        """
        collapsed, k = self._collapsed, self.num_generations
        slots = collapsed.nonzero().flatten().tolist()
        if not slots:
            return False
        stream = random.Random(derive_seed(self.args.seed, "dynamic sampling", self._step, attempt))
        drawn = [self.train_dataset[stream.randrange(len(self.train_dataset))] for _ in slots]
        fresh = self._sample([dict(row) for row in drawn for _ in range(k)], "train")
        better = [new for new, still in enumerate(self._collapsed.tolist()) if not still]
        source = [new * k + i for new in better for i in range(k)]
        target = [slots[new] * k + i for new in better for i in range(k)]
        replace_rows(output, target, fresh, source, pad_token_id=self._tokenizer.pad_token_id)
        collapsed[[slots[new] for new in better]] = False
        self._collapsed = collapsed
        return True

    def _draw_templates(self, questions: Sequence[int | None]) -> list[str]:
        """The template of each row: K consecutive rows of the global batch are the rollouts of one question."""
        first = self.accelerator.process_index * len(questions)
        drawn = []
        for row, question in enumerate(questions):
            draws = self.p2o.assignment.get(question) if question is not None else None
            index = draws[(first + row) % self.num_generations] if draws else None
            drawn.append("" if index is None else self.p2o.templates[index].text)
        return drawn

    def _contextualise(self, prompts: Sequence[Prompt], templates: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """Tokens of T(x, z) for each row, and the template really used: "" where z would exceed the prompt limit."""
        used = list(templates)
        contexts, _, _ = self._tokenize_prompts([apply_template(p, z) for p, z in zip(prompts, used, strict=True)])
        contexts = [list(ids) for ids in contexts]
        if self.max_prompt_length is not None:
            for row, ids in enumerate(contexts):
                if used[row] and len(ids) > self.max_prompt_length:
                    self._event("template_too_long_for_question")
                    used[row] = ""
                    (contexts[row],) = self._tokenize_prompts([prompts[row]])[0]
        return contexts, used

    def _distil(self, output: dict[str, Any]) -> None:
        """Turns advantages into ones per token, masked by the context ratio in the templated rows."""
        device = output["advantages"].device
        templated = torch.tensor([bool(z) for z in self._row_templates], device=device)
        if not templated.any():
            return
        if "importance_sampling_ratio" in output:
            # TRL's engine correction compares log-probabilities of two contexts here; that ratio is the context mask's.
            output["importance_sampling_ratio"][templated] = 1.0
        bare = self._bare_logps(output, templated)
        if "sampling_per_token_logps" in output:
            sampled = output["sampling_per_token_logps"][templated].clone()
            output["sampling_per_token_logps"][templated] = bare
        else:
            sampled = self._templated_logps(output, templated)
        ratio = context_ratio(bare, sampled)
        low, high = self.args.context_ratio_min, self.args.context_ratio_max
        factor = context_mask(ratio, self.args.context_mask, low, high)  # type: ignore[arg-type]

        advantages = output["advantages"]
        if self.args.drop_failed_templated:
            failed = ~self._successes()[self._local_rows(len(templated))]
            advantages = advantages.masked_fill(templated & failed, 0.0)
        output["advantages"] = token_advantages(advantages, factor, templated)
        if self.args.old_logprobs_context == "rollout":
            output["old_per_token_logps"][templated] = sampled
        self._log_context(ContextStatistics.of(ratio, output["completion_mask"][templated], low, high))

    def _leave_two_contexts_out_of_mismatch(self, output: dict[str, Any]) -> None:
        """What TRL has logged about the two engines, again, over the rows whose log-probabilities share a context."""
        if "importance_sampling_ratio" not in output:
            return
        bare = torch.tensor([not z for z in self._row_templates], device=output["completion_mask"].device)
        measured = engine.mismatch_metrics(
            output["old_per_token_logps"],
            output["sampling_per_token_logps"],
            output["importance_sampling_ratio"],
            output["completion_mask"].bool() & bare.unsqueeze(1),
        )
        for name, values in measured.items():
            self._metrics["train"][name][-1:] = values
            if not self._metrics["train"][name]:
                del self._metrics["train"][name]

    def _bare_logps(
        self, output: dict[str, Any], templated: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "templated completion"]:
        """log π_old(y|x) of the templated rows: TRL's old log-probabilities where it has them, else a pass."""
        if "old_per_token_logps" not in output:
            everything = self.args.old_logprobs_context == "rollout"
            rows = torch.ones_like(templated) if everything else templated
            logps = self._logps(
                output["prompt_ids"][rows],
                output["prompt_mask"][rows],
                output["completion_ids"][rows],
                output["completion_mask"][rows],
            )
            if not everything:
                return logps
            output["old_per_token_logps"] = logps
        return output["old_per_token_logps"][templated].clone()

    def _templated_logps(
        self, output: dict[str, Any], templated: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "templated completion"]:
        """log π_old(y|T(x, z)) of the templated rows, for engines that do not hand them out."""
        contexts = [torch.tensor(self._row_contexts[row]) for row in templated.nonzero().flatten().tolist()]
        ids = pad(contexts, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(c) for c in contexts], padding_value=0, padding_side="left")
        device = output["completion_ids"].device
        return self._logps(
            ids.to(device), mask.to(device), output["completion_ids"][templated], output["completion_mask"][templated]
        )

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, *args: Any, **kw: Any
    ) -> Any:
        # Every pass of TRL's and ours over sampled tokens comes through here.
        tokens = self.accelerator.reduce(attention_mask.sum(), reduction="sum").item()
        if torch.is_grad_enabled():
            self.p2o.ledger.forward_backward_tokens += tokens
        else:
            self.p2o.ledger.forward_tokens += tokens
        return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, *args, **kw)

    @torch.no_grad()
    def _logps(self, prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        logps, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([prompt_ids, ids], dim=1),
            torch.cat([prompt_mask, mask], dim=1),
            ids.size(1),
            batch_size=self.args.per_device_train_batch_size,
        )
        return logps

    # -- mining ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Float[Tensor, "global_batch funcs"]:
        self._row_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._row_rewards

    def _rewards(self) -> Float[Tensor, " global_batch"]:
        """Weighted sum of the last batch's rewards as TRL forms it; NaN where every function answered None."""
        assert self._row_rewards is not None
        weighted = self._row_rewards * self.reward_weights.to(self._row_rewards.device)
        unscored = self._row_rewards.isnan().all(dim=1)
        return weighted.nansum(dim=1).masked_fill(unscored, torch.nan)

    def _success_scores(self) -> Float[Tensor, " global_batch"]:
        if self.args.success_reward is None:
            return self._rewards()
        assert self._row_rewards is not None
        return self._row_rewards[:, self.reward_func_names.index(self.args.success_reward)]

    def _successes(self) -> Bool[Tensor, " global_batch"]:
        return self._success_scores() > self.args.success_threshold

    def _local_rows(self, count: int) -> slice:
        return slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)

    def _mine(self, questions: list[Any]) -> None:
        ids = self.accelerator.gather(torch.tensor(questions, device=self.accelerator.device)).tolist()
        scores = self._success_scores().tolist()
        unscored = sum(math.isnan(score) for score in scores)
        if unscored:
            self._event("unscored_rollouts", unscored)
        k = self.num_generations
        for start in range(0, len(ids), k):
            self.mined.record(ids[start], scores[start : start + k], self.args.success_threshold)

    # -- prompt phase ------------------------------------------------------------------------------------------------

    def _prompt_phase(self) -> None:
        """From the epoch just completed to the assignment for the next one."""
        state, args = self.p2o, self.args
        state.hard_set = self.mined.hard_set()
        state.assignment = {}
        self.mined.clear()
        state.epoch += 1
        state.epoch_complete = False
        if not args.prompt_phase:
            return
        if args.max_prompt_phases is not None and state.prompt_phases >= args.max_prompt_phases:
            self._assign()
            return
        state.templates = []
        if len(state.hard_set) < args.min_hard_questions:
            logger.warning(
                "Prompt phase skipped: %d hard questions, fewer than min_hard_questions=%d; epoch %d is untemplated.",
                len(state.hard_set),
                args.min_hard_questions,
                state.epoch,
            )
            self._phase_event("on_prompt_phase_end", result=None, reason="too few hard questions")
            return
        self._phase_event("on_prompt_phase_begin", hard_set=state.hard_set)
        config = EvolutionConfig(
            budget=args.evolution_calls,
            max_metric_calls=self._remaining_rollouts(),
            parents_per_iteration=args.parents_per_iteration,
            feedback_minibatch_size=args.feedback_minibatch_size,
            max_dev_questions=args.max_dev_questions,
            max_template_length=args.max_template_length,
            reflection_prompt_template=args.reflection_prompt,
        )
        directory = Path(args.output_dir) / "evolution" / f"epoch-{state.epoch:03d}"
        if self._resume_directory is None:
            # A fresh run does not continue what an earlier one left in the same place.
            shutil.rmtree(directory, ignore_errors=True)
        result = evolve(
            [self._question(index) for index in state.hard_set],
            self._rollouts,
            self.reflect,
            config,
            seed=args.seed,
            epoch=state.epoch,
            run_dir=directory,
            special_tokens=set(self._tokenizer.all_special_tokens),
            on_progress=self._on_evolution_progress,
        )
        self._adopt(result)

    def _adopt(self, result: EvolutionResult) -> None:
        """Selection and assignment; the phase's cost enters the ledger once, however often it was interrupted."""
        state = self.p2o
        state.templates = select_templates(
            [
                Template(
                    text=candidate.text,
                    score=sum(candidate.dev_rewards.values()) / max(len(candidate.dev_rewards), 1),
                    solves=frozenset(q for q, solved in candidate.dev_solved.items() if solved),
                    candidate=candidate.index,
                )
                for candidate in result.candidates
            ]
        )
        self._metric("p2o/template_similarity", mean_similarity([t.text for t in state.templates]))
        if len(state.templates) == 1:
            self._event("single_template")
            logger.warning("A single template is left for epoch %d: %r", state.epoch, state.templates[0].text)
        if not state.templates:
            logger.warning("No template solved any dev question: epoch %d is untemplated.", state.epoch)
        self._assign()
        state.prompt_phases += 1
        state.ledger.merge(result.spent)
        self._metric("p2o/templates", len(state.templates))
        self._metric("p2o/candidates", len(result.candidates))
        self._metric("p2o/evolution_rollouts", result.metric_calls)
        self._metric("p2o/dev_covered", len(frozenset().union(*(t.solves for t in state.templates))))
        for reason, count in result.rejections.items():
            self._metric(f"p2o/rejected/{reason}", count)
        self._phase_event("on_prompt_phase_end", result=result, reason=None)

    def _assign(self) -> None:
        """Who gets which template in the epoch to come."""
        args = self.args
        self.p2o.assignment = assign_templates(
            self.p2o.hard_set,
            self.p2o.templates,
            self.num_generations,
            rng=random.Random(derive_seed(args.seed, self.p2o.epoch, "assignment")),
            same_template_per_group=args.same_template_per_group,
            bare_rollouts_per_group=args.bare_rollouts_per_group,
        )

    def _remaining_rollouts(self) -> int | None:
        if self.args.max_rollouts is None:
            return None
        return max(self.args.max_rollouts - self.p2o.ledger.total_rollouts, 0)

    def _question(self, index: int) -> Question:
        row = self.train_dataset[index]
        return Question(
            id=index,
            text=question_text(row["prompt"]),
            solution=str(row.get(self.args.solution_column, "")),
        )

    def _rollouts(
        self, requests: list[tuple[Question, str]], *, seed: int, purpose: Literal["feedback", "dev"]
    ) -> list[Rollout]:
        """Generates and scores one completion a request, as the policy phase would, from a stream of its own."""
        rows = [self.train_dataset[question.id] for question, _ in requests]
        prompts = [row["prompt"] for row in rows]
        contexts, _ = self._contextualise(prompts, [template for _, template in requests])
        # vLLM makes its own batches, the larger its queue the better.
        size = len(contexts) if self.use_vllm else self.args.prompt_phase_batch_size
        with random_stream(seed), torch.no_grad():
            completion_ids = []
            for start in range(0, len(contexts), size):
                ids, _ = self._generate_single_turn(contexts[start : start + size], None, {}, 1)
                completion_ids += ids
            texts = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
            chat = is_conversational({"prompt": prompts[0]})
            completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
            inputs = [{k: v for k, v in row.items() if k != QUESTION_ID} for row in rows]
            self._calculate_rewards(inputs, prompts, completions, completion_ids)
        # What reward functions logged belongs to no policy batch.
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        rewards, successes = self._rewards().tolist(), self._successes().tolist()
        rollouts = []
        lengths = [(len(context), len(ids)) for context, ids in zip(contexts, completion_ids, strict=True)]
        for row, text, reward, solved, tokens in zip(inputs, texts, rewards, successes, lengths, strict=True):
            if math.isnan(reward):
                self._event("unscored_rollouts")
                reward = 0.0
            feedback = self.feedback_func(text, {**row, "reward": reward})
            rollouts.append(Rollout(text, reward, solved, feedback, *tokens))
        return rollouts

    def _default_feedback(self, completion: str, row: dict[str, Any]) -> str:
        return rollout_feedback(
            reward=row["reward"], extracted=completion, solution=str(row.get(self.args.solution_column, ""))
        )

    # -- what a watcher sees -----------------------------------------------------------------------------------------

    def _metric(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(float(value))

    def _event(self, name: str, count: int = 1) -> None:
        """Counts an incident that lost nothing; it shows in the metrics as `p2o/events/<name>`."""
        self.p2o.events[name] = self.p2o.events.get(name, 0) + count

    def _log_context(self, local: ContextStatistics) -> None:
        sums = torch.tensor([local.tokens, local.below, local.above, local.log_ratio], dtype=torch.float64)
        tokens, below, above, log_ratio = sums.tolist()
        self._metric("p2o/context_ratio/below", below / max(tokens, 1))
        self._metric("p2o/context_ratio/above", above / max(tokens, 1))
        self._metric("p2o/context_ratio/mean_log", log_ratio / max(tokens, 1))

    def _phase_event(self, event: str, **kwargs: Any) -> None:
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self.args, self.state, self.control, p2o=self.p2o, **kwargs)

    def _on_evolution_progress(self, progress: EvolutionProgress) -> None:
        self._phase_event("on_prompt_phase_progress", progress=progress)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            outcomes = self.mined.outcomes
            logs["p2o/hard_set"] = len(self.p2o.hard_set)
            logs["p2o/hard_so_far"] = len(self.mined.hard_set())
            logs["p2o/questions_so_far"] = len(outcomes)
            logs["p2o/templated_questions"] = len(self.p2o.assignment)
            for unit in ("rollouts", "prompt_tokens", "completion_tokens"):
                for purpose, count in getattr(self.p2o.ledger, unit).items():
                    logs[f"p2o/{unit}/{purpose}"] = count
            logs["p2o/rollouts/total"] = self.p2o.ledger.total_rollouts
            logs["p2o/trained_tokens/forward"] = self.p2o.ledger.forward_tokens
            logs["p2o/trained_tokens/forward_backward"] = self.p2o.ledger.forward_backward_tokens
            for name, count in self.p2o.events.items():
                logs[f"p2o/events/{name}"] = count
        elif self._eval_successes is not None:
            # Over all rollouts: TRL averages over batches, of which the last is smaller. Once: what is logged between
            # an evaluation and the next step, such as the run time, is not of it.
            successes, self._eval_successes = self._eval_successes, None
            self._metrics["eval"]["accuracy"] = [sum(successes) / len(successes) if successes else math.nan]
        if not self.model.training and self._eval_set:
            # TRL names its evaluation metrics alike for every dataset of a dictionary; the last one would win.
            self._metrics["eval"] = defaultdict(
                list, {f"{self._eval_set}_{name}": values for name, values in self._metrics["eval"].items()}
            )
        super().log(logs, start_time)

    # -- evaluation: always bare, from a stream of its own -----------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer.evaluate`; `<prefix>_accuracy` is the share of successes, by the same criterion as in mining."""
        self._eval_set = metric_key_prefix.removeprefix("eval").lstrip("_")
        self._eval_successes = []
        with random_stream(derive_seed(self.args.seed, "evaluation")):
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        accuracy = metrics.get(f"{metric_key_prefix}_accuracy")
        if accuracy is not None:
            self._watch_for_regression(metric_key_prefix, accuracy)
        return metrics

    def _watch_for_regression(self, name: str, accuracy: float) -> None:
        first = self.p2o.first_accuracy.setdefault(name, accuracy)
        if accuracy < first - self.args.regression_margin:
            self._event("accuracy_regression")
            logger.warning(
                "%s_accuracy fell from %.3f to %.3f, by more than regression_margin=%g.",
                name,
                first,
                accuracy,
                self.args.regression_margin,
            )

    # -- state -------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to continue exactly."""
        names = (
            "seed num_generations generation_batch_size steps_per_generation num_iterations temperature near_hard "
            "success_threshold success_reward prompt_phase min_hard_questions max_dev_questions evolution_budget "
            "parents_per_iteration feedback_minibatch_size max_template_length reflection_prompt reflection_max_tokens "
            "reflection_temperature same_template_per_group bare_rollouts_per_group drop_failed_templated context_mask "
            "context_ratio_min context_ratio_max old_logprobs_context dynamic_sampling_rounds max_completion_length "
            "context_distillation max_prompt_phases "
            "loss_type shuffle_dataset"
        ).split()
        prompts = hashlib.sha256()
        for prompt in self.train_dataset["prompt"]:
            prompts.update(json.dumps(prompt, sort_keys=True).encode())
        values = {name: getattr(self.args, name) for name in names}
        return {**values, "questions": len(self.train_dataset), "prompts_sha256": prompts.hexdigest()[:16]}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; resuming continues exactly, from the newest complete checkpoint when given `True`.

        Raises:
            CheckpointError: nothing to resume from, or a checkpoint of another configuration or version.
        """
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(Path(self.args.output_dir))
            if newest is None:
                raise CheckpointError(f"There is no checkpoint in {self.args.output_dir} to resume from.")
            resume_from_checkpoint = str(newest)
        self._last_loaded_step = -1  # steps are counted from zero again, with other weights
        if resume_from_checkpoint:
            self._restore(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _restore(self, checkpoint: Path) -> None:
        self.p2o = P2OState.load(checkpoint, self.fingerprint())
        self.mined = HardSamples(near_hard=self.args.near_hard, outcomes=self.p2o.outcomes)
        self._resume_directory = checkpoint
        self._step = self.p2o.trainer_step
        self._metrics["train"].update(self.p2o.pending_metrics)
        buffer = checkpoint / BUFFER_FILE
        if buffer.exists():
            self._buffered_inputs = torch.load(buffer, map_location=self.accelerator.device, weights_only=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes into a staging directory and renames it: what is called a checkpoint is complete, whenever we die."""
        final = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = Path(self.args.output_dir) / STAGING_DIR / final.name
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)
            staged.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._deferred_push = None
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        if self.args.should_save:
            self._save_state(staged)
            if self.state.best_global_step:
                best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                if best.exists() or best == final:
                    self.state.best_model_checkpoint = str(best)
                    self.state.save_to_json(str(staged / "trainer_state.json"))
            for path in (*staged.iterdir(), staged):
                _fsync(path)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staged, final)
            shutil.rmtree(staged.parent, ignore_errors=True)
            rotate_checkpoints(
                output_dir=self.args.output_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self._deferred_push is not None:
            super()._push_from_checkpoint(str(final))

    def _save_state(self, checkpoint: Path) -> None:
        self.p2o.trainer_step = self._step
        self.p2o.pending_metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        self.p2o.save(checkpoint, self.fingerprint())
        # Within a generation batch the rollouts still to be learnt from belong to the state.
        if self._step % (self.args.steps_per_generation * self.num_iterations) and self._buffered_inputs is not None:
            torch.save(self._buffered_inputs, checkpoint / BUFFER_FILE)

    _staging = False

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return os.path.join(directory, STAGING_DIR) if self._staging else directory

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload runs in the background and must not have its folder renamed under it.
        if self._staging:
            self._deferred_push = checkpoint_folder
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _rescue(self, error: Exception, rng_states: dict[str, Any]) -> None:
        """Generation or a reward function failed: saves the finished work, from where the same batch is tried again."""
        if self.state.global_step == 0 or self.args.save_strategy == "no":
            return
        final = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not final.exists() and self._step % self.args.gradient_accumulation_steps == 0:
            set_rng_states(rng_states)
            self._save_checkpoint(self.model_wrapped, trial=None)
        if final.exists():
            error.add_note(f"Everything up to step {self.state.global_step} is saved; resume from {final}.")


class _Phases(TrainerCallback):
    """Alternates the phases at the seams that transformers' loop offers."""

    def __init__(self, trainer: P2OTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batches = len(kwargs["train_dataloader"])
        self.trainer._steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # At the beginning rather than the end: the checkpoint of an epoch's last step then says that the prompt phase
        # is still to come, and a run killed inside it resumes there.
        if self.trainer.p2o.epoch_complete:
            self.trainer._prompt_phase()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self.trainer
        if state.global_step % trainer._steps_per_epoch == 0:
            trainer.p2o.epoch_complete = True
            if trainer.args.prompt_phase and args.save_strategy != "no":
                control.should_save = True
        if trainer._remaining_rollouts() == 0:
            control.should_training_stop = True


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order in epoch e does not depend on the process having lived through the epochs before."""

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.__dict__.update(sampler.__dict__)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(self.epoch()):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


def _rollout_under_templates(prompts: list[Prompt], trainer: P2OTrainer) -> dict[str, Any]:
    """TRL's `rollout_func`: samples from π(·|T(x, z)) and hands back x, on which TRL then computes the loss."""
    contexts, used = trainer._contextualise(prompts, trainer._row_templates)
    trainer._row_contexts, trainer._row_templates = contexts, used
    if trainer._users_rollout_func is not None:
        templated = [apply_template(prompt, z) for prompt, z in zip(prompts, used, strict=True)]
        output = dict(trainer._users_rollout_func(templated, trainer))
    else:
        # One by one (num_generations=1): rollouts of one group no longer share a prompt.
        completion_ids, logprobs = trainer._generate_single_turn(contexts, None, {}, 1)
        output = {"completion_ids": completion_ids, "logprobs": logprobs}
    learnt = trainer._tokenize_prompts(prompts)[0] if trainer.args.context_distillation else contexts
    return {**output, "prompt_ids": learnt}


def replace_rows(
    output: dict[str, Any], target: list[int], fresh: dict[str, Any], source: list[int], *, pad_token_id: int
) -> None:
    """Puts rows `source` of one scored batch in the place of rows `target` of another, padding both to one width."""
    widths = [batch["completion_mask"].size(1) for batch in (output, fresh)]
    for name, old in output.items():
        if name == "num_items_in_batch":
            continue
        new = fresh[name]
        if old.dim() < new.dim():  # advantages: one a row where no template was in use, else one a token
            old = old.unsqueeze(1).repeat(1, widths[0])
        elif new.dim() < old.dim():
            new = new.unsqueeze(1).repeat(1, widths[1])
        if old.dim() == 2:
            value = pad_token_id if name.endswith("_ids") else 0
            rows = pad([*old, *new], padding_value=value, padding_side="left" if name.startswith("prompt") else "right")
            old, new = rows[: len(old)], rows[len(old) :]
        output[name] = old.clone()
        output[name][target] = new[source]
    learnt = output["completion_mask"] * output.get("tool_mask", 1)
    output["num_items_in_batch"] = learnt.sum()


def check_questions(dataset: Any, args: P2OConfig) -> Any:
    """Checks the training questions and numbers them, so that a rollout can be traced to its row.

    Raises:
        ValueError: not a dataset of known length, no or empty prompts, images; rows are named.
    """
    if dataset is None:
        raise ValueError("P2OTrainer needs a train_dataset.")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "add_column"):
        raise ValueError(
            f"train_dataset is a {type(dataset).__name__}; P²O comes back to questions by row and needs a "
            "`datasets.Dataset` (load it without streaming=True)."
        )
    if "prompt" not in dataset.column_names:
        raise ValueError(f"train_dataset has no `prompt` column; it has {', '.join(dataset.column_names) or 'none'}.")
    if len(dataset) == 0:
        raise ValueError("train_dataset is empty.")
    if "image" in dataset.column_names or "images" in dataset.column_names:
        raise ValueError("train_dataset has images; P2OTrainer supports text questions only.")
    questions_per_batch = args.generation_batch_size // args.num_generations
    if len(dataset) < questions_per_batch:
        raise ValueError(
            f"train_dataset has {len(dataset)} questions, fewer than the {questions_per_batch} of one generation "
            "batch (generation_batch_size / num_generations): no step could be taken. Lower "
            "per_device_train_batch_size or steps_per_generation."
        )
    for row, prompt in enumerate(dataset["prompt"]):
        try:
            empty = not prompt or not question_text(prompt).strip()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"train_dataset row {row}, field `prompt`: {error}") from None
        if empty:
            raise ValueError(f"train_dataset row {row}, field `prompt`: empty.")
    if args.prompt_phase and args.solution_column not in dataset.column_names:
        logger.warning(
            "train_dataset has no column %r: reflection gets no gold answers, and templates cannot be checked for "
            "leaking them. Name the column with solution_column.",
            args.solution_column,
        )
    return dataset.add_column(QUESTION_ID, list(range(len(dataset))))


def newest_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    checkpoints = [
        path
        for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rsplit("-", 1)[1].isdecimal() and (path / STATE_FILE).exists()
    ]
    return max(checkpoints, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
