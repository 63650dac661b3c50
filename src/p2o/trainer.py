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
import itertools
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
from accelerate.utils import gather_object, send_to_device, set_seed
from huggingface_hub import ModelCard
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.trainer.utils import RepeatSampler, pad, use_adapter

from p2o import engine
from p2o.config import P2OConfig
from p2o.distillation import ContextStatistics, context_mask, context_ratio, token_advantages
from p2o.hard_samples import HardSamples
from p2o.ledger import Ledger
from p2o.model_card import p2o_section, with_section, without_none
from p2o.processes import FINISHED, batches_of_all, follow, lead, most, share, spread
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.types import (
    EvolutionConfig,
    EvolutionProgress,
    EvolutionResult,
    Question,
    Reflection,
    ReflectionFn,
    Rollout,
    Success,
)
from p2o.reflection.endpoint import EndpointReflection
from p2o.reflection.model import transformers_reflection
from p2o.reflection.reference import Reference
from p2o.reuse import KeptRollout, draw_successes, padded
from p2o.sampled_logps import SampledLogps
from p2o.seeding import derive_seed, get_rng_states, random_stream, set_rng_states
from p2o.state import STATE_FILE, CheckpointError, P2OState
from p2o.templates import (
    Prompt,
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
BUFFER_FILE = "p2o_buffer_{process}.pt"
REUSE_FILE = "p2o_reuse.pt"
STAGING_DIR = ".incomplete"


class P2OTrainer(GRPOTrainer):
    """`GRPOTrainer` that does not give up on hard questions.

    Takes what `GRPOTrainer` takes. `args` may be a plain `GRPOConfig`'s fields in a [`P2OConfig`]; `reward_funcs` is
    required, because mining needs rewards; tools, environments and images are not supported yet.

    Args:
        feedback_func: feedback on one rollout for the reflection model. By default: wrong or right, the gold answer
            of `args.solution_column`, the reward.
        reflect: reflection model as a function of a batch of prompts, in place of `args.reflection_model`. It may raise
            [`p2o.prompt_phase.types.ReflectionError`] to end a prompt phase early; anything else ends the run.

    Raises:
        ValueError: before any training: an option, a column, a prompt or a combination that cannot work.
        ImportError: a reflection endpoint or vLLM without the package that it needs.
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
        train_dataset = number_questions(train_dataset, args)
        own_reflection = reflect is None and not args.reflection_endpoint
        if reflect is None and args.prompt_phase and args.reflection_endpoint:
            reflect = self._endpoint_reflection(args)
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
        if args.reused_rollouts_per_group and self.rollout_func is not None:
            raise ValueError("reused_rollouts_per_group does not go together with a rollout_func of your own.")
        self.max_prompt_length = args.max_prompt_length or self._room_for_prompt()
        self._check_prompt_lengths()

        self.p2o = P2OState()
        self._phase_spent = Ledger()
        self.mined = HardSamples(near_hard=args.near_hard, outcomes=self.p2o.outcomes)
        self.feedback_func = feedback_func or self._default_feedback
        self.rollout_func: Any = self.rollout_func
        self._users_rollout_func = self.rollout_func
        self._resume_directory: Path | None = None
        self._steps_per_epoch = 0
        self._deferred_push: str | None = None
        self._eval_set = ""
        self._eval_successes: list[bool] | None = None
        # By question, what the last prompt phase solved and this epoch's groups draw on.
        self.kept: dict[int, list[KeptRollout]] = {}
        # Rows of the batch under way: the template of each ("" for none), the tokens of T(x, z) it was sampled under,
        # the kept rollout that it is, if it is one.
        self._row_templates: list[str] = []
        self._row_kept: list[KeptRollout | None] = []
        self._row_contexts: list[list[int]] = []
        self._row_rewards: Float[Tensor, "global_batch funcs"] | None = None
        # What all processes have agreed to fail of.
        self._reward_failure: Exception | None = None
        self._collapsed: Bool[Tensor, " groups"] = torch.zeros(0, dtype=torch.bool)
        self._update: dict[str, Any] | None = None  # what the update under way is computed from
        self._reference = None
        if args.prompt_phase and own_reflection and args.reflection_model == "reference":
            self._reference = self._keep_reference()
        # An endpoint and a function of the user's answer the first process alone; a model of ours runs in all of them.
        self.reflect: ReflectionFn = reflect or self._own_reflection
        self._tasks: dict[str, Callable[..., Any]] = {"rollouts": self._rollouts, "reflect": self._reflect_together}
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

    def _keep_reference(self) -> Reference | None:
        """The policy as it is before training; None where that is at hand anyway (see `_reflecting_model`)."""
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config") or (self.ref_model is not None and not self.args.sync_ref_model):
            return None
        dtype = torch.bfloat16 if self.args.bf16 else None
        return Reference(model, self.accelerator, Path(self.args.output_dir), dtype=dtype)

    @contextlib.contextmanager
    def _reflecting_model(self) -> Iterator[Any]:
        """The policy, its frozen copy, TRL's own reference model, or the base without its adapter."""
        policy = self.accelerator.unwrap_model(self.model)
        if self.args.reflection_model == "policy":
            yield policy
        elif self._reference is not None:
            with self._reference.on(self.accelerator.device) as frozen:
                yield frozen
        elif self.ref_model is not None:
            yield self.ref_model
        else:
            with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
                yield policy

    def _own_reflection(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        lead(self.accelerator, "reflect", prompts, seed)
        return self._reflect_together(prompts, seed)

    def _reflect_together(self, prompts: list[str], seed: int) -> list[Reflection]:
        """Reflections of the frozen reference, or of the policy, by all processes."""
        with self._reflecting_model() as model:
            size = self.args.prompt_phase_batch_size
            reflection = transformers_reflection(
                model,
                self._tokenizer,
                max_new_tokens=self.args.reflection_max_tokens,
                temperature=self.args.reflection_temperature,
                batch_size=size,
            )
            return spread(
                self.accelerator,
                lambda batch, stream: reflection(batch, seed=stream),
                prompts,
                batch_size=size,
                seed=seed,
            )

    def _endpoint_reflection(self, args: P2OConfig) -> EndpointReflection:
        endpoint = EndpointReflection(
            args.reflection_model,
            base_url=args.reflection_base_url,
            max_tokens=args.reflection_max_tokens,
            temperature=args.reflection_temperature,
            concurrency=args.reflection_concurrency,
            timeout=args.reflection_timeout,
            max_retries=args.reflection_max_retries,
            left=self._reflection_left,
        )
        if args.reflection_cost_limit is not None and not endpoint.priced:
            raise ValueError(
                f"reflection_cost_limit={args.reflection_cost_limit} cannot be kept: litellm knows no price for "
                f"{args.reflection_model!r}. Set reflection_token_limit instead."
            )
        return endpoint

    def _reflection_left(self) -> tuple[float, float]:
        """Tokens and US dollars that this run may still spend on reflection."""
        tokens, cost = self.args.reflection_token_limit or math.inf, self.args.reflection_cost_limit or math.inf
        for ledger in (self.p2o.ledger, self._phase_spent):
            tokens -= ledger.prompt_tokens["reflection"] + ledger.completion_tokens["reflection"]
            cost -= ledger.reflection_cost
        return tokens, cost

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
        counted = copy.deepcopy((self.p2o.ledger, self.p2o.events, dict(self._metrics["train"])))
        outcomes = dict(self.p2o.outcomes)  # one a question of the epoch, and none ever changes
        try:
            output = self._sample(inputs, "train")
            for attempt in range(self.args.dynamic_sampling_rounds):
                if not self._replace_collapsed(output, attempt):
                    break
        except Exception as error:
            # The batch is tried again from here, so nothing of it may have been counted.
            self.p2o.ledger, self.p2o.events, metrics = counted
            self.mined.outcomes = self.p2o.outcomes = outcomes
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
        self._row_templates, self._row_kept = [""] * len(inputs), [None] * len(inputs)
        if mode == "train":
            self._draw(questions)
        self._row_contexts = []
        # By the epoch, not by the rows at hand: all processes go the same way.
        two_contexts = mode == "train" and bool(self.p2o.assignment or self.kept)
        self.rollout_func = _rollout_under_templates if two_contexts else self._users_rollout_func
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if two_contexts and self.args.context_distillation:
            self._leave_two_contexts_out_of_mismatch(output)
        self._logs["extra"]["template"].extend(gather_object(self._row_templates))
        rollouts = len(inputs) * self.accelerator.num_processes
        # A kept rollout was paid for when it was sampled, and says nothing of what the policy can do now.
        sampled = ~self._kept_rows(self.accelerator.device)
        everywhere = self.accelerator.gather(sampled)
        contexts = [context for context, kept in zip(self._row_contexts, self._row_kept, strict=False) if kept is None]
        read = sum(map(len, contexts)) or int(output["prompt_mask"][sampled].sum())
        lengths = output["completion_mask"].sum(1)
        # Truncated completions, whose mask TRL clears on request, have the full length.
        lengths[lengths == 0] = output["completion_mask"].size(1)
        spent = torch.tensor([read, int(lengths[sampled].sum())], device=self.accelerator.device)
        tokens = self.accelerator.reduce(spent, reduction="sum").tolist()
        self.p2o.ledger.add("policy" if mode == "train" else "evaluation", int(everywhere.sum()), *tokens)
        scored = self._success_scores()[everywhere]
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
            self._mine(questions, everywhere)
            self._metric("p2o/rollout_success", sum(successes) / max(len(successes), 1))
            self._metric("p2o/templated_rollouts", sum(map(bool, templates)) / rollouts)
            if self.args.reused_rollouts_per_group:
                self._metric("p2o/reused_rollouts", 1 - everywhere.float().mean().item())
            groups = self._rewards().view(-1, self.num_generations)
            # Unscored rollouts are no evidence: a group of ones and NaN has no variance.
            high = groups.nan_to_num(nan=-torch.inf).amax(dim=1)
            low = groups.nan_to_num(nan=torch.inf).amin(dim=1)
            self._collapsed = (high <= low) | torch.isclose(high, low)
            if two_contexts and self.args.context_distillation:
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
        # Every process takes as many rows; where they do not divide into that, some questions are drawn in vain.
        processes = self.accelerator.num_processes
        count = next(n for n in itertools.count(len(slots)) if n * k % processes == 0)
        drawn = [self.train_dataset[stream.randrange(len(self.train_dataset))] for _ in range(count)]
        rows = [dict(row) for row in drawn for _ in range(k)]
        each = len(rows) // processes
        fresh = self._sample(rows[self._local_rows(each)], "train")
        better = [new for new in range(len(slots)) if not self._collapsed[new]]
        source = [new * k + i for new in better for i in range(k)]
        target = [slots[new] * k + i for new in better for i in range(k)]
        mine = self._local_rows(len(output["advantages"]))
        for process, part in enumerate(batches_of_all(self.accelerator, fresh)):
            moved = [
                (to - mine.start, since - process * each)
                for to, since in zip(target, source, strict=True)
                if mine.start <= to < mine.stop and since // each == process
            ]
            replace_rows(
                output,
                [to for to, _ in moved],
                part,
                [since for _, since in moved],
                pad_token_id=self._tokenizer.pad_token_id,
            )
        output["num_items_in_batch"] = self.accelerator.reduce(output["num_items_in_batch"], reduction="sum")
        collapsed[[slots[new] for new in better]] = False
        self._collapsed = collapsed
        return True

    def _draw(self, questions: list[Any]) -> None:
        """Template or kept rollout of each row: K consecutive rows of the global batch are one question's rollouts.

        The last rollouts of a group are kept ones, as far as there are any.
        """
        first = self.accelerator.process_index * len(questions)
        for row, question in enumerate(questions):
            place = (first + row) % self.num_generations
            kept, from_end = self.kept.get(question, []), self.num_generations - 1 - place
            draws = self.p2o.assignment.get(question)
            if from_end < len(kept):
                self._row_kept[row] = kept[from_end]
                self._row_templates[row] = kept[from_end].template
            elif draws and (index := draws[place]) is not None:
                self._row_templates[row] = self.p2o.templates[index].text

    def _kept_rows(self, device: torch.device) -> Bool[Tensor, " batch"]:
        return torch.tensor([kept is not None for kept in self._row_kept], device=device)

    def _contextualise(self, prompts: Sequence[Prompt], templates: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """Tokens of T(x, z) for each row, and the template really used: "" where z would exceed the prompt limit."""
        used = list(templates)
        contexts, _, _ = self._tokenize_prompts([apply_template(p, z) for p, z in zip(prompts, used, strict=True)])
        contexts = [list(ids) for ids in contexts]
        if self.max_prompt_length is not None:
            for row, ids in enumerate(contexts):
                if used[row] and len(ids) > self.max_prompt_length:
                    used[row] = ""
                    (contexts[row],) = self._tokenize_prompts([prompts[row]])[0]
        return contexts, used

    def _generate_with_logps(self, contexts: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """A completion of each, and log π_old of its tokens as sampled, unless no engine tells them."""
        if self.use_vllm or self.use_transformers_continuous_batching:
            return self._generate_together(contexts)
        with SampledLogps(self.accelerator.unwrap_model(self.model), self.temperature) as sampled:
            ids, _ = self._generate_together(contexts)
        logps = sampled.of(ids)
        # All processes have them or none, since what stands in for them is a pass of all.
        return ids, None if most(self.accelerator, int(logps is None)) else logps

    def _generate_single_turn(self, *args: Any) -> tuple[list[list[int]], list[list[float]] | None]:
        if not (self.use_vllm and self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size > 1):
            return super()._generate_single_turn(*args)
        # Processes that hold parts of one engine each draw the next token for themselves, and go on as if all had drawn
        # the same.
        with random_stream(engine.same_seed(self.vllm_generation, int(torch.randint(2**62, ())))):
            return super()._generate_single_turn(*args)

    def _generate_together(self, contexts: list[list[int]]) -> tuple[list[list[int]], list[list[float]] | None]:
        """TRL's generation, one completion each, where processes do not have equally many contexts to generate from.

        TRL cuts what comes back from a shared engine as if they had, and sharded weights are gathered by all or none.
        """
        number = len(contexts)
        most_of_any = most(self.accelerator, number) if self.use_vllm else max(number, 1)
        if most_of_any > number:
            filler = contexts[0] if contexts else self._tokenize_prompts([self.train_dataset[0]["prompt"]])[0][0]
            contexts = contexts + [filler] * (most_of_any - number)
        ids, logps = self._generate_single_turn(contexts, None, {}, 1)
        return ids[:number], None if logps is None else logps[:number]

    def _count_dropped(self, templates: int) -> None:
        if templates:
            self._event("template_too_long_for_question", templates)

    def _distil(self, output: dict[str, Any]) -> None:
        """Notes which rows have two contexts and what was sampled under the other one, and masks their advantages.

        The mask needs log π_old(y|x). Where nothing else does, because the update follows the generation at once, it is
        left to the loss, whose forward pass says it; see `_compute_loss`.
        """
        device = output["advantages"].device
        rows = self._kept_rows(device) | torch.tensor([bool(z) for z in self._row_templates], device=device)
        if "importance_sampling_ratio" in output:
            # TRL's engine correction compares log-probabilities of two contexts here; that ratio is the context mask's.
            output["importance_sampling_ratio"][rows] = 1.0
        if self.args.drop_failed_templated:
            failed = ~self._successes()[self._local_rows(len(rows))]
            output["advantages"] = output["advantages"].masked_fill(rows & failed, 0.0)
        told = self.args.old_logprobs_context == "rollout"
        if not told:
            rows &= output["advantages"] != 0  # the mask is a factor on them
        sampled = output.get("sampling_per_token_logps")
        if sampled is None:
            sampled = self._templated_logps(output, rows)
        output["two_contexts"], output["context_logps"] = rows, sampled
        if (self.kept or told) and most(self.accelerator, int(rows.sum())):
            self._need_old_logps(output)
        if "old_per_token_logps" in output:
            self._mask_by_context(output, output["old_per_token_logps"])
            if told:
                output["old_per_token_logps"][rows] = sampled[rows]

    def _mask_by_context(self, batch: dict[str, Any], bare: Float[Tensor, "batch completion"]) -> None:
        """Turns advantages into ones per token, masked in the rows of two contexts; `bare` is log π_old(y|x)."""
        rows, sampled = batch.pop("two_contexts"), batch.pop("context_logps")
        ratio = context_ratio(bare[rows], sampled[rows])
        low, high = self.args.context_ratio_min, self.args.context_ratio_max
        factor = context_mask(ratio, self.args.context_mask, low, high)  # type: ignore[arg-type]
        batch["advantages"] = token_advantages(batch["advantages"], factor, rows)
        if "sampling_per_token_logps" in batch:
            # TRL's off-policy mask compares them with log-probabilities under x.
            batch["sampling_per_token_logps"] = torch.where(rows.unsqueeze(1), bare, batch["sampling_per_token_logps"])
        self._log_context(ContextStatistics.of(ratio, batch["completion_mask"][rows], low, high))

    def _leave_two_contexts_out_of_mismatch(self, output: dict[str, Any]) -> None:
        """What TRL has logged about the two engines, again, over the rows whose log-probabilities share a context."""
        if "importance_sampling_ratio" not in output:
            return
        device = output["completion_mask"].device
        bare = torch.tensor([not z for z in self._row_templates], device=device) & ~self._kept_rows(device)
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

    def _need_old_logps(self, output: dict[str, Any]) -> None:
        """log π_old(y|x): TRL's or else a pass; of a kept rollout, those of the policy that sampled it."""
        if "old_per_token_logps" not in output:
            names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            output["old_per_token_logps"] = self._logps(*(output[name] for name in names))
        kept = self._kept_rows(output["advantages"].device)
        if kept.any():
            output["old_per_token_logps"][kept] = self._of_kept("bare_logps", output["old_per_token_logps"])

    def _of_kept(self, name: str, like: Float[Tensor, "batch completion"]) -> Float[Tensor, "kept completion"]:
        return padded([getattr(k, name) for k in self._row_kept if k is not None], like.size(1)).to(like)

    def _templated_logps(
        self, output: dict[str, Any], rows: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch completion"]:
        """log π_old(y|T(x, z)) of these rows by a pass, where nobody has told them while sampling; zeros elsewhere."""
        kept = self._kept_rows(rows.device)
        logps = torch.zeros_like(output["completion_ids"], dtype=torch.float32)
        fresh = rows & ~kept
        contexts = [self._row_contexts[row] for row in fresh.nonzero().flatten().tolist()]
        logps[fresh] = self._context_logps(
            contexts, output["completion_ids"][fresh], output["completion_mask"][fresh]
        ).to(logps)
        if kept.any():
            logps[kept] = self._of_kept("sampled_logps", logps)
        return logps

    def _context_logps(
        self, contexts: list[list[int]], ids: Int[Tensor, "rows completion"], mask: Int[Tensor, "rows completion"]
    ) -> Float[Tensor, "rows completion"]:
        prompts = [torch.tensor(context, device=ids.device) for context in contexts]
        if not prompts:
            nothing = ids.new_zeros((0, 1))
            return self._logps(nothing, nothing, ids, mask)
        prompt_ids = pad(prompts, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        prompt_mask = pad([torch.ones_like(prompt) for prompt in prompts], padding_value=0, padding_side="left")
        return self._logps(prompt_ids, prompt_mask, ids, mask)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if self._skips_zero_advantages:
            self._metric("p2o/skipped_rollouts", 1 - _live(inputs["advantages"]).float().mean().item())
        # A copy: the rollouts may be learnt from again.
        self._update = dict(inputs)
        try:
            return super()._compute_loss(model, self._update)
        finally:
            self._update = None

    @property
    def _skips_zero_advantages(self) -> bool:
        """Whether rollouts without advantage add nothing to the gradient: no other term than the policy's is in it."""
        others = (
            self.beta != 0.0 or self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0 or self.aux_loss_enabled
        )
        return self.args.skip_zero_advantages and not others

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kw: Any
    ) -> Any:
        # Every pass of TRL's and ours over sampled tokens comes through here; one with a gradient is the loss's own.
        update = self._update if torch.is_grad_enabled() else None
        if update is None or not self._skips_zero_advantages or (live := _live(update["advantages"])).all():
            self._count_tokens(attention_mask)
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kw
            )
        else:
            # One row at least: every process takes part in the backward pass.
            rows = live.nonzero().flatten() if live.any() else torch.zeros_like(live[:1], dtype=torch.long)
            counted = attention_mask[rows]
            self._count_tokens(counted)
            logps, entropies, auxiliary = super()._get_per_token_logps_and_entropies(
                model, input_ids[rows], counted, logits_to_keep, *args, **kw
            )
            # The loss is TRL's, over all rows, with its normalisers. Those left out have a policy ratio of 1 there and
            # no advantage. Their entropy, which is only logged, is the mean of the others'.
            shape = (len(input_ids), logits_to_keep)
            still = update.get("old_per_token_logps", logps.new_zeros(shape)).to(logps)
            mask = counted[:, -logits_to_keep:]
            mean = (entropies * mask).sum() / mask.sum().clamp(min=1)
            everywhere = mean.expand(shape).to(entropies)
            result = still.index_copy(0, rows, logps), everywhere.index_copy(0, rows, entropies), auxiliary
        if update is not None and "two_contexts" in update:
            # The policy has not moved since it sampled; TRL, too, takes this pass for the old log-probabilities. It
            # reads the advantages after it.
            self._mask_by_context(update, result[0].detach())
        return result

    def _count_tokens(self, mask: Int[Tensor, "batch tokens"]) -> None:
        tokens = self.accelerator.reduce(mask.sum(), reduction="sum").item()
        if torch.is_grad_enabled():
            self.p2o.ledger.forward_backward_tokens += tokens
        else:
            self.p2o.ledger.forward_tokens += tokens

    @torch.no_grad()
    def _logps(self, prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        input_ids, attention = torch.cat([prompt_ids, ids], dim=1), torch.cat([prompt_mask, mask], dim=1)
        # Wrapped models synchronise in every pass: each process takes as many as the one with most rows, on empty rows.
        missing = most(self.accelerator, len(ids)) - len(ids)
        if not len(ids) + missing:
            return torch.zeros_like(ids, dtype=torch.float32)
        logps, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.nn.functional.pad(input_ids, (0, 0, 0, missing)),
            torch.nn.functional.pad(attention, (0, 0, 0, missing)),
            ids.size(1),
            batch_size=self.args.per_device_train_batch_size,
        )
        return logps[: len(ids)]

    # -- mining ------------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, *args: Any) -> Float[Tensor, "global_batch funcs"]:
        self._reward_failure = None
        try:
            self._row_rewards = super()._calculate_rewards(inputs, prompts, *args)
        except Exception as error:
            if self.accelerator.num_processes == 1:
                raise
            # TRL's method ends in a gather, where the other processes wait.
            self._reward_failure = error
            nothing = torch.full((len(prompts), len(self.reward_funcs)), torch.nan, device=self.accelerator.device)
            self.accelerator.gather(nothing)
        if most(self.accelerator, int(self._reward_failure is not None)):
            self._reward_failure = self._reward_failure or RuntimeError(
                "A reward function failed in another process, whose output says how."
            )
            raise self._reward_failure
        assert self._row_rewards is not None
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

    def _mine(self, questions: list[Any], sampled: Bool[Tensor, " global_batch"]) -> None:
        ids = self.accelerator.gather(torch.tensor(questions, device=self.accelerator.device)).tolist()
        unscored = int(self._success_scores()[sampled].isnan().sum())
        scores = self._success_scores().masked_fill(~sampled, torch.nan).tolist()
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
        self.kept = {}
        self.mined.clear()
        state.epoch += 1
        state.epoch_complete = False
        if not args.prompt_phase:
            return
        if args.max_prompt_phases is not None and state.prompt_phases >= args.max_prompt_phases:
            self._assign()
            return
        if isinstance(self.reflect, EndpointReflection) and (reached := self.reflect.limit_reached()) is not None:
            logger.warning("Prompt phase skipped, the last templates stay in use: %s", reached)
            self._assign()
            self._phase_event("on_prompt_phase_end", result=None, reason=reached)
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
        self._phase_spent = Ledger()
        if self.accelerator.is_main_process:
            if self._resume_directory is None:
                # A fresh run does not continue what an earlier one left in the same place.
                shutil.rmtree(directory, ignore_errors=True)
            result = evolve(
                [self._question(index) for index in state.hard_set],
                self._lead_rollouts,
                self.reflect,
                config,
                seed=args.seed,
                epoch=state.epoch,
                run_dir=directory,
                special_tokens=set(self._tokenizer.all_special_tokens),
                spent=self._phase_spent,
                on_progress=self._on_evolution_progress,
            )
            lead(self.accelerator, FINISHED, result)
        else:
            result = follow(self._tasks)
        self._adopt(result)

    def _adopt(self, result: EvolutionResult) -> None:
        """Selection and assignment; the phase's cost enters the ledger once, however often it was interrupted."""
        state = self.p2o
        state.templates = select_templates([candidate.as_template() for candidate in result.candidates])
        state.selected[state.epoch] = state.templates
        if not state.templates:
            logger.warning("No template solved any dev question: epoch %d is untemplated.", state.epoch)
        self._assign()
        state.prompt_phases += 1
        state.ledger.merge(result.spent)
        self._phase_spent = Ledger()
        self._keep(result.successes)
        self._metric("p2o/candidates", len(result.candidates))
        self._metric("p2o/evolution_rollouts", result.metric_calls)
        self._metric("p2o/dev_covered", len(frozenset().union(*(t.solves for t in state.templates))))
        for reason, count in result.rejections.items():
            self._metric(f"p2o/rejected/{reason}", count)
        for event, count in result.events.items():
            self._event(event, count)
        if result.ended_early is not None:
            self._event("prompt_phase_ended_early")
        self._phase_event("on_prompt_phase_end", result=result, reason=None)

    def _keep(self, successes: list[Success]) -> None:
        """Takes the log-probabilities of what will be reused now, from the policy that sampled it."""
        rng = random.Random(derive_seed(self.args.seed, self.p2o.epoch, "reuse"))
        drawn = draw_successes(successes, self.args.reused_rollouts_per_group, rng)
        flat = [success for found in drawn.values() for success in found]
        size = self.args.prompt_phase_batch_size
        training = self.model.training
        self.model.eval()
        for start in range(0, len(flat), size):
            part = flat[start : start + size]
            tokens = [torch.tensor(success.completion_ids, device=self.accelerator.device) for success in part]
            ids = pad(tokens, padding_value=self._tokenizer.pad_token_id)
            mask = pad([torch.ones_like(t) for t in tokens], padding_value=0)
            prompts = [self.train_dataset[success.question]["prompt"] for success in part]
            logps = [
                self._context_logps(self._contextualise(prompts, templates)[0], ids, mask)
                for templates in ([""] * len(part), [success.template for success in part])
            ]
            for row, success in enumerate(part):
                end = len(success.completion_ids)
                both = [values[row, :end].float().cpu().clone() for values in logps]
                rollout = KeptRollout(success.template, success.completion_ids, *both)
                self.kept.setdefault(success.question, []).append(rollout)
        self.model.train(training)
        if self.args.reused_rollouts_per_group:
            self._metric("p2o/kept_rollouts", len(flat))

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
        drawn = {index for draws in self.p2o.assignment.values() for index in draws if index is not None}
        texts = [self.p2o.templates[index].text for index in sorted(drawn)]
        self._metric("p2o/templates", len(texts))
        if texts:
            self._metric("p2o/template_similarity", mean_similarity(texts))
        if len(texts) == 1:
            self._event("single_template")
            logger.warning("A single template is in use in epoch %d: %r", self.p2o.epoch, texts[0])

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

    def _lead_rollouts(self, requests: list[tuple[Question, str]], *, seed: int) -> list[Rollout]:
        lead(self.accelerator, "rollouts", requests, seed)
        return self._rollouts(requests, seed)

    def _rollouts(self, requests: list[tuple[Question, str]], seed: int) -> list[Rollout]:
        """Generates and scores one completion a request, as the policy phase would, from streams of its own.

        All processes take part and score all of it; only the first, which leads, returns something.
        """
        rows = [self.train_dataset[question.id] for question, _ in requests]
        inputs = [{k: v for k, v in row.items() if k != QUESTION_ID} for row in rows]
        prompts = [row["prompt"] for row in rows]
        contexts, used = self._contextualise(prompts, [template for _, template in requests])
        self._count_dropped(sum(bool(asked) for _, asked in requests) - sum(map(bool, used)))
        mine = share(self.accelerator, len(rows))
        # vLLM makes its own batches, the larger its queue the better.
        size = len(mine) if self.use_vllm else self.args.prompt_phase_batch_size
        with torch.no_grad():
            completion_ids = spread(
                self.accelerator,
                lambda batch, stream: self._generate_together(batch)[0],
                contexts,
                batch_size=size,
                seed=seed,
            )
        texts = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        chat = is_conversational({"prompt": prompts[0]})
        completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        with random_stream(derive_seed(seed, "rewards")):
            batch = ([column[i] for i in mine] for column in (inputs, prompts, completions, completion_ids))
            self._calculate_rewards(*batch)
        # What reward functions logged belongs to no policy batch.
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        # Without the reward that decides success a rollout is not scored, whatever the others say.
        scored = self._rewards().masked_fill(self._success_scores().isnan(), torch.nan)
        rewards, successes = (values[: len(rows)].tolist() for values in (scored, self._successes()))
        if not self.accelerator.is_main_process:
            return []
        reuses = self.args.reused_rollouts_per_group > 0
        rollouts = []
        for i, row in enumerate(inputs):
            reward = None if math.isnan(rewards[i]) else rewards[i]
            rollouts.append(
                Rollout(
                    completion=texts[i],
                    reward=reward,
                    solved=successes[i],
                    feedback="" if reward is None else self.feedback_func(texts[i], {**row, "reward": reward}),
                    prompt_tokens=len(contexts[i]),
                    completion_tokens=len(completion_ids[i]),
                    template=used[i],
                    completion_ids=list(completion_ids[i]) if reuses else [],
                )
            )
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
        sums = torch.tensor([local.tokens, local.below, local.above, local.log_ratio], dtype=torch.float32)
        sums = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
        tokens, below, above, log_ratio = sums.tolist()
        if not tokens:
            return
        self._metric("p2o/context_ratio/below", below / tokens)
        self._metric("p2o/context_ratio/above", above / tokens)
        self._metric("p2o/context_ratio/outside", (below + above) / tokens)
        self._metric("p2o/context_ratio/mean_log", log_ratio / tokens)

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
            if self.p2o.ledger.reflection_cost:
                logs["p2o/reflection_cost"] = self.p2o.ledger.reflection_cost
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

    # -- model card --------------------------------------------------------------------------------------------------

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As TRL's, with what P²O did: epochs, prompt phases, templates with their scores, the ledger."""
        super().create_model_card(model_name, *args, **kwargs)
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir) / "README.md"
        card = ModelCard.load(path)
        section = p2o_section(
            self.p2o,
            epochs=round(self.state.epoch or 0.0, 2),
            steps=self.state.global_step,
            reflection=self._reflector() if self.args.prompt_phase else None,
            distilled=self.args.context_distillation,
        )
        card.text = with_section(without_none(card.text, self.args.hub_model_id or model_name or ""), section)
        card.save(path)

    def _reflector(self) -> str:
        if self.reflect == self._own_reflection or isinstance(self.reflect, EndpointReflection):
            return self.args.reflection_model
        return getattr(self.reflect, "__qualname__", type(self.reflect).__qualname__)

    # -- state -------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to continue exactly."""
        names = (
            "seed num_generations generation_batch_size steps_per_generation num_iterations temperature near_hard "
            "success_threshold success_reward prompt_phase min_hard_questions max_dev_questions evolution_budget "
            "parents_per_iteration feedback_minibatch_size max_template_length reflection_prompt "
            "reflection_model reflection_max_tokens reflection_temperature "
            "same_template_per_group bare_rollouts_per_group drop_failed_templated context_mask "
            "context_ratio_min context_ratio_max old_logprobs_context dynamic_sampling_rounds max_completion_length "
            "context_distillation max_prompt_phases reused_rollouts_per_group "
            "loss_type shuffle_dataset"
        ).split()
        prompts = hashlib.sha256()
        for prompt in self.train_dataset["prompt"]:
            prompts.update(json.dumps(prompt, sort_keys=True).encode())
        values = {name: getattr(self.args, name) for name in names}
        values["processes"] = self.accelerator.num_processes
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
        kept = checkpoint / REUSE_FILE
        found = torch.load(kept, weights_only=True) if kept.exists() else {}
        self.kept = {question: [KeptRollout(**k) for k in rollouts] for question, rollouts in found.items()}
        buffer = checkpoint / BUFFER_FILE.format(process=self.accelerator.process_index)
        if buffer.exists():
            loaded = torch.load(buffer, map_location="cpu", weights_only=True)
            self._buffered_inputs = send_to_device(loaded, self.accelerator.device)

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
        self._save_buffer(staged)
        self.accelerator.wait_for_everyone()
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
        if self.kept:
            kept = {question: [k.to_dict() for k in rollouts] for question, rollouts in self.kept.items()}
            torch.save(kept, checkpoint / REUSE_FILE)

    def _save_buffer(self, checkpoint: Path) -> None:
        # Within a generation batch the rollouts still to be learnt from belong to the state.
        if self._step % (self.args.steps_per_generation * self.num_iterations) and self._buffered_inputs is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)  # as transformers does for its own files of each process
            torch.save(self._buffered_inputs, checkpoint / BUFFER_FILE.format(process=self.accelerator.process_index))

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
        if self.accelerator.num_processes > 1 and error is not self._reward_failure:
            return  # the others know nothing of it, and would wait for ever or be waited for
        final = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not most(self.accelerator, int(final.exists())) and self._step % self.args.gradient_accumulation_steps == 0:
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
    dropped = torch.tensor(sum(map(bool, trainer._row_templates)) - sum(map(bool, used)))
    trainer._count_dropped(int(trainer.accelerator.reduce(dropped.to(trainer.accelerator.device), reduction="sum")))
    trainer._row_contexts, trainer._row_templates = contexts, used
    if trainer._users_rollout_func is not None:
        templated = [apply_template(prompt, z) for prompt, z in zip(prompts, used, strict=True)]
        output = dict(trainer._users_rollout_func(templated, trainer))
    else:
        kept = trainer._row_kept
        # One by one (num_generations=1): rollouts of one group no longer share a prompt.
        ids, logps = trainer._generate_with_logps(
            [context for context, k in zip(contexts, kept, strict=True) if k is None]
        )
        sampled = iter(ids)
        output = {"completion_ids": [next(sampled) if k is None else k.completion_ids for k in kept], "logprobs": None}
        if logps is not None:
            known = iter(logps)
            output["logprobs"] = [next(known) if k is None else k.sampled_logps.tolist() for k in kept]
    learnt = trainer._tokenize_prompts(prompts)[0] if trainer.args.context_distillation else contexts
    return {**output, "prompt_ids": learnt}


def _live(advantages: Float[Tensor, " batch"] | Float[Tensor, "batch completion"]) -> Bool[Tensor, " batch"]:
    """Rows with an advantage other than zero."""
    return advantages != 0 if advantages.dim() == 1 else (advantages != 0).any(dim=1)


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


def number_questions(dataset: Any, args: P2OConfig) -> Any:
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
    taken = [name for name in ("prompts", "completions") if name in dataset.column_names]
    if taken:
        raise ValueError(
            f"train_dataset has a column {' and one '.join(taken)}, which is what TRL hands to reward functions under "
            "that name. Rename or remove it."
        )
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
