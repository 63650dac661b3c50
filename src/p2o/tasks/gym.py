"""Generates questions of any reasoning-gym family; each row has its entry, which the family's scorer needs."""

import difflib
import json
from typing import Any

from p2o.holdout import is_held_out
from p2o.seeding import derive_seed
from p2o.tasks.layouts import DataError

PREFIX = "gym:"
ANSWER = "Put the final answer in <answer></answer>."
ROWS = 500
# Some families have few different questions; stop after this many draws per requested question.
PATIENCE = 50
ANY_ANSWER = "any answer that fulfils the question"


def gym_rows(name: str, seed: int, size: int, split: str, answer_format: str) -> list[dict[str, Any]]:
    """Questions of the families and levels that a name such as `gym:chain_sum@2+gcd` lists, in equal shares.

    Args:
        name: with its prefix.
        seed: of the questions.
        size: total number of questions.
        split: one question in eight, chosen by its hash, is in `test`, the others in `train`.
        answer_format: appended to every question; "" for none.

    Raises:
        DataError: no such family or level, or too few different questions.
    """
    parts = [_part(name, part) for part in name.removeprefix(PREFIX).split("+")]
    if len(set(parts)) < len(parts):
        raise DataError(f"{name}: a family is named twice at the same level.")
    shares = [size // len(parts) + (index < size % len(parts)) for index in range(len(parts))]
    made = [
        _rows(name, family, level, share, derive_seed(seed, split, family, level or 0), split, answer_format)
        for (family, level), share in zip(parts, shares, strict=True)
    ]
    # Interleaved, so that the first rows are a mixture too.
    return [row for turn in range(max(shares)) for part in made for row in part[turn : turn + 1]]


def _part(name: str, part: str) -> tuple[str, int | None]:
    """`family` or `family@level`, checked."""
    from reasoning_gym.factory import CURRICULA, DATASETS

    from p2o.verifiers.gym_readers import why_refused

    family, at, text = part.strip().partition("@")
    families = set(DATASETS) - {"composite"}  # a mixture is what "+" is for
    if family not in families:
        near = difflib.get_close_matches(family, sorted(families), 1)
        raise DataError(
            f"{name}: reasoning-gym has no family {family!r}{f'; did you mean {near[0]}?' if near else '.'} See "
            "https://github.com/open-thought/reasoning-gym/blob/main/GALLERY.md."
        )
    if reason := why_refused(family):
        raise DataError(f"{name}: {reason}. Choose another family.")
    if not at:
        return family, None
    if not text.isdecimal():
        raise DataError(f"{name}: the level in {part!r} must be a whole number from 0.")
    if family not in CURRICULA:
        raise DataError(f"{name}: {family} has no curriculum in reasoning-gym; leave @{text} out.")
    highest = max(len(attribute.levels) for attribute in CURRICULA[family]().attributes.values()) - 1
    if int(text) > highest:
        raise DataError(f"{name}: {family} has levels 0 to {highest}.")
    return family, int(text)


def _rows(
    name: str, family: str, level: int | None, count: int, seed: int, split: str, answer_format: str
) -> list[dict[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import CURRICULA

    from p2o.verifiers.answers import GoldError
    from p2o.verifiers.gym import check_gold, own_answer

    # Some families pass the seed to NumPy, which accepts 32 bits, and reasoning-gym adds the item's index.
    settings: dict[str, Any] = {"seed": seed % 2**31, "size": PATIENCE * 8 * count}
    try:
        if level is None:
            gym = reasoning_gym.create_dataset(family, **settings)
        else:
            curriculum = CURRICULA[family]()
            curriculum.set_global_level(level)
            gym = reasoning_gym.create_dataset(family, **vars(curriculum.generate_configuration(settings)))
    except (AssertionError, ValueError) as error:
        raise DataError(f"{name}: reasoning-gym cannot make {family} at level {level}: {error}") from error
    rows: dict[str, dict[str, Any]] = {}
    failure = ""
    for index in range(settings["size"]):
        if len(rows) == count:
            break
        try:
            entry = gym[index]
        except Exception as error:  # some families fail to generate some items; skip those
            failure = f" The last item that it failed to make: {type(error).__name__}: {error}."
            continue
        question = entry["question"].strip()
        if is_held_out(question) is not (split == "test") or question in rows:
            continue
        text, solution = json.dumps(entry, default=str), own_answer(entry)
        try:
            check_gold({"entry": text, "family": family})
        except GoldError as error:  # no answer to it could score
            failure = f" The last item that could not be used: {error}."
            continue
        rows[question] = {
            "prompt": [{"role": "user", "content": f"{question}\n\n{answer_format}" if answer_format else question}],
            "solution": ANY_ANSWER if solution is None else solution,
            "family": family,
            "level": level,
            "entry": text,
        }
    if len(rows) < count:
        raise DataError(
            f"{name}: {family}{'' if level is None else f'@{level}'} has only {len(rows)} different questions for "
            f"{split} in {settings['size']} draws; {count} were requested. "
            f"Request fewer, or another level.{failure}"
        )
    return list(rows.values())
