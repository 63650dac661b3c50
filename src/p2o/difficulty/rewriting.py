"""Questions of a data set and their backward rewrites as rows of the same columns, for the same verifier. Pure."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from p2o.difficulty.rewrites import Rewrite, rewrites
from p2o.difficulty.solvers import other_value, solver_of
from p2o.evaluation.results import question_key
from p2o.evaluation.types import Sample
from p2o.templates import Prompt, last_user_message, question_text
from p2o.verifiers.answers import GoldError, gold_answer
from p2o.verifiers.gym import read_entry

NUMBER_FAMILY = "chain_sum"
"""Whose scorer of reasoning-gym pays for a number, whole or decimal, as it pays for that family's own answers."""
SOLVER, MODEL = "solver", "model"


@dataclass(frozen=True)
class Rewritten:
    """A rewrite as a training row.

    Args:
        row: with the columns of the question that it was made of; `solution`, and `entry` and `family` where there are
            any, are those of the number.
        of_row, of_key: the question that it was made of: its place in the data, and its digest.
        asked_for: the number as it stood there.
        verified_by: what showed that the number is determined: `SOLVER` or `MODEL`; None where nothing did.
        agreement: of the model's scored answers, the share that is the number; None where none was asked for.
    """

    row: dict[str, Any]
    of_row: int
    of_key: str
    asked_for: str
    verified_by: str | None = None
    agreement: float | None = None

    @property
    def text(self) -> str:
        return question_text(self.row["prompt"])

    def to_row(self) -> dict[str, Any]:
        """The row with where it comes from; reward functions may ignore it."""
        facts = {name: value for name, value in asdict(self).items() if name != "row"}
        return {**self.row, **{f"rewrite_{name}": value for name, value in facts.items()}}


@dataclass(frozen=True)
class Rejected:
    """What was not rewritten.

    Args:
        row: of the question.
        question: its text, or that of the rewrite.
        number: as it stands in the question; None where the reason concerns the whole question.
        reason: one of few, so that they can be counted.
        detail: what is particular in this case; "" for nothing.
    """

    row: int
    question: str
    number: str | None
    reason: str
    detail: str = ""


def rewritten(
    row: Mapping[str, Any], place: int, *, endings: Collection[str], wordings: int, repeated: bool
) -> tuple[list[Rewritten], list[Rejected]]:
    """The rewrites of a question, and what was rejected. Those that a solver verified say so; the others are open.

    Args:
        row: with `prompt` and `solution`, and with `entry` where reasoning-gym made the question.
        place: of the row in the data.
        endings: instructions about the form of the answer that may stand behind the question; they stay there.
        wordings, repeated: see [`p2o.difficulty.rewrites.rewrites`].
    """
    text = question_text(row["prompt"])
    entry, family = _entry(row)
    question, around = _question_in(text, entry, endings)
    answer = gold_answer(str(row.get("solution") or ""))
    if entry is not None and entry["answer"] is None:
        return [], [Rejected(place, text, None, "it has many right answers")]
    if answer is None:
        return [], [Rejected(place, text, None, "its gold answer stands among other text")]
    found = rewrites(question, answer, wordings=wordings, repeated=repeated)
    rejected = [Rejected(place, text, r.number.text if r.number else None, r.reason) for r in found.rejected]
    solve = None if entry is None else solver_of(question, family, entry)
    made: list[Rewritten] = []
    for number in dict.fromkeys(one.number for one in found.made):
        if entry is not None and "/" in number.value:
            rejected.append(Rejected(place, text, number.text, "a fraction, for which this verifier does not pay"))
            continue
        if solve is not None and (other := other_value(question, number, solve)) is not None:
            reason = "it is not determined: another value has the same answer"
            rejected.append(Rejected(place, text, number.text, reason, f"so has {other}"))
            continue
        made += [
            Rewritten(
                _row_of(row, one, around, is_entry=entry is not None),
                place,
                question_key(row),
                number.text,
                None if solve is None else SOLVER,
            )
            for one in found.made
            if one.number == number
        ]
    return made, rejected


