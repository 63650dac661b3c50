"""The methods that are compared: each is a few settings over the same trainer, none a fork. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

Settings = dict[str, Any]


def _rewrites(base: Mapping[str, Any]) -> Settings:
    return {"rewrite_share": base.get("rewrite_share", 0) or 0.5}


def _features(base: Mapping[str, Any]) -> Settings:
    """
    Raises:
        ValueError: no dictionary.
    """
    if not base.get("feature_dictionary"):
        raise ValueError(
            "Methods with features need a feature_dictionary: `p2o features MODEL` trains one on the model that "
            "training starts from."
        )
    defaults = {"feature_token_weight": 0.5, "feature_proxy_reward": 0.2}
    return {name: base.get(name, 0) or default for name, default in defaults.items()}


def _fst(base: Mapping[str, Any]) -> Settings:
    """Fast-slow training (arXiv 2605.12484): the policy learns under evolved prompts, and keeps them at inference."""
    return {
        "template_questions": "all",
        "epoch_batches": base.get("epoch_batches") or 6,
        "min_hard_questions": 2,  # of an epoch of six batches there are few, and none has to be hard
        "bare_rollouts_per_group": 0,
        "context_distillation": False,
        "loss_type": "cispo",
        "epsilon_high": base.get("epsilon_high") or 4.0,
        "beta": base.get("beta") or 0.001,
        "evaluate_with_prompts": True,
    }


# The paper's method, its ablations, and the baselines. A setting may depend on those it is laid over.
METHODS: dict[str, Callable[[Mapping[str, Any]], Settings]] = {
    "p2o": lambda base: {},
    "p2o-teacher": lambda base: {"reflection_func": base.get("reflection_func", "pico")},
    "p2o-nomask": lambda base: {"context_mask": "off"},
    "p2o-nodistill": lambda base: {"context_distillation": False},
    "p2o-same-template": lambda base: {"same_template_per_group": True},
    "p2o-reuse": lambda base: {"reused_rollouts_per_group": 2},
    "prompt-then-policy": lambda base: {"max_prompt_phases": 1},
    "grpo": lambda base: {"prompt_phase": False},
    # Backward rewrites in half of the places of hard questions (arXiv 2605.28388), at equal rollouts.
    "grpo-rewrites": lambda base: {"prompt_phase": False, **_rewrites(base)},
    "p2o-rewrites": lambda base: _rewrites(base),
    # Features of a dictionary weigh tokens and stand in for rewards where all failed (arXiv 2605.28388).
    "grpo-features": lambda base: {"prompt_phase": False, **_features(base)},
    "p2o-features": lambda base: _features(base),
    "fst": _fst,
    # The beginning of a worked solution in place of an evolved instruction, as in Scaf-GRPO (arXiv 2510.19807).
    "gold-hints": lambda base: {"prompt_phase": False, "hint_column": base.get("hint_column") or "worked_solution"},
    "grpo-2x": lambda base: {
        "prompt_phase": False,
        "num_generations": 2 * base.get("num_generations", 8),
        "per_device_train_batch_size": 2 * base.get("per_device_train_batch_size", 8),
    },
    # Decoupled clipping, token-level loss, dynamic sampling (arXiv 2503.14476); no length penalty is needed here.
    "dapo": lambda base: {
        "prompt_phase": False,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "dynamic_sampling_rounds": base.get("dynamic_sampling_rounds", 0) or 3,
    },
}


def with_method(settings: Mapping[str, Any]) -> Settings:
    """The settings with what their `method` ("p2o" when not named) implies.

    Raises:
        ValueError: an unknown method.
    """
    method = settings.get("method", "p2o")
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    return {**settings, **METHODS[method](settings)}


def tuned_as(method: str, methods: list[str]) -> str:
    """The method whose tuned value this one takes: an ablation of P²O that of P²O, any other its own."""
    return "p2o" if method.startswith("p2o-") and "p2o" in methods else method
