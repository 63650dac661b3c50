"""`P2OConfig`: everything `GRPOConfig` has, plus what P²O adds. The help texts are the documentation."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from trl import GRPOConfig

EVOLUTION_PRESETS = ("light", "medium", "heavy", "heavy_4")
OWN_REFLECTION = ("reference", "policy")


@dataclass
class P2OConfig(GRPOConfig):
    r"""
    Configuration of [`P2OTrainer`].

    Defaults are the paper's (arXiv 2603.21877) wherever it states one; everything inherited from `GRPOConfig` keeps
    TRL's meaning and default. Section numbers refer to the paper's algorithm as implemented in `trainer.py`.

    Raises:
        ValueError: an option out of its range or of its choices, naming the option and what it may be.
    """

    # -- mining: which questions are hard this epoch -----------------------------------------------------------------
    near_hard: bool = field(
        default=True,
        metadata={
            "help": "Whether questions with exactly one success among their rollouts join the hard set, beside those "
            "with none."
        },
    )
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

    # -- prompt phase ------------------------------------------------------------------------------------------------
    prompt_phase: bool = field(
        default=True,
        metadata={"help": "Whether to evolve templates between epochs. `False` is plain GRPO on the same footing."},
    )
    min_hard_questions: int = field(
        default=100,
        metadata={
            "help": "The prompt phase is skipped, and the next epoch untemplated, when the hard set is smaller than "
            "this. At least 2: one question to reflect on and one to judge by."
        },
    )
    max_dev_questions: int = field(
        default=300,
        metadata={
            "help": "Hard questions kept apart for scoring templates. Half of the hard set when it is smaller than "
            "one and a half times this."
        },
    )
    evolution_budget: str = field(
        default="light",
        metadata={
            "help": "Rollouts one prompt phase may spend: a preset ('light', 'medium', 'heavy', 'heavy_4'; the paper "
            "uses 'heavy_4') that grows with the dev set, or a number. Every rollout counts, one that is known "
            "already included."
        },
    )
    parents_per_iteration: int = field(
        default=16,
        metadata={"help": "Distinct parents drawn from the Pareto front in one iteration of evolution."},
    )
    fill_iterations: bool = field(
        default=False,
        metadata={
            "help": "Whether parents reflect on further feedback questions, a minibatch each, where the Pareto front "
            "has fewer than `parents_per_iteration` of them, as in the first iterations. Batches are larger then and "
            "iterations fewer."
        },
    )
    feedback_minibatch_size: int = field(
        default=3,
        metadata={"help": "Feedback questions a parent is tried on before and after reflection."},
    )
    max_template_length: int = field(
        default=2000,
        metadata={"help": "Longest template, in characters. Longer reflections are rejected and counted."},
    )
    prompt_phase_batch_size: int = field(
        default=128,
        metadata={
            "help": "Rollouts or reflections that transformers generates at once in the prompt phase. Several "
            "processes take turns with such batches, so templates depend on this number and not on how many processes "
            "there are. vLLM is given all rollouts and makes its own batches."
        },
    )

    # -- reflection --------------------------------------------------------------------------------------------------
    reflection_model: str = field(
        default="reference",
        metadata={
            "help": "Who proposes better instructions: 'reference', the model as it was before training (with LoRA the "
            "base without its adapter); 'policy', the model as it is (the paper found that templates then become alike "
            "late in training); or a model behind an endpoint by any name that litellm understands, such as "
            "'anthropic/<name>', or 'openai/<name>' for an OpenAI-compatible server at `reflection_base_url`. An "
            "endpoint needs `pip install 'p2o-rl[reflection]'`, and its key in the environment (OPENAI_API_KEY and the "
            "like), which is the only place for it."
        },
    )
    reflection_base_url: str | None = field(
        default=None,
        metadata={
            "help": "Where the endpoint is, such as http://127.0.0.1:8000/v1. The provider's own address when not set."
        },
    )
    reflection_concurrency: int = field(
        default=16, metadata={"help": "Requests to the endpoint that are under way at once."}
    )
    reflection_timeout: float = field(
        default=120.0,
        metadata={"help": "Seconds after which a request whose answer is not complete has failed."},
    )
    reflection_max_retries: int = field(
        default=3,
        metadata={
            "help": "Further attempts at a request that met a time-out, a broken connection, status 408, 429 or 5xx, "
            "or an answer without sense, after waits that grow from a second and heed Retry-After up to a minute. A "
            "reflection that fails for good costs its proposal; when a whole batch fails, the prompt phase ends with "
            "what it has, and training goes on."
        },
    )
    reflection_token_limit: int | None = field(
        default=None,
        metadata={
            "help": "Prompt and completion tokens that a run may spend on its reflection endpoint; requests under way "
            "are finished. Once it is reached there are no more prompt phases, and the last templates stay in use."
        },
    )
    reflection_cost_limit: float | None = field(
        default=None,
        metadata={
            "help": "The same in US dollars, by litellm's list of prices. An error at start for a model that is not in "
            "that list."
        },
    )
    reflection_prompt: str | None = field(
        default=None,
        metadata={
            "help": "Wording of the reflection request, with the placeholders `<curr_param>` and `<side_info>`. "
            "GEPA's own when not set."
        },
    )
    reflection_max_tokens: int = field(
        default=1024,
        metadata={"help": "Longest reflection, in new tokens."},
    )
    reflection_temperature: float = field(
        default=1.0,
        metadata={"help": "Sampling temperature of the reflection model."},
    )
    solution_column: str = field(
        default="solution",
        metadata={"help": "Dataset column with the gold answer, for feedback and for the guard against leaks of it."},
    )

    # -- templates in the policy phase -------------------------------------------------------------------------------
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
            "range: 'hard' removes their loss, 'soft' scales it by bound/ratio, 'off' keeps it."
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

    # -- dynamic sampling -------------------------------------------------------------------------------------------
    dynamic_sampling_rounds: int = field(
        default=0,
        metadata={
            "help": "How often groups without variance are replaced by freshly sampled questions before a batch is "
            "learnt from (DAPO's dynamic sampling, which TRL lacks). 0: never. Every rollout counts."
        },
    )

    skip_zero_advantages: bool = field(
        default=True,
        metadata={
            "help": "Whether rollouts whose advantage is zero are left out of the update's forward and backward "
            "passes, to which they add exactly nothing; loss and normalisers stay TRL's, equal to rounding. Has "
            "no effect with a KL term, an entropy bonus, `top_entropy_quantile` or a router's auxiliary loss, where "
            "they do add something."
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
        super().__post_init__()
        choices = {
            "context_mask": ("hard", "soft", "off"),
            "old_logprobs_context": ("bare", "rollout"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}.")
        self.evolution_budget = str(self.evolution_budget)
        if self.evolution_budget not in EVOLUTION_PRESETS and not self.evolution_budget.isdecimal():
            raise ValueError(
                f"evolution_budget={self.evolution_budget!r} is neither a number of rollouts nor one of "
                f"{', '.join(EVOLUTION_PRESETS)}."
            )
        least = {
            "min_hard_questions": 2,
            "max_dev_questions": 1,
            "parents_per_iteration": 1,
            "feedback_minibatch_size": 1,
            "max_template_length": 1,
            "prompt_phase_batch_size": 1,
            "reflection_max_tokens": 1,
            "reflection_concurrency": 1,
            "reflection_max_retries": 0,
            "reflection_token_limit": 1,
            "bare_rollouts_per_group": 0,
            "reused_rollouts_per_group": 0,
            "dynamic_sampling_rounds": 0,
            "max_prompt_length": 1,
            "max_rollouts": 1,
            "max_prompt_phases": 1,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name}={value} must be at least {minimum}.")
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
        if self.dynamic_sampling_rounds and self.old_logprobs_context == "rollout":
            raise ValueError("dynamic_sampling_rounds and old_logprobs_context='rollout' do not go together.")
        if not 0 < self.context_ratio_min < self.context_ratio_max:
            raise ValueError(
                f"The context ratio's range [{self.context_ratio_min}, {self.context_ratio_max}] must satisfy "
                "0 < context_ratio_min < context_ratio_max."
            )
        if self.regression_margin < 0:
            raise ValueError(f"regression_margin={self.regression_margin} must not be negative.")
        if self.reflection_temperature < 0:
            raise ValueError(f"reflection_temperature={self.reflection_temperature} must not be negative.")
        self._check_endpoint()
        if self.reflection_prompt is not None:
            missing = [p for p in ("<curr_param>", "<side_info>") if p not in self.reflection_prompt]
            if missing:
                raise ValueError(f"reflection_prompt lacks the placeholder(s) {', '.join(missing)}.")

    def _check_endpoint(self) -> None:
        for name in ("reflection_timeout", "reflection_cost_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be greater than 0.")
        if not self.reflection_endpoint:
            for name in ("reflection_base_url", "reflection_token_limit", "reflection_cost_limit"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} is about an endpoint, and reflection_model={self.reflection_model!r} is none; name "
                        "the endpoint's model, such as 'openai/<name>'."
                    )
        if self.reflection_base_url is not None:
            check_base_url("reflection_base_url", self.reflection_base_url)

    @property
    def reflection_endpoint(self) -> bool:
        """Whether reflections come from an endpoint rather than from the model in training."""
        return self.reflection_model not in OWN_REFLECTION

    @property
    def evolution_calls(self) -> str | int:
        """The budget as evolution takes it: a preset's name or a number of rollouts."""
        return int(self.evolution_budget) if self.evolution_budget.isdecimal() else self.evolution_budget


def check_base_url(name: str, address: str) -> None:
    """
    Raises:
        ValueError: an endpoint's address that is none, or that holds a secret; `name` is the option's.
    """
    url = urlsplit(address)
    # The address is part of the configuration, which is written down and shown.
    if url.username is not None or url.password is not None:
        raise ValueError(
            f"{name} contains a user name or a password. Take them out and put the key into the environment, where it "
            "is not written down."
        )
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{name}={address!r} is no address such as http://127.0.0.1:8000/v1.")
