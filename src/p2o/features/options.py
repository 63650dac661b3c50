"""Options of training by which features of a dictionary weigh tokens and stand in for rewards."""

from dataclasses import dataclass, field

from p2o.options import check_ranges


@dataclass
class FeatureOptions:
    """Feature-guided optimization, the second cure of arXiv 2605.28388; off by default."""

    feature_dictionary: str | None = field(
        default=None,
        metadata={"help": "Directory of a dictionary of the model that training starts from; `p2o features` wrote it."},
    )
    feature_token_weight: float = field(
        default=0.0,
        metadata={
            "help": "By how much tokens weigh more in the loss where reasoning features move: 0 is all alike, 1 weighs "
            "them by that movement alone. The mean weight of a rollout is 1."
        },
    )
    feature_proxy_reward: float = field(
        default=0.0,
        metadata={
            "help": "Scale of the advantages that reasoning features give to the rollouts of a group in which all "
            "failed alike; 0 is none. Those of groups with variance are about 1."
        },
    )
    feature_proxy_patience: float = field(
        default=0.1,
        metadata={
            "help": "By how much the share of reasoning features in failed rollouts may rise while the share of "
            "successes does not, before these advantages are switched off for good."
        },
    )

    def check_features(self) -> None:
        """
        Raises:
            ValueError: an option out of its range, or without a dictionary.
        """
        ranges: dict[str, float | str] = {"feature_token_weight": "[0, 1]", "feature_proxy_reward": 0}
        check_ranges(self, {**ranges, "feature_proxy_patience": "(0, 1]"})
        if self.guided_by_features and self.feature_dictionary is None:
            raise ValueError(
                "feature_token_weight and feature_proxy_reward need a feature_dictionary: `p2o features MODEL` trains "
                "one on the model that training starts from."
            )

    @property
    def guided_by_features(self) -> bool:
        return bool(self.feature_token_weight or self.feature_proxy_reward)
