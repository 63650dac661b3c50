"""Reward functions by TRL's convention over the verifiers, and what to tell a reflection model about a rollout.

Each logs the share of a batch's completions, in [0, 1], that had no answer or exhausted a limit or killed a worker:
`verifier/no answer`, `verifier/time-out`, `verifier/memory`, `verifier/crash`. Where that is not the completion's fault
([`p2o.verifiers.blame`]) its reward is None rather than 0, and `verifier/unscored` says how often. A gold answer that
cannot be read, which the data check finds before training, gives None as well, and `verifier/unreadable solution` says
so.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from p2o.completions import final_text
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.thoughts import MARKED, ThoughtReading
from p2o.verifiers import COLUMNS, REASONS, Verdict, count_reasons, verify_stream
from p2o.verifiers.answers import answer_part, find_answer, shortened

logger = logging.getLogger(__name__)

LogMetric = Callable[[str, float], None] | None

BOXED = "Put the final answer in \\boxed{}."
ANSWER_FORMATS = {
    "math": BOXED,
    "accuracy": BOXED,
    "exact": "Put the final answer in \\boxed{}, or on a line `Answer: ...`.",
    "gym": "Put the final answer in <answer></answer>, in \\boxed{}, or on a line `Answer: ...`.",
}


def math(
    completions: list[Any], log_metric: LogMetric = None, thought_reading: ThoughtReading = MARKED, **columns: Any
) -> list[float | None]:
    """1 where the answer is the column `solution`, as math-verify and our rules judge, else 0; None without a readable
    one."""
    return _rewards("math", completions, columns, log_metric, thought_reading)


def accuracy(
    completions: list[Any], log_metric: LogMetric = None, thought_reading: ThoughtReading = MARKED, **columns: Any
) -> list[float | None]:
    """What `trl.rewards.accuracy_reward` says, asked in the workers: to compare with others' numbers."""
    return _rewards("accuracy", completions, columns, log_metric, thought_reading)


def exact(
    completions: list[Any], log_metric: LogMetric = None, thought_reading: ThoughtReading = MARKED, **columns: Any
) -> list[float | None]:
    """1 where the answer is the column `solution`, white space aside, else 0; None without a readable one."""
    return _rewards("exact", completions, columns, log_metric, thought_reading)


def gym(
    completions: list[Any], log_metric: LogMetric = None, thought_reading: ThoughtReading = MARKED, **columns: Any
) -> list[float | None]:
    """1 where reasoning-gym's scorer gives full marks for the column `entry`, else 0; None without a readable one."""
    return _rewards("gym", completions, columns, log_metric, thought_reading)


def feedback_of(reward: str) -> Callable[[str, dict[str, Any]], str] | None:
    """`feedback_func(completion, row)` that belongs to one of the rewards above; None for any other.

    A format failure is told what was expected, and a wrong answer the right one.
    """
    if reward not in ANSWER_FORMATS:
        return None

    def feedback(completion: str, row: dict[str, Any], thought_reading: ThoughtReading = MARKED) -> str:
        # Of a message whose thought TRL's parser has taken out, all is the answer.
        reading = replace(thought_reading, opened="") if row.get("thought_taken_out") else thought_reading
        return rollout_feedback(
            reward=row["reward"],
            extracted=find_answer(shortened(answer_part(completion, reading, row.get("prompt")))),
            solution=str(row.get("solution") or ""),
            answer_format=ANSWER_FORMATS[reward],
        )

    return feedback


def texts_to_verify(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None, reading: ThoughtReading
) -> list[str]:
    """The texts that a verifier reads of completions as TRL hands them over: texts, or lists of messages.

    Args:
        completion_ids: their tokens; None where they are not known.
    """
    texts = [final_text(completion) for completion in completions]
    if reading.decode is None or completion_ids is None:
        return texts
    # Of a message TRL may have taken the thought out, or its marks. Among the tokens of several are results of tools.
    one = [isinstance(completion, str) or len(completion) == 1 for completion in completions]
    return [reading.decode(ids) if o else t for ids, t, o in zip(completion_ids, texts, one, strict=True)]


def _rewards(
    verifier: str, completions: list[Any], columns: dict[str, Any], log_metric: LogMetric, reading: ThoughtReading
) -> list[float | None]:
    missing = [name for name in COLUMNS[verifier] if name not in columns]
    if missing:
        raise ValueError(f"The reward {verifier!r} needs the dataset column {missing[0]!r}.")
    texts = texts_to_verify(completions, columns.get("completion_ids"), reading)
    needed: dict[str, Any] = {name: columns[name] for name in ("solution", "entry", "family") if name in columns}
    needed |= {"prompt": columns["prompts"]} if "prompts" in columns else {}
    rows = [dict(zip(needed, values, strict=True)) for values in zip(*needed.values(), strict=True)]
    applies = [i for i, row in enumerate(rows) if all(row[name] is not None for name in COLUMNS[verifier])]
    rewards: list[float | None] = [None] * len(rows)
    verdicts: list[Verdict] = []
    unreadable: set[str] = set()
    for index, verdict in verify_stream(((texts[i], rows[i]) for i in applies), verifier, reading=reading):
        if isinstance(verdict, Verdict):
            verdicts.append(verdict)
            rewards[applies[index]] = verdict.reward
        else:
            unreadable.add(verdict)
    unscored = Counter(verdict.reason for verdict in verdicts if verdict.reward is None)
    if unscored:
        named = ", ".join(f"{count} ({reason})" for reason, count in unscored.items())
        logger.warning("No reward for completions that were not judged and are not to blame: %s.", named)
    for problem in sorted(unreadable):
        logger.warning("No reward for a question's completions: %s.", problem)
    if log_metric is not None and applies:
        counts = count_reasons(verdicts)
        for reason in REASONS[2:]:
            log_metric(f"verifier/{reason}", counts[reason] / len(applies))
        log_metric("verifier/unscored", sum(v.reward is None for v in verdicts) / len(applies))
        log_metric("verifier/unreadable solution", 1 - len(verdicts) / len(applies))
    return rewards
