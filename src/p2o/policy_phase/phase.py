"""The policy phase beside TRL: what a batch is sampled under, what it shows, how its two contexts become one loss."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor

from p2o.config import P2OConfig
from p2o.engines.image_inputs import with_lists
from p2o.engines.mismatch import replace_logged_mismatch
from p2o.engines.processes import all_reduce_max, all_reduce_sum, is_sharded, local_slice
from p2o.features.guidance import Guidance
from p2o.policy_phase.context_distillation import ContextMask, ContextStatistics, mask_by_context, prepare_distillation
from p2o.policy_phase.dynamic_sampling import Replacement
from p2o.policy_phase.feature_guidance import (
    TOKEN_WEIGHTS,
    failed_groups,
    mean_strength,
    movement_weights,
    proxy_advantages,
)
from p2o.policy_phase.logprobs import CompletionLogprobs
from p2o.policy_phase.policy_tokens import policy_tokens
from p2o.policy_phase.reuse import Kept, draw_successes, keep
from p2o.policy_phase.rewards import Rewards, Scoring
from p2o.policy_phase.rollouts import Batch, RolloutPlan
from p2o.policy_phase.zero_advantage import COLLAPSED
from p2o.prompt_phase.hard_samples import HardSamples
from p2o.prompt_phase.hints import without_hints
from p2o.prompt_phase.types import Success
from p2o.seeding import derive_seed
from p2o.state import P2OState
from p2o.templates import Prompt, Tokenize

logger = logging.getLogger(__name__)

MADE_UP = (
    "An environment asks the rollouts of one row different questions: its reset() makes up data of its own. Then a "
    "group is not about one question, and what was hard is not what evolution tries. Have reset() make its question "
    "from the row, such as from a column `seed`."
)

Sample = Callable[[list[dict[str, Any]], list[int]], tuple[dict[str, Any], Rewards]]
"""`sample(rows, questions)`: rollouts of a further batch, of this process's rows and all processes' questions."""


@dataclass(frozen=True)
class PolicyPhase:
    """What the policy phase of a run is about; its methods take the batch, and the state that they change.

    Args:
        tokenize: prompts, as they are generated from.
        max_prompt_length: of T(x, z), in tokens; None for no limit.
        scoring: what the reward functions' answers mean.
        logprobs: passes of the policy.
        log: takes metrics of a training step.
        observes: whether environments add to prompts what they observe.
    """

    args: P2OConfig
    accelerator: Accelerator
    tokenize: Tokenize
    max_prompt_length: int | None
    scoring: Scoring
    logprobs: CompletionLogprobs
    log: Callable[[dict[str, float]], None]
    observes: bool = False

    def __post_init__(self) -> None:
        self.guidance  # raises  # noqa: B018

    def plan(self, state: P2OState, rows: int, questions: Sequence[int]) -> RolloutPlan:
        """Who is sampled under what. It depends on the epoch, not on the rows: all processes go the same way."""
        if not _has_two_contexts(state, questions):
            return RolloutPlan.bare(questions, rows)
        return RolloutPlan.draw(
            questions,
            local_slice(self.accelerator, rows),
            num_generations=self.args.num_generations,
            assignment=state.assignment,
            templates=state.templates,
            kept=state.kept,
            position=self.args.template_position,
        )

    def visible(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of a batch as TRL, reward functions and environments are given them: without what hints are made of."""
        return with_lists(without_hints(rows, self.args.hint_column, self.args.solution_column))

    def fit(self, state: P2OState, batch: Batch, prompts: Sequence[Prompt]) -> Batch:
        """The batch with the contexts of its prompts, once they are known, and without templates that do not fit."""
        plan = batch.plan
        if self.observes and plan.questions:
            self._watch_observations(state, plan.questions, prompts)
        if not _has_two_contexts(state, plan.questions):
            return batch
        fitted = plan.fitted(prompts, self.tokenize, self.max_prompt_length)
        (dropped,) = all_reduce_sum(self.accelerator, plan.templates_in_use() - fitted.templates_in_use())
        state.event("template_too_long_for_question", int(dropped))
        return replace(batch, plan=fitted)

    def _watch_observations(self, state: P2OState, questions: Sequence[int], prompts: Sequence[Prompt]) -> None:
        """Counts batches in which an environment asks the rollouts of one row different questions; says so once."""
        mine = questions[local_slice(self.accelerator, len(prompts))]
        pairs = zip(pairwise(mine), pairwise(prompts), strict=True)
        differ = any(row == before and prompt != other for (before, row), (other, prompt) in pairs)
        if all_reduce_max(self.accelerator, int(differ)):
            if "environment_question_differs" not in state.events:
                logger.warning(MADE_UP)
            state.event("environment_question_differs")

    def charge(self, state: P2OState, plan: RolloutPlan, output: dict[str, Any]) -> Bool[Tensor, " global_batch"]:
        """Enters the batch into the ledger; returns which rows of all processes were sampled rather than kept."""
        is_sampled: Tensor = self.accelerator.gather(plan.is_sampled(self.accelerator.device))
        read, written = all_reduce_sum(self.accelerator, *plan.tokens_spent(output))
        rollouts = int(is_sampled.sum())
        state.ledger.add("policy" if plan.questions else "evaluation", rollouts, int(read), int(written))
        if plan.questions and rollouts:
            state.watch_length(written / rollouts, self.args.length_change_factor)
        return is_sampled

    def mine(
        self,
        state: P2OState,
        output: dict[str, Any],
        plan: RolloutPlan,
        rewards: Rewards,
        is_sampled: Bool[Tensor, " global_batch"],
    ) -> None:
        """Counts successes by question. A kept rollout says nothing of what the policy can do now.

        Notes in the `output` what the KL term is to leave out.
        """
        present = rewards.of(is_sampled)
        state.event("unscored_rollouts", int(present.unscored.sum()))
        k, scores = self.args.num_generations, rewards.success_scores.masked_fill(~is_sampled, torch.nan).tolist()
        mined = HardSamples(self.args.near_hard, state.outcomes)
        for start in range(0, len(scores), k):
            if (question := plan.questions[start]) not in state.rewritten:
                mined.record(question, scores[start : start + k], self.args.success_threshold)
        templated = all_reduce_sum(self.accelerator, plan.templates_in_use())[0] / len(scores)
        self.log({"p2o/rollout_success": present.success_rate(), "p2o/templated_rollouts": templated})
        if is_sampled.any():
            known = None if present.unscored.all() else present.success_rate()
            state.watch_shortcut(known, self.args.shortcut_factor, self.args.regression_margin)
        if plan.two_contexts:
            under = self.accelerator.gather(plan.is_templated(self.accelerator.device))
            for name, rows in (("templated", is_sampled & under), ("bare", is_sampled & ~under)):
                if rows.any():
                    self.log({f"p2o/rollout_success/{name}": rewards.of(rows).success_rate()})
        if not self.args.kl_on_collapsed_groups and "ref_per_token_logps" in output:
            mine = local_slice(self.accelerator, len(plan.templates))
            output[COLLAPSED] = rewards.collapsed(k).repeat_interleave(k)[mine] & (output["advantages"] == 0)
        if self.args.reused_rollouts_per_group:
            self.log({"p2o/reused_rollouts": 1 - is_sampled.float().mean().item()})

    @cached_property
    def guidance(self) -> Guidance | None:
        """The dictionary whose features guide this run.

        Raises:
            DictionaryError: one that cannot be used, or that is of another model.
            ValueError: a model of which each process has a part.
        """
        if not self.args.guided_by_features or self.args.feature_dictionary is None:
            return None
        if is_sharded(self.accelerator):
            raise ValueError("Features are read from a whole model: train without FSDP and DeepSpeed's sharding.")
        guidance, model = (
            Guidance.load(self.args.feature_dictionary),
            self.accelerator.unwrap_model(self.logprobs.model()),
        )
        guidance.saved.origin.check(model.config, "the model in training")
        return guidance

    def guide(self, state: P2OState, output: dict[str, Any], rewards: Rewards) -> None:
        """Features of the policy weigh tokens, and give advantages where all rollouts of a group failed alike."""
        if self.guidance is None:
            return
        model = self.accelerator.unwrap_model(self.logprobs.model())
        mask = policy_tokens(output)
        k, mine = self.args.num_generations, local_slice(self.accelerator, len(mask))
        gives_proxies = bool(self.args.feature_proxy_reward) and not state.proxy.stopped
        guided = failed_groups(rewards, k)
        # A group without variance has no advantages to weigh: it is read only for a proxy.
        wanted = (~rewards.collapsed(k) | (guided & gives_proxies)).repeat_interleave(k)
        strength, read = self.guidance.strengths(model, output, wanted[mine])
        state.ledger.add_pass(int(all_reduce_sum(self.accelerator, read)[0]), backward=False)
        mean: Tensor = self.accelerator.gather(mean_strength(strength, mask))
        failed = ~rewards.successes & ~rewards.unscored & wanted
        state.watch_proxy(
            float(mean[failed].mean()) if failed.any() else None,
            rewards.success_rate(),
            self.args.feature_proxy_patience,
        )
        if gives_proxies and not state.proxy.stopped:
            output["advantages"] += proxy_advantages(mean, guided, k, self.args.feature_proxy_reward)[mine]
            self.log({"p2o/features/guided_groups": guided.float().mean().item()})
        if self.args.feature_token_weight:
            output[TOKEN_WEIGHTS] = movement_weights(strength, mask, self.args.feature_token_weight)
        if wanted.any():
            self.log({"p2o/features/reasoning": mean[wanted].mean().item()})

    def replace_collapsed(
        self, output: dict[str, Any], rewards: Rewards, sample: Sample, dataset: Any, step: int
    ) -> None:
        """Dynamic sampling: groups without variance in `output` are replaced by fresh ones, as often as is allowed.

        Args:
            sample: samples and scores a further batch.
            dataset: the training set.
            step: names the random stream.
        """
        k, rounds = self.args.num_generations, self.args.dynamic_sampling_rounds
        collapsed = rewards.collapsed(k)
        for attempt in range(rounds):
            if not collapsed.any():
                break
            rng = random.Random(derive_seed(self.args.seed, "dynamic sampling", step, attempt))
            replacement = Replacement.draw(collapsed, len(dataset), k, self.accelerator.num_processes, rng)
            rows = replacement.rows(k)
            mine = rows[local_slice(self.accelerator, len(rows) // self.accelerator.num_processes)]
            fresh, rewards = sample([dict(dataset[row]) for row in mine], rows)
            pad = self.logprobs.pad_token_id
            replaced = replacement.apply(output, fresh, rewards.collapsed(k), self.accelerator, pad)
            collapsed[replaced] = False
        if rounds:
            self.log({"p2o/collapsed_after_resampling": collapsed.float().mean().item()})

    @property
    def context_mask(self) -> ContextMask:
        return ContextMask(
            self.args.context_mask,  # type: ignore[arg-type]
            self.args.context_ratio_min,
            self.args.context_ratio_max,
            old_under_rollout_context=self.args.old_logprobs_context == "rollout",
        )

    def prepare_distillation(
        self,
        state: P2OState,
        output: dict[str, Any],
        plan: RolloutPlan,
        rewards: Rewards,
        metrics: dict[str, list[float]],
    ) -> None:
        """Prepares a batch of two contexts for the loss, and masks it where log π_old(y|x) is known before that.

        Args:
            metrics: TRL's, where the engine's mismatch becomes that of bare rollouts.
        """
        if not (plan.two_contexts and self.args.context_distillation):
            return
        bare = policy_tokens(output).bool() & ~plan.is_templated(self.accelerator.device).unsqueeze(1)
        replace_logged_mismatch(metrics, output, bare, self.accelerator.gather)
        early = bool(state.kept) or self.context_mask.old_under_rollout_context
        prepare_distillation(
            output,
            plan,
            self.logprobs,
            self.context_mask,
            failed=~rewards.successes[local_slice(self.accelerator, len(plan.templates))],
            drop_failed=self.args.drop_failed_templated,
            need_old_logps=lambda rows: early and bool(all_reduce_max(self.accelerator, rows)),
        )
        if "old_per_token_logps" in output:
            self.mask(output, output["old_per_token_logps"])

    def mask(self, batch: dict[str, Any], bare_logps: Float[Tensor, "batch completion"]) -> None:
        """Masks the advantages of a batch that [`prepare_distillation`] has prepared, and logs the context ratio."""
        local = mask_by_context(batch, bare_logps, self.context_mask)
        self.log(ContextStatistics(*all_reduce_sum(self.accelerator, *astuple(local))).metrics())

    def keep_successes(
        self, state: P2OState, successes: Sequence[Success], dataset: Any, model: torch.nn.Module
    ) -> Kept:
        """Draws what of evolution's successes will be reused, with log-probabilities of the policy that sampled it."""
        per_question = self.args.reused_rollouts_per_group
        rng = random.Random(derive_seed(self.args.seed, state.epoch, "reuse"))
        drawn = draw_successes(successes, per_question, rng)
        if per_question:
            self.log({"p2o/kept_rollouts": len(drawn)})
        training = model.training
        model.eval()
        try:
            size = self.args.prompt_phase_batch_size
            how: dict[str, Any] = {"batch_size": size, "position": self.args.template_position}
            return keep(drawn, dataset, self.tokenize, self.logprobs, **how)
        finally:
            model.train(training)


def _has_two_contexts(state: P2OState, questions: Sequence[int]) -> bool:
    return bool(questions and (state.assignment or state.kept))
