"""`P2OConfig`: everything `GRPOConfig` has, plus what P²O adds. The help texts are the documentation."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from trl import GRPOConfig

from p2o.batch_sizes import BatchSizes
from p2o.difficulty.selection import parse_selection
from p2o.features.options import FeatureOptions
from p2o.options import RANGES_OF_TRL, check_ranges
from p2o.prompt_phase.options import EvolutionOptions, HintOptions
from p2o.reflection.options import ReflectionOptions
from p2o.templates import POSITIONS
from p2o.thoughts import HELP as THOUGHTS_HELP
from p2o.thoughts import THOUGHTS

TEMPLATE_QUESTIONS = ("hard", "all")


@dataclass
class P2OConfig(EvolutionOptions, HintOptions, ReflectionOptions, FeatureOptions, GRPOConfig):
    r"""
    Configuration of [`P2OTrainer`].

    Defaults are the paper's (arXiv 2603.21877) wherever it states one; everything inherited from `GRPOConfig` keeps
    TRL's meaning and default. docs/method.md says where each equation stands in the code.

    Raises:
        ValueError: an option out of its range or of its choices, naming the option and what it may be.
    """

    # -- mining: which questions are hard this epoch -----------------------------------------------------------------
    success_threshold: float = field(
        default=0.0,
        metadata={"help": "A rollout is a success when its reward is greater than this."},
    )
    success_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the one reward function that decides success. By default it is the weighted sum of all, "
            "which is wrong when, say, a format reward is positive for wrong answers as well."
        },
    )

    thoughts: str = field(default="auto", metadata={"help": THOUGHTS_HELP, "choices": THOUGHTS})

    # -- which questions are trained on ------------------------------------------------------------------------------
    difficulty_profile: str | None = field(
        default=None,
        metadata={"help": "Profile of the training questions that `p2o profile` wrote: the file, or its directory."},
    )
    difficulty: str | None = field(
        default=None,
        metadata={
            "help": "Which of its questions to train on: a bucket ('hard', 'medium', 'easy'), a range of pass rates "
            "such as '0.1-0.6', a row such as 'row:17', or several of these, separated by commas. Evaluation sets are "
            "not concerned."
        },
    )

    rewrite_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the hard set, in [0, 1), whose places in the next epoch backward rewrites take: a number "
            "of the question is asked for, and its answer given. They are drawn anew for every epoch: of `rewrites` "
            "or, without it, of those that a solver verifies, of families of reasoning-gym."
        },
    )
    rewrites: str | None = field(
        default=None, metadata={"help": "File of rewrites of the training questions that `p2o rewrite` wrote."}
    )

    epoch_batches: int | None = field(
        default=None,
        metadata={
            "help": "Generation batches of an epoch, so that prompt phases come more often than once in a pass over "
            "the training set: an epoch then takes the next ones, and `num_train_epochs` counts these epochs. Goes "
            "with `template_questions='all'`, or without prompt phases."
        },
    )

    # -- prompt phase ------------------------------------------------------------------------------------------------
    prompt_phase: bool = field(
        default=True,
        metadata={"help": "Whether to evolve templates between epochs. `False` is plain GRPO in the same setup."},
    )
    prompt_phase_batch_size: int = field(
        default=128,
        metadata={
            "help": "Rollouts or reflections that transformers generates at once in the prompt phase. Several "
            "processes take turns with such batches, so templates depend on this number and not on how many processes "
            "there are. vLLM is given all rollouts and makes its own batches; but never are there more environments at "
            "once in a process than this."
        },
    )

    environment_timeout: float | None = field(
        default=120.0,
        metadata={
            "help": "Seconds that one call of an environment may take in a prompt phase: making it, `reset`, a tool, "
            "`get_reward`. After it the rollout is unscored, and another instance takes its place. Each instance has a "
            "thread of its own; without a limit (`None`) it is called as in the policy phase."
        },
    )

    template_questions: str = field(
        default="hard",
        metadata={
            "help": "Which questions a prompt phase evolves templates for, and which get them in the next epoch: "
            "'hard' (the paper), or 'all' that it asks. With 'all' a prompt phase comes before the first epoch, too.",
            "choices": TEMPLATE_QUESTIONS,
        },
    )

    # -- reflection --------------------------------------------------------------------------------------------------
    solution_column: str = field(
        default="solution",
        metadata={"help": "Dataset column with the gold answer, for feedback and for the guard against leaks of it."},
    )

    # -- templates in the policy phase -------------------------------------------------------------------------------
    template_position: str = field(
        default="user",
        metadata={
            "help": "Where a template stands: 'user', in front of the last user message (the paper), or 'system', at "
            "the end of the system message, which a chat without one gets. Agents are told there what to do, and "
            "engines compute the question's tokens behind it anew for each template.",
            "choices": POSITIONS,
        },
    )
    same_template_per_group: bool = field(
        default=False,
        metadata={"help": "Whether all rollouts of a question share one template instead of each drawing its own."},
    )
    bare_rollouts_per_group: int = field(
        default=0,
        metadata={"help": "Rollouts of a templated question's group that stay untemplated, in [0, num_generations)."},
    )
    reused_rollouts_per_group: int = field(
        default=0,
        metadata={
            "help": "Rollouts of a hard question's group that are not sampled but taken from the successes of the last "
            "prompt phase, as far as there are any. Their policy ratio is to the policy that sampled them."
        },
    )
    drop_failed_templated: bool = field(
        default=False,
        metadata={"help": "Whether templated rollouts without success are left out of the loss (denominators kept)."},
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt in tokens. A bare question over it is an error at start; a template that would "
            "exceed it is not used for that question. Defaults to what the model's positions leave beside "
            "`max_completion_length`."
        },
    )

    max_prompt_phases: int | None = field(
        default=None,
        metadata={
            "help": "Prompt phases of a run; after the last one its templates go on being assigned to what is hard. "
            "1 is evolving once and then training, without the alternation. No limit when not set."
        },
    )

    # -- context distillation ----------------------------------------------------------------------------------------
    context_distillation: bool = field(
        default=True,
        metadata={
            "help": "Whether the loss is on the bare question. `False` (an ablation) learns on the templated one; "
            "nothing then carries the gain over to questions without instruction."
        },
    )
    context_mask: str = field(
        default="hard",
        metadata={
            "help": "What happens to tokens of templated rollouts whose context ratio π(y|x)/π(y|T(x,z)) is out of "
            "range: 'hard' removes their loss, 'soft' scales it by bound/ratio (at most `context_ratio_max`), 'off' "
            "keeps it."
        },
    )
    context_ratio_min: float = field(default=0.01, metadata={"help": "Lower end of the context ratio's range."})
    context_ratio_max: float = field(default=10.0, metadata={"help": "Upper end of the context ratio's range."})
    old_logprobs_context: str = field(
        default="bare",
        metadata={
            "help": "Under which context the old log-probabilities of templated rollouts are taken: 'bare' (the "
            "paper: the policy ratio starts at 1) or 'rollout' (importance sampling from the templated policy)."
        },
    )

    # -- watching for harm -------------------------------------------------------------------------------------------
    regression_margin: float = field(
        default=0.05,
        metadata={
            "help": "A warning is logged and counted when the accuracy on an evaluation set falls by more than this "
            "below the first one measured."
        },
    )

    length_change_factor: float = field(
        default=3.0,
        metadata={
            "help": "A warning is logged and counted when the mean response length of the last 10 generation batches "
            "is more than this many times that of the run's first 10, or less than that by this factor."
        },
    )

    shortcut_factor: float = field(
        default=2.0,
        metadata={
            "help": "A warning is logged and counted when mean response length and mean entropy of a token, over the "
            "last 10 generation batches, are both lower than over the run's first 10 by this factor or more, while the "
            "share of successes is no more than `regression_margin` lower."
        },
    )

    # -- dynamic sampling -------------------------------------------------------------------------------------------
    dynamic_sampling_rounds: int = field(
        default=0,
        metadata={
            "help": "How often groups without variance are replaced by freshly sampled questions before a batch is "
            "trained on (DAPO's dynamic sampling, which TRL lacks). 0: never. Every rollout counts."
        },
    )

    skip_zero_advantages: bool = field(
        default=True,
        metadata={
            "help": "Whether rollouts whose advantage is zero are left out of the update's forward and backward "
            "passes, to which they add exactly nothing; loss and normalisers stay TRL's, equal to rounding. Has "
            "no effect with a KL term on all groups, an entropy bonus, `top_entropy_quantile` or a router's auxiliary "
            "loss, where they do add something."
        },
    )

    kl_on_collapsed_groups: bool = field(
        default=True,
        metadata={
            "help": "Whether groups without variance take part in the KL term (`beta`), as in TRL. `False`: they pull "
            "nothing towards the reference, and with `skip_zero_advantages` they are left out of the passes."
        },
    )

    # -- budget ------------------------------------------------------------------------------------------------------
    max_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "Training stops after this many rollouts in all: policy, evolution and reflection together. "
            "Evaluation is not counted."
        },
    )

    def __post_init__(self) -> None:
        sizes = BatchSizes.of(self, 1, evaluates=self.eval_strategy != "no")
        try:
            super().__post_init__()
        except ValueError as error:
            # How many processes there are is known once devices are; what is wrong before that is no matter of sizes.
            known = getattr(self, "distributed_state", None) is not None
            if known and (problem := replace(sizes, processes=self.world_size).problem()):
                raise ValueError(problem) from error
            raise
        if problem := replace(sizes, processes=self.world_size).problem():
            raise ValueError(problem)
        self._check_each_option()
        self._check_combinations()
        self._check_template_questions()
        self.check_evolution()
        self.check_hints(self.prompt_phase)
        self.check_reflection()
        self.check_features()

    def _check_each_option(self) -> None:
        choices = {
            "context_mask": ("hard", "soft", "off"),
            "old_logprobs_context": ("bare", "rollout"),
            "thoughts": THOUGHTS,
            "template_position": POSITIONS,
            "template_questions": TEMPLATE_QUESTIONS,
            # TRL's own, which it looks at when the first rollouts have been generated
            "scale_rewards": ("group", "batch", "none"),
            "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
            "vllm_importance_sampling_mode": ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}.")
        ranges: dict[str, float | str] = {
            "prompt_phase_batch_size": 1,
            "environment_timeout": "(0, inf)",
            "bare_rollouts_per_group": 0,
            "reused_rollouts_per_group": 0,
            "dynamic_sampling_rounds": 0,
            "max_prompt_length": 1,
            "max_rollouts": 1,
            "max_prompt_phases": 1,
            "epoch_batches": 1,
            "length_change_factor": "(1, inf)",
            "shortcut_factor": "(1, inf)",
            "rewrite_share": "[0, 1)",
            "regression_margin": 0,
        }
        check_ranges(self, {**RANGES_OF_TRL, **ranges})
        if not isinstance(self.chat_template_kwargs or {}, dict):
            raise ValueError(f"chat_template_kwargs={self.chat_template_kwargs!r} is no mapping of options to values.")

    def _check_template_questions(self) -> None:
        """Hard questions are those of the last epoch, and have templates in the next: both have to ask the same."""
        returns = self.rewrite_share or self.hint_column or (self.prompt_phase and self.template_questions == "hard")
        if self.epoch_batches is not None and returns:
            raise ValueError(
                f"epoch_batches={self.epoch_batches}: the next epoch asks other questions than were hard in the last. "
                "Set template_questions='all' or prompt_phase=False, and leave out rewrite_share and hint_column."
            )

    def _check_combinations(self) -> None:
        if (self.difficulty is None) != (self.difficulty_profile is None):
            raise ValueError("difficulty and difficulty_profile, the file of `p2o profile`, go together: give both.")
        if self.difficulty is not None:
            parse_selection(self.difficulty)
        if self.bare_rollouts_per_group >= self.num_generations:
            raise ValueError(
                f"bare_rollouts_per_group={self.bare_rollouts_per_group} must be smaller than "
                f"num_generations={self.num_generations}: at least one rollout of a group has to be templated."
            )
        if self.reused_rollouts_per_group + self.bare_rollouts_per_group >= self.num_generations:
            raise ValueError(
                f"reused_rollouts_per_group={self.reused_rollouts_per_group} and bare_rollouts_per_group="
                f"{self.bare_rollouts_per_group} must leave one of num_generations={self.num_generations} to be "
                "sampled under a template."
            )
        if self.reused_rollouts_per_group and (self.dynamic_sampling_rounds or not self.context_distillation):
            raise ValueError(
                "reused_rollouts_per_group goes neither with dynamic_sampling_rounds nor without context_distillation."
            )
        if self.dynamic_sampling_rounds and self.guided_by_features:
            raise ValueError(
                "dynamic_sampling_rounds replaces the groups that feature_proxy_reward is for: choose one of the two, "
                "and leave feature_token_weight out with the former."
            )
        if self.dynamic_sampling_rounds and self.rewrite_share:
            raise ValueError("dynamic_sampling_rounds, which draws from all questions, does not go with rewrite_share.")
        if self.dynamic_sampling_rounds and self.old_logprobs_context == "rollout":
            raise ValueError("dynamic_sampling_rounds and old_logprobs_context='rollout' do not go together.")
        if not 0 < self.context_ratio_min < self.context_ratio_max:
            raise ValueError(
                f"The context ratio's range [{self.context_ratio_min}, {self.context_ratio_max}] must satisfy "
                "0 < context_ratio_min < context_ratio_max."
            )

    @property
    def may_skip_rollouts(self) -> bool:
        """Whether rollouts without advantage are left out of the update, where no entropy or router has a term."""
        return self.skip_zero_advantages and not (self.beta and self.kl_on_collapsed_groups)

    def __getstate__(self) -> dict[str, Any]:
        # transformers pickles its arguments into every checkpoint, which people upload.
        return {**self.__dict__, "hub_token": None}

    def steps_within_budget(self, planned: int) -> int:
        """At most how many optimizer steps, of those planned, `max_rollouts` allows.

        The learning rate is scheduled over them: over endless epochs a share of warm-up would never end, and no rate
        decay. Rollouts of prompt phases and of dynamic sampling leave fewer steps.
        """
        if self.max_rollouts is None:
            return planned
        sampled = int(self.generation_batch_size or 1) * (1 - self.reused_rollouts_per_group / self.num_generations)
        passes = math.ceil(self.max_rollouts / sampled) * self.steps_per_generation * self.num_iterations
        return min(planned, math.ceil(passes / self.gradient_accumulation_steps))
