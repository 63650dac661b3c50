"""Spans of the embedded world's answers: by their form, and in documents of the corpus by how they were written."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from p2o.features.spans import COMPUTATION, CONCLUSION, DELIBERATION, DIRECT, Span
from p2o.pico import world
from p2o.pico.corpus import WORK
from p2o.pico.instructions import Instruction
from p2o.pico.methods import RIGHT_METHODS, work
from p2o.pico.world import ANSWER, TRAINED_FAMILIES
from p2o.seeding import derive_seed


def pico_spans(text: str) -> list[Span]:
    """Spans of an answer: the line that chooses a method is deliberation, equations are computation."""
    found: list[Span] = []
    position, worked = 0, text.startswith(WORK)
    for line in text.splitlines(keepends=True):
        kind = DIRECT if not worked else COMPUTATION if "=" in line else CONCLUSION
        kind = DELIBERATION if line.startswith(WORK) else kind
        found.append(Span(kind, position, position + len(line)))
        position += len(line)
    return found


def right_instruction(row: dict[str, Any], rng: random.Random) -> str:
    """An instruction with the right method for the question of a row, and care; in random words."""
    return Instruction(unqualified=RIGHT_METHODS[row["family"]][0], care=True).text(rng)


class TrueDocument(NamedTuple):
    """A document of the corpus with its spans as they were written.

    Args:
        question: the prompt.
        text: the completion.
        spans: of the completion.
    """

    question: str
    text: str
    spans: list[Span]


def true_documents(count: int, seed: int = 0) -> Iterator[TrueDocument]:
    """Documents of the kind that the base model was trained on, alternately worked through, half of them as instructed,
    and answered at once.

    They are put together from the parts, not read off the text: what [`pico_spans`] finds can be compared with them.
    """
    rng = random.Random(derive_seed(seed, "true documents"))
    start = world.CORPUS_SEED + derive_seed(seed, "true documents") % 10**15
    streams = {
        family: world.questions(family, "hard", start + number * world.SEED_SPACING)
        for number, family in enumerate(TRAINED_FAMILIES)
    }
    for number in range(count):
        family = rng.choice(TRAINED_FAMILIES)
        entry = next(streams[family])
        method = RIGHT_METHODS[family][0]
        worked = work(family, entry, method)
        answer = f"{ANSWER}{worked.answer}"
        parts = [(DIRECT, answer)]
        if number % 2 == 0:
            lines = [(COMPUTATION, f"{line}\n") for line in worked.lines]
            parts = [(DELIBERATION, f"{WORK}{method}\n"), *lines, (CONCLUSION, answer)]
        spans, position = [], 0
        for kind, part in parts:
            spans.append(Span(kind, position, position + len(part)))
            position += len(part)
        question = entry["question"].strip()
        if number % 4 == 0:
            question = f"{Instruction(unqualified=method, care=True).text(rng)}\n\n{question}"
        yield TrueDocument(question, "".join(part for _, part in parts), spans)
