"""Loads the questions of `p2o train`; checks them against the model's tokenizer and the verifier."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from trl import ModelConfig
from trl.data_utils import prepare_multimodal_messages

from p2o.cli.errors import InputError
from p2o.cli.options import RunArguments
from p2o.config import P2OConfig
from p2o.image_checks import check_model
from p2o.images import image_columns
from p2o.tasks import (
    NAMED_SETS,
    DataError,
    Report,
    equal_golds,
    is_task,
    load_splits,
    load_task,
    long_prompts,
    questions,
    refused_chats,
    verifier_of,
    with_image_column,
)
from p2o.templates import Prompt
from p2o.verifiers import check_solutions, unmatchable

# Rewards that parse gold answers as mathematics: a gold answer they cannot parse always scores 0.
MATHEMATICAL = ("math", "accuracy", "accuracy_reward", "reasoning_accuracy_reward")


def load_questions(
    arguments: RunArguments, training: P2OConfig, model: ModelConfig
) -> tuple[Dataset, Report, dict[str, Dataset]]:
    """The training questions with the report of their check, and the test questions by split.

    Sets `training.solution_column` to that of the mapped data. If the report stops the run, no test set is loaded.

    Raises:
        InputError: data that cannot be loaded, a missing column or split.
    """
    name, test_split = str(arguments.dataset_name), arguments.dataset_test_split
    mapping = {
        "system_prompt": arguments.system_prompt,
        "as_chat": arguments.prompts_as_chats,
        "strict": arguments.strict_data,
        "conflicts": arguments.conflicts or ("drop" if is_task(name) else "stop"),
        **gold_checks(arguments.reward_funcs or [], name),
    }
    try:
        if is_task(name):
            if test_split and not name.startswith("gym:"):
                raise InputError(f"{name} is one set of questions; leave dataset_test_split out.")
            options: dict[str, Any] = {
                "seed": training.data_seed or 0,
                "path": arguments.dataset_path,
                "limit": arguments.dataset_size,
                "answer_format": arguments.answer_format,
            }
            train = load_task(name, split="train", **options).dataset
            test = load_task(name, split="test", **options).dataset if test_split else None
        else:
            splits = load_splits(name, arguments.dataset_config, arguments.dataset_revision, arguments.image_column)
            train = split_of(splits, arguments.dataset_train_split, name)
            test = split_of(splits, test_split, name) if test_split else None
            mapping |= {
                "prompt_column": arguments.prompt_column,
                "solution_column": training.solution_column,
                "image_column": arguments.image_column,
                "answer_format": arguments.answer_format,
                "cut_last_answer": arguments.cut_last_answer,
            }
        shown = with_image_column(train, mapping.get("image_column"), name)
        mapping |= _prompt_checks(training, model, shown, name)
        dataset, report = questions(train, name=name, **mapping)
        finals = {}
        if test is not None and not report.stops:
            tested, test_report = questions(test, name=f"{name}, {test_split}", **mapping)
            if problem := test_report.error_message():
                raise InputError(problem)
            finals = {str(test_split): tested}
    except DataError as error:
        raise InputError(str(error)) from error
    training.solution_column = "solution"
    return dataset, report, finals


def gold_checks(rewards: list[str], name: str) -> dict[str, Any]:
    """Arguments of [`p2o.tasks.check_questions`] about gold answers, by the rewards and the name of the data.

    Questions of reasoning-gym and of the embedded world are scored by an entry, and their solutions are examples.
    """
    if is_task(name) and verifier_of(name) != "math":
        return {}
    mathematical = any(reward.replace(":", ".").rpartition(".")[2] in MATHEMATICAL for reward in rewards)
    return {
        "same": equal_golds,
        "unmatchable": unmatchable,
        "unparsable": check_solutions if mathematical else None,
    }


def _prompt_checks(training: P2OConfig, model: ModelConfig, dataset: Dataset, name: str) -> dict[str, Any]:
    """Checks of prompts: by the chat template, and for length (`max_prompt_length`, or what the context leaves).

    The length of those with images is known only to who has read them all: the trainer.
    """
    known = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    try:
        if image_columns(dataset):
            return {"refused": _refused_by_processor(training, model, dataset, name)}
        tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, **known)
        config = AutoConfig.from_pretrained(model.model_name_or_path, **known).get_text_config()
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot load the tokenizer of {model.model_name_or_path}: {error}") from error
    positions = getattr(config, "max_position_embeddings", None)
    limit = training.max_prompt_length or (positions and positions - (training.max_completion_length or 0))
    options = training.chat_template_kwargs or {}

    def refused(prompts: list[Prompt]) -> dict[int, str]:
        try:
            return refused_chats(prompts, tokenizer, **options)
        except ValueError as error:
            raise DataError(str(error)) from error

    def too_long(prompts: list[Prompt]) -> dict[int, int]:
        return long_prompts(prompts, tokenizer, limit, **options) if limit else {}

    return {"refused": refused, "too_long": too_long}


def _refused_by_processor(
    training: P2OConfig, model: ModelConfig, dataset: Dataset, name: str
) -> Callable[[list[Prompt]], dict[int, str]]:
    """The check of prompts by the chat template of a model that sees images.

    Raises:
        InputError: the model reads texts only.
    """
    known = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    processor = AutoProcessor.from_pretrained(model.model_name_or_path, **known)
    try:
        check_model(processor, {name: dataset})
    except ValueError as error:
        raise InputError(str(error)) from None

    def refused(prompts: list[Prompt]) -> dict[int, str]:
        chats = [p if isinstance(p, str) else prepare_multimodal_messages(p) for p in prompts]
        return refused_chats(chats, processor, **(training.chat_template_kwargs or {}))

    return refused


def hub_name(arguments: RunArguments) -> str | None:
    """`owner/name` of the training data on the hub; None for other data."""
    name = str(arguments.dataset_name)
    if is_task(name):
        return next((named.hub_id for named in NAMED_SETS if named.name == name.lower()), None)
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def split_of(loaded: DatasetDict, split: str, name: str | None) -> Dataset:
    if split not in loaded:
        raise InputError(f"The dataset {name} has no split {split!r}; it has {', '.join(loaded)}.")
    return loaded[split]
