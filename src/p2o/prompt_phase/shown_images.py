"""Images in reflection prompts: a mark in the text for each, and the images beside it.

A journal has the texts. Images are read from the training set when a prompt is made, by the question's row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2o.images import MARK, without_marks
from p2o.prompt_phase.traces import ANSWER, FEEDBACK, QUESTION, PromptLimit
from p2o.prompt_phase.types import Question

UNSEEN = "[an image, which you cannot see]"
"""What a reflection model that sees no images reads in the place of one."""

ImagesOf = Callable[[int], Sequence[Any]]
"""`images(question)`: those that a question shows, by its id, in the order of its marks."""


def no_images(question: int) -> Sequence[Any]:
    """Of questions without any."""
    return ()


class RolloutRecord(dict[str, str]):
    """One rollout as GEPA renders it for reflection.

    Args:
        question: that it answers. Several may have the same text, and differ by what they show.
    """

    def __init__(self, question: Question, answer: str, feedback: str) -> None:
        shown = without_marks(question.text) if question.marked is None else question.marked
        super().__init__({QUESTION: shown, ANSWER: without_marks(answer), FEEDBACK: without_marks(feedback)})
        self.question = question


@dataclass(frozen=True)
class ShownImages:
    """What the records of one reflection prompt show.

    Args:
        by_record: images of each record.
    """

    by_record: list[Sequence[Any]]

    @classmethod
    def of(cls, records: Sequence[RolloutRecord], images: ImagesOf) -> "ShownImages":
        """Those of the records' questions, read once each; of questions without a mark none."""
        read = {record.question.id: images(record.question.id) for record in records if record.question.marked}
        return cls([read.get(record.question.id, ()) for record in records])

    def of_first(self, records: int) -> list[Any]:
        """All images of the first records, in the order of their marks."""
        return [image for images in self.by_record[:records] for image in images]

    def within(self, limit: PromptLimit | None) -> PromptLimit | None:
        """The limit of prompts whose marks stand for these images: each counts as the tokens it becomes."""
        images = self.of_first(len(self.by_record))
        if limit is None or not images:
            return limit
        text, sums = limit.count, [0]
        for image in images:
            sums.append(sums[-1] + limit.count_image(image))
        return replace(limit, count=lambda prompt: text(prompt) + sums[min(prompt.count(MARK), len(images))])


def told_in_words(prompt: str) -> str:
    """The prompt for a model that sees no images: a line in the place of each."""
    return prompt.replace(MARK, UNSEEN)
