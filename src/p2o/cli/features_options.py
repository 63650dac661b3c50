"""Options of `p2o features`."""

from dataclasses import dataclass, field

from p2o.cli.features_source import refuse_other_engines
from p2o.cli.frozen_answers import AnswerArguments
from p2o.engines.endpoint import check_base_url
from p2o.features.autoencoder import Objective
from p2o.features.training import TrainingOptions
from p2o.options import check_ranges


@dataclass
class LabelEndpointOptions:
    """A model behind an endpoint that says in a few words what features are about, beside their label by contrast."""

    label_endpoint_model: str | None = field(
        default=None,
        metadata={
            "help": "Model behind an endpoint that is shown where the most active features are active, and says in a "
            "few words what they are about: any name that litellm understands, such as 'anthropic/<name>', or "
            "'openai/<name>' for an OpenAI-compatible server at `label_endpoint_base_url`. Needs "
            "`pip install 'p2o-rl[reflection]'`, and its key in the environment. No labels are asked for when not set."
        },
    )
    label_endpoint_base_url: str | None = field(
        default=None,
        metadata={
            "help": "Where the endpoint is, such as http://127.0.0.1:8000/v1. The provider's own address when not set."
        },
    )
    label_endpoint_features: int = field(
        default=50, metadata={"help": "Features that are labelled so, the most active ones; each is one request."}
    )
    label_endpoint_max_tokens: int = field(
        default=1024, metadata={"help": "Longest answer, in new tokens; of it the first line is kept."}
    )
    label_endpoint_concurrency: int = field(
        default=16, metadata={"help": "Requests to the endpoint that are under way at once."}
    )
    label_endpoint_timeout: float = field(
        default=120.0, metadata={"help": "Seconds after which a request whose answer is not complete has failed."}
    )
    label_endpoint_max_retries: int = field(
        default=3,
        metadata={
            "help": "Further attempts at a request that failed. A feature whose request fails for good has none."
        },
    )

    def check_label_endpoint(self) -> None:
        """
        Raises:
            ValueError: an option out of its range, or an address without a model.
        """
        ones = ("features", "max_tokens", "concurrency")
        ranges: dict[str, float | str] = {f"label_endpoint_{name}": 1 for name in ones}
        check_ranges(self, {**ranges, "label_endpoint_max_retries": 0, "label_endpoint_timeout": "(0, inf)"})
        if self.label_endpoint_base_url is not None:
            check_base_url("label_endpoint_base_url", self.label_endpoint_base_url)
            if self.label_endpoint_model is None:
                raise ValueError(
                    "label_endpoint_base_url needs label_endpoint_model, the model that is served there, such as "
                    "'openai/<name>'."
                )


@dataclass
class FeatureArguments(AnswerArguments, LabelEndpointOptions):
    """Options of `p2o features MODEL`."""

    n: int = field(default=32, metadata={"help": "Rollouts of each question.", "aliases": ["--answers"]})
    layer: str | None = field(
        default=None,
        metadata={
            "help": "Layer whose output is read: its number, from 0, or the name of a module. By default at 4/7 of the "
            "depth, as layer 16 of 28 in arXiv 2605.28388."
        },
    )
    features: int | None = field(
        default=None, metadata={"help": "Features of the dictionary; 8 times the width of the model when not set."}
    )
    high_share: float = field(
        default=0.2, metadata={"help": "Share of the features that are high-level, in (0, 1). The paper's is 0.2."}
    )
    k: int = field(default=16, metadata={"help": "Features that are active in a token, on average."})
    contrastive: float = field(
        default=Objective.contrastive, metadata={"help": "Weight of the contrastive term; 0 leaves it out."}
    )
    contrastive_temperature: float = field(
        default=Objective.temperature, metadata={"help": "Temperature of the contrastive term."}
    )
    dictionary_steps: int = field(default=TrainingOptions.steps, metadata={"help": "Updates of the dictionary."})
    pairs_per_batch: int = field(
        default=TrainingOptions.pairs_per_batch, metadata={"help": "Pairs of adjacent tokens in an update."}
    )
    dictionary_learning_rate: float = field(
        default=TrainingOptions.learning_rate, metadata={"help": "Greatest learning rate of the dictionary."}
    )
    baseline: bool = field(
        default=True,
        metadata={"help": "Whether to train a plain BatchTopK of the same size as well, to compare with."},
    )
    instructed_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of the rollouts of each question that are sampled under an instruction, in [0, 1), so that "
            "the dictionary knows what the bare model hardly does. Needs --instructions, but for the embedded world."
        },
    )
    instructions: str | None = field(
        default=None, metadata={"help": "Text file with an instruction in each line, one of which is drawn."}
    )
    spans: str | None = field(
        default=None,
        metadata={
            "help": "Function as `module:function` that finds the spans of an answer, by which features are labelled. "
            "By default rules for text, and for the embedded world those of its corpus."
        },
    )
    label_share: float = field(
        default=0.6,
        metadata={"help": "Least share of a feature's mean activation that one kind of span must have to label it."},
    )
    label_tokens: int = field(
        default=20, metadata={"help": "Least number of tokens of that kind in which the feature is active."}
    )

    def check(self) -> None:
        super().check()
        self.check_label_endpoint()
        ones = ("dictionary_steps", "pairs_per_batch", "features", "label_tokens")
        check_ranges(self, dict.fromkeys(ones, 1))
        check_ranges(self, {"contrastive": 0, "contrastive_temperature": "(0, inf)", "label_share": "(0, 1]"})
        check_ranges(self, {"high_share": "(0, 1)", "instructed_share": "[0, 1)", "dictionary_learning_rate": "(0, 1]"})
        refuse_other_engines(self)
        if not 2 <= self.k <= (self.features or self.k):
            most = f", and at most the {self.features} there are" if self.features else ""
            raise ValueError(f"--k {self.k}: choose at least 2 active features of a token{most}; usual are 16 to 64.")

    def objective(self) -> Objective:
        return Objective(self.contrastive, self.contrastive_temperature)

    def training(self) -> TrainingOptions:
        return TrainingOptions(
            steps=self.dictionary_steps,
            pairs_per_batch=self.pairs_per_batch,
            learning_rate=self.dictionary_learning_rate,
            seed=self.seed,
            objective=self.objective(),
        )
