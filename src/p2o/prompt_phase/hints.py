"""Hints in place of evolved templates: a hard question's template is the beginning of its worked solution. Pure.

As in Scaf-GRPO (arXiv 2510.19807), the first hint is a small part, and a group that fails under it gets more. What
becomes of it is P²O's: rollouts are sampled under the hint, and the loss is on the bare question.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2o.prompt_phase.guard import leaks_answer
from p2o.prompt_phase.hard_samples import Outcome
from p2o.templates import Template
from p2o.verifiers.answers import gold_answer

WORDING = "The solution begins like this:\n"

# In the order in which they are tried: a solution of one line has sentences, one of a sentence has words.
_ENDS_OF_STEPS = (r"(?<=\n)(?=[ \t]*\S)", r"(?<=[.!?。])(?=\s)", r"(?<=\S)(?=\s)")


def steps(solution: str) -> list[str]:
    """A worked solution as its lines, as sentences where there is one line, as words of a single sentence.

    Joined they are the solution, without the space around it.
    """
    solution = solution.strip()
    splits = (re.split(pattern, solution) for pattern in _ENDS_OF_STEPS)
    return next((found for found in splits if len(found) > 1), [solution] if solution else [])


def hint(solution: str, answer: str, part: float, *, shows_answer: bool = False) -> str:
    """The beginning of a worked solution; "" where nothing of it may be shown.

    Args:
        solution: worked.
        answer: the gold one, "" where it is not known.
        part: of the steps that may be shown, in (0, 1]; rounded up to whole steps.
        shows_answer: whether all may be shown. Otherwise the last step may not, nor any from the first one on after
            which the answer has been stated.
    """
    shown = steps(solution)
    if not shows_answer:
        shown = shown[:-1]
        while shown and leaks_answer("".join(shown), answer):
            shown.pop()
    return "".join(shown[: math.ceil(part * len(shown))]).strip()


def next_levels(
    hard: Sequence[int], levels: Mapping[int, int], hinted: Mapping[int, Outcome], parts: int
) -> dict[int, int]:
    """How many parts of its worked solution each question's hint shows, in 1 … `parts`.

    A question keeps its level while it is not hard, and gets one more only where no rollout under the hint succeeded.

    Args:
        hard: the hard set.
        levels: those so far.
        hinted: of the questions that had hints in the epoch just completed, what came of it.
    """
    failed = {question for question, outcome in hinted.items() if outcome.successes == 0}
    return {**levels, **{q: min(levels.get(q, 1) + (q in failed), parts) for q in hard}}


@dataclass(frozen=True)
class Hints:
    """Templates of an epoch, and which rollouts get them.

    Args:
        templates: one for each question that can have a hint.
        assignment: as [`p2o.templates.assign_templates`] returns it.
        without: hard questions that can have none.
    """

    templates: list[Template]
    assignment: dict[int, list[int | None]]
    without: list[int]


def assign_hints(
    levels: Mapping[int, int],
    hard: Sequence[int],
    rows: Mapping[int, Mapping[str, Any]],
    *,
    column: str,
    solution_column: str,
    parts: int,
    num_generations: int,
    bare_rollouts_per_group: int = 0,
    shows_answer: bool = False,
) -> Hints:
    """The hint of each hard question, for all rollouts of its group but the first, bare ones.

    Args:
        levels: parts that the hint of each shows.
        hard: the hard set.
        rows: the question's row of the training set, for each of them.
        column: with worked solutions.
        solution_column: with gold answers.
        parts: of a worked solution.
        num_generations: K, rollouts of a group.
    """
    templates: list[Template] = []
    assignment: dict[int, list[int | None]] = {}
    for question in hard:
        row = rows[question]
        worked, gold = (str(row.get(name) or "") for name in (column, solution_column))
        answer = gold_answer(gold) or gold  # of one that is worked itself
        if shown := hint(worked, answer, levels[question] / parts, shows_answer=shows_answer):
            bare: list[int | None] = [None] * bare_rollouts_per_group
            assignment[question] = [*bare, *[len(templates)] * (num_generations - bare_rollouts_per_group)]
            templates.append(Template(WORDING + shown, 1.0, frozenset({question})))
    return Hints(templates, assignment, [question for question in hard if question not in assignment])


def without_hints(rows: list[dict[str, Any]], column: str | None, solution_column: str) -> list[dict[str, Any]]:
    """Rows as reward functions and environments are given them: without hints, unless these are the gold answers."""
    if column in (None, solution_column):
        return rows
    return [{name: value for name, value in row.items() if name != column} for row in rows]
