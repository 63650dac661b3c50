"""Which candidates come into use: the paper's greedy cover, and what else may be asked of a template. Pure.

One rollout of each dev question decides in the paper. Among many candidates that solve next to nothing the greedy cover
picks the luckiest, which then stands in front of every hard question for an epoch. Asked for, the few that would be
selected are tried again, beside the empty template, and have to be better by a margin.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from scipy.stats import binom

from p2o.templates import Template, select_templates

NOISE = 0.05

Solved = Mapping[int, float]
"""By dev question, the share of its rollouts that solved it, in [0, 1]."""


@dataclass(frozen=True)
class Trial:
    """Repeated rollouts of the dev questions under one candidate, afresh: selection has not seen them.

    Args:
        solved: see [`Solved`].
        reward: mean over questions and rollouts.
    """

    solved: dict[int, float]
    reward: float

    @property
    def rate(self) -> float:
        """Solve rate, in [0, 1]."""
        return fmean(self.solved.values())


def select(
    candidates: Sequence[Template], margin: float | None, try_again: Callable[[list[str]], dict[str, Trial] | None]
) -> tuple[list[Template], dict[str, Trial]]:
    """The greedy cover; with a margin, by those whose solve rate in a trial is above the empty template's by more.

    Those that would be selected are tried; where one fails, others take its place and are tried in turn.

    Args:
        candidates: of evolution.
        margin: in [0, 1); None for the paper's rule.
        try_again: a trial of each of these templates, "" for none; None where nothing may be spent on it any more.

    Returns:
        The selected set, whose scores are the mean rewards of its trials; and the trials by text. A template that could
        not be tried is not selected.
    """
    if margin is None:
        return select_templates(candidates), {}
    trials: dict[str, Trial] = {}
    left = [candidate for candidate in candidates if candidate.text.strip()]
    while selected := select_templates(left):
        untried = [text for text in ("", *(template.text for template in selected)) if text not in trials]
        found = try_again(untried) if untried else {}
        if found is None:
            left = [candidate for candidate in left if candidate.text in trials]
            continue
        trials |= found
        failed = {t.text for t in selected if not trials[t.text].rate > trials[""].rate + margin}
        if not failed:
            break
        left = [candidate for candidate in left if candidate.text not in failed]
    return [replace(template, score=trials[template.text].reward) for template in selected], trials


def within_noise(empty: Solved, selected: Sequence[Solved], compared: int) -> bool:
    """Whether no template of the selected set solves more than the empty one by more than chance would have it.

    A one-sided sign test on the questions on which the two differ, at 5 %, corrected for how many templates were
    `compared` (Bonferroni): the luckiest of a hundred is expected to look better.
    """
    return all(_chance(empty, solved) * max(compared, 1) >= NOISE for solved in selected)


def _chance(empty: Solved, solved: Solved) -> float:
    """Probability that as many questions or more are gained where a template changes nothing."""
    gained = sum(solved[question] > empty[question] for question in solved)
    lost = sum(solved[question] < empty[question] for question in solved)
    return float(binom.sf(gained - 1, gained + lost, 0.5))


def drawn_rate(templates: Sequence[Template], solved: Sequence[Solved]) -> float:
    """Expected solve rate, in [0, 1], of a dev question whose template is drawn from the set by score; NaN for none."""
    weights = [template.score for template in templates]
    if not weights:
        return math.nan
    if min(weights) <= 0:
        weights = [1.0] * len(weights)
    rates = [fmean(one.values()) for one in solved]
    return sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / sum(weights)
