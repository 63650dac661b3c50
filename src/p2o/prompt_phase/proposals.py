"""From reflections to candidates: all reflections of an iteration in one batch, and the guard behind them."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal
from gepa.strategies.instruction_proposal import InstructionProposalSignature

from p2o.images import without_marks
from p2o.prompt_phase.extraction import extract_instruction, read_reflection
from p2o.prompt_phase.gepa_adapter import GepaAdapter
from p2o.prompt_phase.guard import Rejection, check_template, stock_runs
from p2o.prompt_phase.shown_images import ImagesOf, RolloutRecord, ShownImages, no_images, told_in_words
from p2o.prompt_phase.traces import PromptLimit, fit
from p2o.prompt_phase.types import COMPONENT, EvolutionConfig, Reflection, ReflectionError, ReflectionFn

__all__ = ["ProposalStrategy", "extract_instruction", "reflection_prompt"]

logger = logging.getLogger(__name__)


def reflection_prompt(instruction: str, records: Sequence[Mapping[str, str]], wording: str | None) -> str:
    """The request for a better instruction, as GEPA renders it.

    Args:
        records: what the instruction was tried on, see `GepaAdapter.make_reflective_dataset`.
        wording: with the placeholders `<curr_param>` and `<side_info>`; GEPA's own when None.
    """
    held = instruction.replace("<side_info>", "<side\0info>")  # GEPA would put the records into the instruction, too
    prompt = InstructionProposalSignature.prompt_renderer(
        {"current_instruction_doc": held, "dataset_with_feedback": records, "prompt_template": wording}
    )
    return str(prompt).replace("<side\0info>", "<side_info>")


def asks_for_a_fence(wording: str | None) -> bool:
    """Whether the request wants the instruction in a fenced block, as GEPA's own does. Small models cannot make one."""
    return wording is None or "```" in wording or "~~~" in wording


