"""Options of the reflection model, the same for `P2OConfig` and for `p2o evolve`. Pure."""

from dataclasses import dataclass, field

from p2o.engines.endpoint import check_base_url
from p2o.options import check_ranges

OWN_MODELS = ("reference", "policy")
PLACEHOLDERS = ("<curr_param>", "<side_info>")


@dataclass
class ReflectionOptions:
    """The model that proposes instructions, and its requests."""

    reflection_model: str = field(
        default="reference",
        metadata={
            "help": "The model that proposes better instructions: 'reference', the model as it was before training "
            "(with LoRA the base without its adapter); 'policy', the model as it is (the paper found that templates "
            "then become alike late in training); or a model behind an endpoint by any name that litellm understands, "
            "such as 'anthropic/<name>', or 'openai/<name>' for an OpenAI-compatible server at `reflection_base_url`. "
            "An endpoint needs `pip install 'p2o-rl[reflection]'`, and its key in the environment (OPENAI_API_KEY "
            "and the like), which is the only place for it."
        },
    )
    reflection_base_url: str | None = field(
        default=None,
        metadata={
            "help": "Where the endpoint is, such as http://127.0.0.1:8000/v1. The provider's own address when not set."
        },
    )
    reflection_sees_images: bool = field(
        default=False,
        metadata={
            "help": "Whether the endpoint's model sees images: those of questions are then sent to it, as `data:` "
            "URLs. Otherwise it reads that there was one. A vision-language model in training sees them anyway."
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
            "GEPA's own when not set. Where it asks for a ``` block, as GEPA's does, an answer without one is "
            "rejected; otherwise the whole answer is the instruction."
        },
    )
    reflection_max_prompt_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest reflection prompt, in tokens. Of answers that do not fit, the beginning and the end are "
            "shown, while questions and feedback stay whole. By default, what the model's positions or vLLM's context "
            "length leave beside `reflection_max_tokens`; less saves memory and time. Tokens of an endpoint's model "
            "are estimated from bytes."
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

    def check_reflection(self) -> None:
        """
        Raises:
            ValueError: an option out of its range, or one about an endpoint where there is none.
        """
        ranges: dict[str, float | str] = {
            "reflection_max_tokens": 1,
            "reflection_max_prompt_tokens": 1,
            "reflection_concurrency": 1,
            "reflection_max_retries": 0,
            "reflection_token_limit": 1,
            "reflection_temperature": 0,
            "reflection_timeout": "(0, inf)",
            "reflection_cost_limit": "(0, inf)",
        }
        check_ranges(self, ranges)
        if not self.reflection_endpoint:
            names = ("reflection_base_url", "reflection_token_limit", "reflection_cost_limit", "reflection_sees_images")
            for name in names:
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is about an endpoint, and reflection_model={self.reflection_model!r} is none; name "
                        "the endpoint's model, such as 'openai/<name>'."
                    )
        if self.reflection_base_url is not None:
            check_base_url("reflection_base_url", self.reflection_base_url)
        missing = [p for p in PLACEHOLDERS if self.reflection_prompt is not None and p not in self.reflection_prompt]
        if missing:
            raise ValueError(f"reflection_prompt lacks the placeholder(s) {', '.join(missing)}.")

    @property
    def reflection_endpoint(self) -> bool:
        """Whether reflections come from an endpoint rather than from a model in this process."""
        return self.reflection_model not in OWN_MODELS
