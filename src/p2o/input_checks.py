"""Checks of arguments and data before any training."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset

from p2o import image_checks
from p2o.batch_sizes import BatchSizes
from p2o.config import P2OConfig
from p2o.difficulty.exchange import with_rewrites
from p2o.difficulty.training import selected_questions
from p2o.engines.environments import check_tools, names_in, unknown_names
from p2o.engines.image_inputs import AT_ONCE
from p2o.images import image_columns, without_images
from p2o.tasks import refused_by
from p2o.templates import apply_template, prompt_of, question_text

logger = logging.getLogger(__name__)


def training_questions(
    args: Any,
    model: Any,
    train_dataset: Any,
    reward_funcs: Any,
    rollout_func: Any,
    tools: Any,
    environment_factory: Any,
) -> Dataset | None:
    """The questions of the data set that are trained on, after all arguments are checked.

    None where there is no data set, and an environment asks them all.

    Raises:
        ValueError: what P²O cannot work with.
    """
    if not isinstance(args, P2OConfig):
        raise ValueError(f"args must be a P2OConfig, not {type(args).__name__}: the names swap in pairs.")
    _check_factory(environment_factory)
    if not reward_funcs and environment_factory is None:
        raise ValueError("No reward source provided: P2OTrainer needs `reward_funcs`, which show what is hard.")
    if args.reused_rollouts_per_group and rollout_func is not None:
        raise ValueError("reused_rollouts_per_group does not go together with a rollout_func of your own.")
    called = [name for name, given in (("tools", tools), ("environments", environment_factory)) if given]
    if args.reused_rollouts_per_group and called:
        raise ValueError(
            f"reused_rollouts_per_group does not go together with {called[0]}: what a kept one calls would be called "
            "again."
        )
    if rollout_func is not None and called:
        given = "`tools`" if called[0] == "tools" else "an `environment_factory`"
        raise ValueError(f"Give either {given}, which TRL calls, or a `rollout_func`, which calls its own.")
    if train_dataset is None and environment_factory is not None:
        return None  # TRL makes one, of empty prompts
    check_questions(train_dataset, args, asks=environment_factory is not None, converses=bool(called))
    image_checks.check_options(train_dataset, args, called)
    image_checks.check_rows(train_dataset, "train_dataset")
    return with_rewrites(selected_questions(train_dataset, args, reward_funcs or [], model), args)


def _check_factory(factory: Any) -> None:
    """
    Raises:
        ValueError: neither None nor a callable nor callables by name.
    """
    if isinstance(factory, Mapping):
        wrong = [f"{name!r} is {type(made).__name__}" for name, made in factory.items() if not callable(made)]
        wrong = wrong or ([] if factory else ["it is empty"])
    else:
        wrong = [] if factory is None or callable(factory) else [f"it is {type(factory).__name__}"]
    if wrong:
        raise ValueError(
            "environment_factory must be a class of environments or a function that makes one, or a dictionary of such "
            f"by name; {wrong[0]}. Give the class, not an instance."
        )


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


def check_questions(dataset: Any, args: P2OConfig, *, asks: bool = False, converses: bool = False) -> None:
    """
    Args:
        asks: whether an environment may ask the question, or its rest.
        converses: whether there are tools or environments, for which prompts have to be chats.

    Raises:
        ValueError: not a dataset of known length, no or empty prompts; rows are named.
    """
    if dataset is None:
        raise ValueError("`train_dataset` is required: a `datasets.Dataset` with a column `prompt`.")
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "train_dataset is an IterableDataset; P²O comes back to hard questions by row, which a stream has none of, "
            "and a prompt phase comes at the end of an epoch, which without a length is never reached. Load it without "
            "streaming=True, or take a part of it: `Dataset.from_list(list(train_dataset.take(5000)))`."
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        raise ValueError(f"train_dataset is of type {type(dataset).__name__}; P2OTrainer needs a `datasets.Dataset`.")
    if "prompt" not in dataset.column_names and not asks:
        raise ValueError(f"train_dataset has no `prompt` column; it has {', '.join(dataset.column_names) or 'none'}.")
    if len(dataset) == 0:
        raise ValueError("train_dataset is empty.")
    taken = [name for name in ("prompts", "completions") if name in dataset.column_names]
    if taken:
        raise ValueError(
            f"train_dataset has a column {' and one '.join(taken)}, which is what TRL hands to reward functions under "
            "that name. Rename or remove it."
        )
    _check_size(dataset, args)
    if args.hint_column is not None and args.hint_column not in dataset.column_names:
        raise ValueError(
            f"hint_column={args.hint_column!r}: train_dataset has no such column of worked solutions; it has "
            f"{', '.join(dataset.column_names)}."
        )
    shows = bool(image_columns(dataset))  # a question may be an image alone
    for row, prompt in enumerate(dataset["prompt"] if "prompt" in dataset.column_names else ()):
        try:
            empty = not prompt or not (question_text(prompt).strip() or asks or shows)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"train_dataset row {row}, field `prompt`: {error}") from None
        if empty:
            raise ValueError(f"train_dataset row {row}, field `prompt`: empty.")
        if converses and isinstance(prompt, str):
            raise ValueError(
                f"train_dataset row {row}, field `prompt`: a text. With tools or environments prompts are chats: "
                '[{"role": "user", "content": …}].'
            )
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


def check_prompts(
    train: Any,
    evaluation: Any,
    processing_class: Any,
    tokenize: Callable[..., list[list[int]]],
    limit: int | None,
    tools: Any,
    factories: Any,
    position: str = "user",
) -> list[int]:
    """
    Args:
        evaluation: one dataset or several by name; None for none. A stream is left alone.
        processing_class: a tokenizer, or a processor of images, too.
        tokenize: prompts, of rows of these environments, as they are generated from.
        limit: of a training prompt, in tokens.
        tools: that prompts describe to the model; None for none.
        factories: of environments, by name; None where there are none.
        position: of templates in training prompts.

    Returns:
        The first training prompt, as tokens, for a process that has nothing else to generate from.

    Raises:
        ValueError: tools that cannot be described, images that the model cannot see, chats that the model's chat
            template refuses, or training prompts over the limit; rows are named.
    """
    check_tools(tools or [])
    image_checks.check_model(processing_class, _by_name(train, evaluation))
    for name, data in _by_name(train, evaluation).items():
        if not isinstance(data, Dataset) or "prompt" not in data.column_names:
            continue
        names = names_in(data, factories)
        if unknown_names(names, factories):
            continue
        if name != "train_dataset":
            image_checks.check_rows(data, name)
        refused = refused_by(data["prompt"], partial(_tokens_of, tokenize, names[:1]))
        for row, why in refused.items():
            raise ValueError(
                f"{name} row {row}, field `prompt`: the model's chat template refuses it ({why}), and so "
                f"{len(refused)} of {len(data)} rows. Without a role for it, what a system prompt says belongs in "
                "the question."
            )
        if name == "train_dataset":
            images = image_columns(data)
            prompts = image_checks.ImagePrompts(data, name) if images else data["prompt"]
            check_prompt_lengths(prompts, names, tokenize, limit)
            _check_position(data["prompt"], partial(_tokens_of, tokenize, names[:1]), position)
    first = train.select(range(1))
    known = names_in(first, factories)
    return [] if unknown_names(known, factories) else tokenize([without_images(prompt_of(first[0]))], known)[0]


def _tokens_of(tokenize: Callable[..., list[list[int]]], names: list[str | None], chat: Any) -> list[list[int]]:
    return tokenize([without_images(chat)], names)


def _check_position(prompts: Any, tokens: Callable[[Any], list[list[int]]], position: str) -> None:
    """
    Raises:
        ValueError: prompts that have no place for a template there, by row.
    """
    if position == "user":
        return
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            raise ValueError(
                f"template_position='system': train_dataset row {row}, field `prompt`, is a text, which has no system "
                "message. Give chats, or choose 'user'."
            )

    def changes(prompt: Any) -> None:
        if tokens(apply_template(prompt, "Think.", position)) == tokens(prompt):
            raise ValueError("it leaves the system message out")

    for row, why in refused_by(prompts, changes).items():
        raise ValueError(
            f"template_position='system': the model's chat template does not take a system message ({why}; "
            f"train_dataset row {row}). Choose 'user', in front of the question."
        )


def _by_name(train: Any, evaluation: Any) -> dict[str, Any]:
    several = {f"eval_dataset {n!r}": d for n, d in evaluation.items()} if isinstance(evaluation, Mapping) else {}
    return {"train_dataset": train, "eval_dataset": evaluation, **several}


def check_prompt_lengths(
    prompts: Any, names: list[str | None], tokenize: Callable[..., list[list[int]]], limit: int | None
) -> None:
    """
    Raises:
        ValueError: prompts over the limit, in tokens, or images that cannot be read; rows are named.
    """
    shows = isinstance(prompts, image_checks.ImagePrompts)
    if limit is None and not shows:
        return
    too_long, size = [], AT_ONCE if shows else 1000
    for start in range(0, len(prompts), size):
        some = range(start, min(start + size, len(prompts)))
        ids = (
            prompts.tokens(some, tokenize)
            if shows
            else tokenize(list(prompts[start : start + size]), names[start : start + size])
        )
        too_long += [(start + i, len(row)) for i, row in enumerate(ids) if limit is not None and len(row) > limit]
    if too_long:
        rows = ", ".join(f"row {row}: {length} tokens" for row, length in too_long[:5])
        raise ValueError(
            f"{len(too_long)} of {len(prompts)} training prompts are longer than {limit} tokens "
            f"({rows}{', …' if len(too_long) > 5 else ''}). Drop them from the dataset, raise max_prompt_length, "
            "or lower max_completion_length."
        )


def check_environments(train: Any, evaluation: Any, factories: Any) -> None:
    """
    Args:
        factories: of environments, by name; None where there are none.

    Raises:
        ValueError: a row whose environment does not exist, by dataset and number.
    """
    for name, data in _by_name(train, evaluation).items() if factories is not None else ():
        if not isinstance(data, Dataset):
            continue
        names = names_in(data, factories)
        for row in unknown_names(names, factories)[:1]:
            known = ", ".join(map(repr, factories))
            what = f"has `environment={names[row]!r}`" if "environment" in data.column_names else "names no environment"
            raise ValueError(
                f"{name} row {row} {what}, which is not among the environments passed to `environment_factory`: "
                f"{known}. With a dictionary of them the column `environment` says which one a row is about."
            )
        if name == "train_dataset" and len(data) > 1 and _all_alike(data, set(names)):
            logger.warning(
                "The %d rows of train_dataset are all alike: its environment makes up the questions. P²O comes back to "
                "hard questions by row: what a prompt phase tries is then not what was hard, though it is the same "
                "every time if reset() draws from Python's, NumPy's or torch's own generator. Give each row what "
                "reset() makes its question from, such as a column `seed`.",
                len(data),
            )


def _all_alike(data: Dataset, names: set[str | None]) -> bool:
    """Whether rows differ by nothing but the name of their environment."""
    known: list[Any] = []
    for row in data:
        if row not in known:
            known.append(row)
        if len(known) > len(names):
            return False
    return True