def _entry(row: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """reasoning-gym's entry and its family; None and "" of a row that has none."""
    if not row.get("entry"):
        return None, ""
    try:
        return read_entry({"entry": row["entry"], "family": row.get("family")})
    except GoldError:
        return None, ""


def _question_in(text: str, entry: Mapping[str, Any] | None, endings: Collection[str]) -> tuple[str, tuple[str, str]]:
    """The question without instructions around it, and what stands before and behind it."""
    if entry is not None and (question := str(entry.get("question", "")).strip()) and question in text:
        before, _, after = text.partition(question)
        return question, (before, after)
    for ending in endings:
        if ending and text.rstrip().endswith(ending):
            question = text.rstrip().removesuffix(ending).rstrip()
            return question, ("", text[len(question) :])
    return text, ("", "")


def _row_of(row: Mapping[str, Any], one: Rewrite, around: tuple[str, str], *, is_entry: bool) -> dict[str, Any]:
    made = {
        **row,
        "prompt": with_question(row["prompt"], f"{around[0]}{one.question}{around[1]}"),
        "solution": one.solution,
    }
    if is_entry:
        metadata = {"source_dataset": NUMBER_FAMILY}
        made["family"] = NUMBER_FAMILY
        made["entry"] = json.dumps({"question": one.question, "answer": one.solution, "metadata": metadata})
    return made


def with_question(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text in its last user message. The given one is not modified."""
    index = last_user_message(prompt)
    if index is None:
        return text
    messages = [dict(message) for message in prompt]  # type: ignore[arg-type]
    parts = messages[index]["content"]
    messages[index]["content"] = text if isinstance(parts, str) else [{"type": "text", "text": text}]
    return messages


def without_repetitions(found: Sequence[Rewritten]) -> tuple[list[Rewritten], list[Rejected]]:
    """The first of those that ask the same, and the others, rejected."""
    kept: dict[str, Rewritten] = {}
    rejected = []
    for one in found:
        if one.text in kept:
            rejected.append(Rejected(one.of_row, one.text, one.asked_for, "another question has the same rewrite"))
        else:
            kept[one.text] = one
    return list(kept.values()), rejected


def judged_by_model(
    found: Sequence[Rewritten], samples: Sequence[Sequence[Sample]], least: float
) -> tuple[list[Rewritten], list[Rejected]]:
    """Those on which a model agrees: most of its answers, and at least this share of them, are the number.

    Args:
        samples: of each rewrite, the model's answers; one without a reward does not count.
        least: in (0, 1].
    """
    kept, rejected = [], []
    for one, group in zip(found, samples, strict=True):
        share, reason, detail = _agreement(group, least)
        if reason:
            rejected.append(Rejected(one.of_row, one.text, one.asked_for, reason, detail))
        else:
            kept.append(replace(one, verified_by=MODEL, agreement=share))
    return kept, rejected


def _agreement(group: Sequence[Sample], least: float) -> tuple[float, str, str]:
    """The share of scored answers that are the number, why that is not enough, and what is particular."""
    scored = [sample for sample in group if sample.reward is not None]
    if not scored:
        return 0.0, "no answer of the model could be scored", ""
    right = [sample for sample in scored if (sample.reward or 0) > 0]
    detail = f"{len(right)} of {len(scored)} answers are {right[0].extracted if right else 'it'}"
    share = len(right) / len(scored)
    if share < least:
        return share, "too few of the model's answers are the number", detail
    wrong = [sample.extracted for sample in scored if not (sample.reward or 0) > 0 and sample.extracted is not None]
    most = max((wrong.count(answer) for answer in set(wrong)), default=0)
    if most > len(right):
        return share, "another answer of the model is more frequent", f"{detail}, {most} are another one"
    return share, "", ""


def reasons(rejected: Sequence[Rejected]) -> Iterator[tuple[str, int]]:
    """Each reason with how often it was given, the most frequent first."""
    counts: dict[str, int] = {}
    for one in rejected:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    yield from sorted(counts.items(), key=lambda item: -item[1])
