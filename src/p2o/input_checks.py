"""Checks of arguments and data before any training."""

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from p2o.batch_sizes import BatchSizes
from p2o.config import P2OConfig
from p2o.difficulty.training import selected_questions
from p2o.tasks import refused_by
from p2o.templates import Tokenize, question_text

logger = logging.getLogger(__name__)


def training_questions(
    args: Any,
    model: Any,
    train_dataset: Any,
    reward_funcs: Any,
    rollout_func: Any,
    tools: Any,
    environment_factory: Any,
) -> Dataset:
    """The questions of the data set that are trained on, after all arguments are checked.

    Raises:
        ValueError: what P²O cannot work with.
    """
    if not isinstance(args, P2OConfig):
        raise ValueError(f"args must be a P2OConfig, not {type(args).__name__}: the names swap in pairs.")
    if environment_factory is not None:
        raise ValueError("P2OTrainer does not support `environment_factory` yet; `tools` are functions that it calls.")
    if not reward_funcs:
        raise ValueError("No reward source provided: P2OTrainer needs `reward_funcs`, which show what is hard.")
    if args.reused_rollouts_per_group and rollout_func is not None:
        raise ValueError("reused_rollouts_per_group does not go together with a rollout_func of your own.")
    if args.reused_rollouts_per_group and tools:
        raise ValueError(
            "reused_rollouts_per_group does not go together with tools: what a kept one calls would be called again."
        )
    if rollout_func is not None and tools:
        raise ValueError("Give either `tools`, which TRL calls, or a `rollout_func`, which calls its own.")
    check_questions(train_dataset, args)
    return selected_questions(train_dataset, args, reward_funcs, model)


def check_evaluation(args: P2OConfig) -> None:
    """
    Raises:
        ValueError: an evaluation batch that cuts a question's rollouts apart. TRL looks where `eval_strategy` is set.
    """
    if problem := BatchSizes.of_complete(args, evaluates=True).problem():
        raise ValueError(problem)


def longest_prompt(args: P2OConfig, model: Any, engine_length: int | None) -> int | None:
    """Longest prompt in tokens: the option, or what positions leave beside a completion; None for no limit.

    Args:
        engine_length: tokens of prompt and completion that vLLM holds; None where it is not used.
    """
    if args.max_prompt_length:
        return args.max_prompt_length
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, engine_length) if limit is not None]
    return int(min(limits)) - args.max_completion_length if limits else None


def check_questions(dataset: Any, args: P2OConfig) -> None:
    """
    Raises:
        ValueError: not a dataset of known length, no or empty prompts, images; rows are named.
    """
    if dataset is None:
        raise ValueError("`train_dataset` is required: a `datasets.Dataset` with a column `prompt`.")
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "train_dataset is an IterableDataset; P²O comes back to hard questions by row, which a stream has none of. "
            "Load it without streaming=True, or take a part of it: `Dataset.from_list(list(train_dataset.take(5000)))`."
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        raise ValueError(f"train_dataset is of type {type(dataset).__name__}; P2OTrainer needs a `datasets.Dataset`.")
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
    _check_size(dataset, args)
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


def _check_size(dataset: Any, args: P2OConfig) -> None:
    questions_per_batch = args.generation_batch_size // args.num_generations
    if len(dataset) < questions_per_batch:
        raise ValueError(
            f"train_dataset has {len(dataset)} questions, fewer than the {questions_per_batch} of one generation "
            "batch (generation_batch_size / num_generations): no step could be taken. Lower "
            "per_device_train_batch_size or steps_per_generation."
        )


def check_prompts(train: Any, evaluation: Any, tokenize: Tokenize, limit: int | None) -> None:
    """
    Args:
        evaluation: one dataset or several by name; None for none. A stream is left alone.
        tokenize: prompts as they are generated from.
        limit: of a training prompt, in tokens.

    Raises:
        ValueError: chats that the model's chat template refuses, or training prompts over the limit; rows are named.
    """
    by_name = {f"eval_dataset {n!r}": d for n, d in evaluation.items()} if isinstance(evaluation, Mapping) else {}
    for name, data in {"train_dataset": train, "eval_dataset": evaluation, **by_name}.items():
        if isinstance(data, Dataset) and "prompt" in data.column_names:
            refused = refused_by(data["prompt"], lambda chat: tokenize([chat]))
            for row, why in refused.items():
                raise ValueError(
                    f"{name} row {row}, field `prompt`: the model's chat template refuses it ({why}), and so "
                    f"{len(refused)} of {len(data)} rows. Without a role for it, what a system prompt says belongs in "
                    "the question."
                )
    check_prompt_lengths(train, tokenize, limit)


def check_prompt_lengths(dataset: Any, tokenize: Tokenize, limit: int | None) -> None:
    """
    Raises:
        ValueError: prompts over the limit, in tokens; rows are named.
    """
    if limit is None:
        return
    prompts = dataset["prompt"]
    too_long = []
    for start in range(0, len(prompts), 1000):
        ids = tokenize(list(prompts[start : start + 1000]))
        too_long += [(start + i, len(row)) for i, row in enumerate(ids) if len(row) > limit]
    if too_long:
        rows = ", ".join(f"row {row}: {length} tokens" for row, length in too_long[:5])
        raise ValueError(
            f"{len(too_long)} of {len(prompts)} training prompts are longer than {limit} tokens "
            f"({rows}{', …' if len(too_long) > 5 else ''}). Drop them from the dataset, raise max_prompt_length, "
            "or lower max_completion_length."
        )
