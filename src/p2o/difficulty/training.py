"""The part of a training set that a difficulty selects, by a profile that has to be one of the same questions."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from p2o.config import P2OConfig
from p2o.difficulty.buckets import BUCKETS
from p2o.difficulty.profile import Profile, ProfileError, RewardIdentity, read_profile, reward_identity
from p2o.difficulty.selection import parse_selection, rows_among
from p2o.evaluation.results import question_key
from p2o.images import image_columns, stored_images
from p2o.models import NAMED_MODELS, model_path

logger = logging.getLogger(__name__)


def selected_questions(dataset: Dataset, args: P2OConfig, reward_funcs: Any, model: Any) -> Dataset:
    """The questions of `args.difficulty` by `args.difficulty_profile`; all of them where these are not set.

    Fewer than a generation batch takes are repeated, all of them equally often, until they fill one. What differs
    between profile and training without making the profile one of other questions (the model, how it is sampled) is
    logged.

    Args:
        dataset: the training set, with the column `prompt`, and the gold answers in `args.solution_column`.
        reward_funcs: one or several, as the trainer takes them.
        model: as the trainer takes it: a name, or the model.

    Raises:
        ProfileError: a file that is none, a profile of other questions or of another reward, nothing that is selected.
    """
    if args.difficulty is None or args.difficulty_profile is None:
        return dataset
    profile = read_profile(args.difficulty_profile)
    rewards = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    wanted = parse_selection(args.difficulty).rows_of(profile)
    _refuse_other_reward(profile, wanted, rewards, args)
    rows = _rows_in(dataset, profile, wanted, args)
    batch = args.generation_batch_size // args.num_generations
    times = -(-batch // len(rows))
    if args.process_index == 0:
        again = f", {times} times each, so that a batch of {batch} is full" if times > 1 else ""
        lines = [f"difficulty={args.difficulty}: {len(rows)} of {len(dataset)} training questions{again}."]
        for line in (*lines, *_differences(profile, args, model)):
            logger.warning("%s", line)
    return dataset.select(rows * times)


def evaluation_by_bucket(sets: Mapping[str, Dataset], path: str) -> dict[str, Dataset]:
    """The questions of evaluation sets by their bucket in a profile, which is of them and perhaps of others.

    Args:
        sets: by name, with the columns `prompt` and `solution`.
        path: of the profile.

    Returns:
        By bucket that has any, the questions; those that were not profiled are left out, which is logged.

    Raises:
        ProfileError: a file that is none, or a profile of other questions.
    """
    profile = read_profile(path)
    buckets = {question.key: bucket for question, bucket in zip(profile.questions, profile.buckets, strict=True)}
    rows = [row for dataset in sets.values() for row in dataset]
    shown = [images for dataset in sets.values() for images in _stored_images(dataset)]
    found = [buckets.get(question_key({**row, **images})) for row, images in zip(rows, shown, strict=True)]
    made = {b: Dataset.from_list([r for r, own in zip(rows, found, strict=True) if own == b]) for b in BUCKETS}
    if not any(map(len, made.values())):
        raise ProfileError(
            f"eval_difficulty_profile={path} is a profile of other questions: none of the {len(rows)} evaluation "
            "questions is in it. Profile these, `p2o profile MODEL --dataset … --dataset_split …` or --tasks, with "
            "training's own options of the data."
        )
    if left_out := sum(bucket not in BUCKETS for bucket in found):
        logger.warning("%d of %d evaluation questions are not in the profile, and left out.", left_out, len(rows))
    return {bucket: dataset for bucket, dataset in made.items() if len(dataset)}


def _stored_images(dataset: Dataset) -> Iterable[dict[str, Any]]:
    """The columns with images, row by row, undecoded as in a profile; of a data set without any nothing."""
    return stored_images(dataset) if image_columns(dataset) else [{}] * len(dataset)


def _rows_in(dataset: Dataset, profile: Profile, wanted: Sequence[int], args: P2OConfig) -> list[int]:
    """Rows of the training set whose question is one of these of the profile, in their order."""
    columns = {"prompt": "prompt", "solution": args.solution_column, "entry": "entry"}
    present = {key: name for key, name in columns.items() if name in dataset.column_names}
    part = dataset.select_columns(list(present.values()))
    rows = zip(part, _stored_images(dataset), strict=True)
    keys = [question_key({**{key: row[name] for key, name in present.items()}, **images}) for row, images in rows]
    known = {question.key for question in profile.questions}
    if (unknown := sum(key not in known for key in keys)) and args.process_index == 0:
        logger.warning("%d of %d training questions are not in the profile, and left out.", unknown, len(keys))
    again = (
        f"Profile what you train on, `p2o profile {profile.model} --dataset …`, with training's own options of the "
        "data (--data_seed, --system_prompt, --answer_format, …, or --config)."
    )
    return rows_among(keys, profile, wanted, str(args.difficulty_profile), "training set", again)


def _refuse_other_reward(profile: Profile, wanted: Sequence[int], rewards: list[Any], args: P2OConfig) -> None:
    """
    Raises:
        ProfileError: success was decided by another function, or above another threshold, than training's.
    """
    where = args.difficulty_profile
    named = [reward for reward in rewards if getattr(reward, "__name__", None) == args.success_reward]
    deciding = named if args.success_reward else rewards
    if len(deciding) != 1:
        raise ProfileError(
            f"{where} was judged by one reward, and training decides success by the sum of {len(deciding)}. Name the "
            "one that decides with success_reward."
        )
    found = reward_identity(deciding[0])
    for task in dict.fromkeys(profile.questions[row].task for row in wanted):
        if (judged := profile.rewards[task]) != found:
            raise ProfileError(
                f"{where} was judged by another reward: {task} by {_said(judged, found)}, training by "
                f"{_said(found, judged)}. Train with the same one, or profile again with the one you train with "
                "(--verifier, or --reward_func module:function)."
            )
    if profile.success_threshold != args.success_threshold:
        raise ProfileError(
            f"{where} counts a reward above {profile.success_threshold:g} as success, training one above "
            f"success_threshold={args.success_threshold:g}. Make them equal: `p2o profile` has the same option."
        )


def _said(reward: RewardIdentity, other: RewardIdentity) -> str:
    """The function, and the digest of its lines where only these tell the two apart."""
    if reward.function != other.function:
        return reward.function
    return f"{reward.function} (its lines have the digest {reward.source or 'unknown'})"


def _differences(profile: Profile, args: P2OConfig, model: Any) -> list[str]:
    """What makes questions harder or easier in training than in the profile, in words."""
    sampling = profile.settings["sampling"]
    changed = [
        f"{name} {sampling[name]} in the profile, {getattr(args, name)} in training"
        for name in ("max_completion_length", "temperature", "top_p", "top_k")
        if name in sampling and sampling[name] != getattr(args, name)
    ]
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
    if not _same_model(profile.model, name):
        changed.insert(0, f"model {profile.model} in the profile, {name} in training")
    return [f"The questions may be harder or easier than the profile says: {'; '.join(changed)}."] if changed else []


def _same_model(profiled: str, trained: str) -> bool:
    if profiled == trained:
        return True
    path = model_path(profiled) if profiled in NAMED_MODELS else profiled
    return Path(path).resolve() == Path(trained).resolve()
