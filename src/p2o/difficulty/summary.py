"""The numbers of a profile as a whole. Pure."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from p2o.difficulty.buckets import BUCKETS, UNSCORED
from p2o.difficulty.charge import epoch_charge
from p2o.difficulty.groups import SIZES, WORTH, forecast, recommended_size
from p2o.difficulty.profile import Profile, Question
from p2o.prompt_phase.options import BudgetOptions

RULE = (
    f"the smallest of {', '.join(map(str, SIZES))} whose doubling would save less than {WORTH:.0%} of the groups from "
    f"collapse, or else {SIZES[-1]}"
)


def summarise(profile: Profile, options: BudgetOptions) -> dict[str, Any]:
    """Buckets, groups to expect, a recommended `num_generations`, and what P²O would be charged.

    Returns:
        `pass_rate`, the mean over scored questions, in [0, 1]. `buckets`: of each, with `unscored`, how many
        `questions`, their `share` of all, mean `pass_rate`, `mean_length` in tokens and the share `cut_off` of their
        rollouts; None where there is nothing to take a mean of. `groups`: by `num_generations`, the shares of
        [`p2o.difficulty.groups.GroupForecast`] and the rollouts of [`p2o.difficulty.charge.EpochCharge`]; empty where
        no question is scored. `recommended_num_generations` by the `rule`, then None.
    """
    questions, outcomes = profile.questions, profile.outcomes
    scored = sum(outcome.rollouts > 0 for outcome in outcomes)
    recommended = recommended_size(outcomes)
    sizes = sorted({*SIZES, profile.k})
    groups = {}
    for size, expected in forecast(outcomes, sizes).items():
        charge = epoch_charge(len(questions), scored, expected, options)
        groups[str(size)] = {**asdict(expected), "charge": {**asdict(charge), "total": charge.total}}
    return {
        "model": profile.model,
        "k": profile.k,
        "questions": len(questions),
        "unscored_rollouts": sum(question.rollouts - question.scored for question in questions),
        "pass_rate": _mean([question.pass_rate for question in questions]),
        "cutoffs": asdict(profile.cutoffs),
        "buckets": {
            bucket: _of_bucket(
                [q for q, own in zip(questions, profile.buckets, strict=True) if own == bucket], len(questions)
            )
            for bucket in (*BUCKETS, UNSCORED)
        },
        "groups": groups,
        "recommended_num_generations": recommended,
        "rule": RULE,
    }


def _of_bucket(questions: Sequence[Question], of: int) -> dict[str, Any]:
    rollouts = sum(question.rollouts for question in questions)
    return {
        "questions": len(questions),
        "share": len(questions) / of if of else None,
        "pass_rate": _mean([question.pass_rate for question in questions]),
        "mean_length": _mean([question.mean_length for question in questions]),
        "cut_off": sum(question.cut_off for question in questions) / rollouts if rollouts else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