@dataclass
class ProposalStrategy:
    """GEPA's reflection strategy.

    Args:
        adapter: whose journal and ledger reflections go through.
        special_tokens: the tokenizer's, which no template may contain.
        prompt_limit: how long a reflection prompt may be; None where it is not known.
        images: those of a question, by its id.
    """

    adapter: GepaAdapter
    reflection_fn: ReflectionFn
    config: EvolutionConfig
    special_tokens: Collection[str]
    prompt_limit: PromptLimit | None = None
    images: ImagesOf = no_images
    proposed: set[str] = field(default_factory=lambda: {""})
    rejections: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    error: Exception | None = None
    ended_early: str | None = None

    def __post_init__(self) -> None:
        self.fenced = asks_for_a_fence(self.config.reflection_prompt_template)
        self.stock = stock_runs([(q.text, q.solution) for q in self.adapter.questions.values()])
        for record in self.adapter.journal.lost:
            self._count([Reflection(**reflection) for reflection in record["result"]])

    def stopped(self, state: Any = None) -> bool:
        """Whether evolution ends. GEPA swallows exceptions of a reflection, so they are kept and raised behind it."""
        return self.error is not None or self.ended_early is not None

    def reflect(self, *job: Any) -> tuple[ReflectionProposal, "ProposalStrategy"]:
        return self.reflect_many([job])[0]

    def reflect_many(self, jobs: list[Any]) -> list[tuple[ReflectionProposal, "ProposalStrategy"]]:
        """A proposal for each (candidate, reflective dataset, components); an empty one where there is none."""
        proposals = [ReflectionProposal(new_texts={}) for _ in jobs]
        asked = {index: self._prompt(job) for index, job in enumerate(jobs) if job[1].get(COMPONENT)}
        wanted = {index: prompt for index, prompt in asked.items() if prompt is not None}
        if wanted and not self.stopped():
            try:
                for index, answer in zip(wanted, self._answers(list(wanted.values())), strict=True):
                    text = None if answer.error else self._checked(answer, jobs[index][1][COMPONENT])
                    if text is not None:
                        proposals[index].new_texts[COMPONENT] = text
            except ReflectionError as error:
                # A batch with some answers is in the journal with its failures. Of a batch without any, only the cost
                # is: nothing but the end of the phase follows from it, and a resumed run may find the cause mended, so
                # it sends the batch again.
                self.ended_early = str(error)
                self.adapter.journal.lose([asdict(reflection) for reflection in error.reflections])
                self._count(error.reflections)
            except Exception as error:
                self.error = error
        return [(proposal, self) for proposal in proposals]

    @property
    def _sees(self) -> bool:
        return bool(getattr(self.reflection_fn, "sees_images", False))

    def _prompt(self, job: Any) -> "tuple[str, list[Any]] | None":
        """The reflection prompt of a job within the model's limit, and the images that its marks stand for.

        None where it cannot be made to fit.
        """
        candidate, records, _ = job
        wording = self.config.reflection_prompt_template
        shown = ShownImages.of(records[COMPONENT], self.images if self._sees else no_images)

        def render(some: Sequence[Mapping[str, str]]) -> str:
            text = reflection_prompt(without_marks(candidate[COMPONENT]), some, wording)
            return text if self._sees else told_in_words(text)

        prompt = fit(render, records[COMPONENT], shown.within(self.prompt_limit))
        for event, count in (
            ("reflection_answers_cut", prompt.shortened),
            ("reflection_examples_dropped", prompt.dropped),
            ("reflection_prompt_too_long", int(prompt.text is None)),
        ):
            if count:
                self.events[event] += count
        if prompt.text is None:
            return None
        return prompt.text, shown.of_first(len(records[COMPONENT]) - prompt.dropped)

    def _answers(self, asked: "list[tuple[str, list[Any]]]") -> list[Reflection]:
        """Reflections in the order of the prompts, from the journal where they are in it."""
        prompts, images = [text for text, _ in asked], [shown for _, shown in asked]
        more: dict[str, Any] = {"images": images} if any(images) else {}

        def reflect(position: int) -> list[Any]:
            seed = self.adapter.batch_seed(position)
            return [asdict(reflection) for reflection in self.reflection_fn(prompts, seed=seed, **more)]

        recorded = self.adapter.journal.call("reflection", prompts, reflect)
        answers = [Reflection(**record) for record in recorded]
        self._count(answers)
        return answers

    def _count(self, reflections: Sequence[Reflection]) -> None:
        spent = self.adapter.spent
        failed = sum(bool(r.error) for r in reflections)
        tokens = (sum(r.prompt_tokens or 0 for r in reflections), sum(r.completion_tokens or 0 for r in reflections))
        spent.add("reflection", len(reflections) - failed, *tokens)
        spent.reflection_cost += sum(r.cost for r in reflections)
        if failed:
            self.rejections["failed"] += failed
            self.events["reflection_failed"] += failed
        truncated = sum(r.truncated for r in reflections)
        if truncated:
            self.events["reflection_truncated"] += truncated
        unknown = sum(r.prompt_tokens is None for r in reflections)
        if unknown:
            self.events["reflection_usage_unknown"] += unknown

    def _checked(self, answer: Reflection, records: Sequence[RolloutRecord]) -> str | None:
        """The proposed template, or None where it may not become a candidate, which is counted."""
        found = read_reflection(answer.text, answer.truncated, fenced=self.fenced)
        text, reason = found.instruction, found.rejection
        if text is not None:
            reason = "duplicate" if text in self.proposed else self._guard(text, records)
        if reason is not None:
            self.rejections[reason] += 1
            logger.info("Reflection rejected (%s): %.200s", reason, answer.text)
            return None
        self.proposed.add(str(text))
        return text

    def _guard(self, text: str, records: Sequence[RolloutRecord]) -> Rejection | None:
        return check_template(
            text,
            questions=[(r.question.text, r.question.solution) for r in records],
            max_length=self.config.max_template_length,
            special_tokens=self.special_tokens,
            stock=self.stock,
        )
