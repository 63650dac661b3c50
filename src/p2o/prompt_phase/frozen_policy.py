"""A prompt phase on a model that is not trained: its hard questions, rollouts, and what templates change."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from p2o.completions import Decoded, Sampling, decoded
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.evaluate import evaluate
from p2o.evaluation.results import success
from p2o.evaluation.statistics import paired_bootstrap
from p2o.evaluation.types import RIGHT, Judgement, QuestionSet, Sample
from p2o.images import images_in, marked_text, question_prompt
from p2o.policy_phase.rollouts import contexts_within
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.hard_samples import HardSamples
from p2o.prompt_phase.types import Question, Rollout
from p2o.templates import Prompt, Template, apply_template, question_text

FeedbackFn = Callable[[str, dict[str, Any]], str]
Groups = Sequence[Sequence[Sample]]
"""Samples of several questions, by question."""


class FrozenPolicy:
    """The questions of all tasks, numbered from 0 over all of them, and a model's rollouts on them.

    Args:
        feedback: on one rollout, `f(completion, row)` with the row's `reward`; by default right or wrong, and the gold
            answer.
    """

    def __init__(
        self,
        tasks: Sequence[QuestionSet],
        model: FrozenModel,
        sampling: Sampling,
        feedback: FeedbackFn | None = None,
    ) -> None:
        self.tasks = tasks
        self.rows = [row for task in tasks for row in task.rows]
        self._task_of = [task for task in tasks for _ in task.rows]
        self.model, self.sampling, self.feedback = model, sampling, feedback

    def question(self, index: int) -> Question:
        row = self.rows[index]
        marked = marked_text(question_prompt(row))
        return Question(index, question_text(row["prompt"]), str(row.get("solution") or ""), marked)

    def images(self, index: int) -> list[Any]:
        """Those of a question, for a reflection model that sees them."""
        return images_in(question_prompt(self.rows[index]))

    def prompts(self, requests: Sequence[tuple[int, str]]) -> tuple[list[Prompt], list[str]]:
        """T(x, z) of each (question, template), and the template used: "" where z leaves no room for a completion."""
        prompts = [question_prompt(self.rows[index]) for index, _ in requests]
        used = [template for _, template in requests]
        length = self.model.context_length
        if self.model.tokenizer is not None and length is not None:
            room = length - self.sampling.max_completion_length
            _, used = contexts_within(prompts, used, self.model.encoded, room)
        return [apply_template(prompt, template) for prompt, template in zip(prompts, used, strict=True)], used

    def score(self, completions: Sequence[Decoded], questions: Sequence[int]) -> list[Judgement]:
        """A judgement of each completion of the question beside it, by its own task's scorer, a call a task."""
        verdicts: dict[int, Judgement] = {}
        by_task: dict[str, list[int]] = {}
        for place, index in enumerate(questions):
            by_task.setdefault(self._task_of[index].name, []).append(place)
        for places in by_task.values():
            score = self._task_of[questions[places[0]]].score
            found = score([completions[p] for p in places], [self.rows[questions[p]] for p in places])
            verdicts.update(zip(places, found, strict=True))
        return [verdicts[place] for place in range(len(questions))]

    def rollout(self, requests: list[tuple[Question, str]], *, seed: int) -> list[Rollout]:
        """A [`p2o.prompt_phase.types.RolloutFn`]."""
        prompts, used = self.prompts([(question.id, template) for question, template in requests])
        completions = self.model.complete(prompts, sampling=self.sampling, seed=seed)
        said = [decoded(completion, prompt) for completion, prompt in zip(completions, prompts, strict=True)]
        verdicts = self.score(said, [question.id for question, _ in requests])
        return [
            Rollout(
                completion=completion.text,
                reward=verdict.reward,
                solved=verdict.reason == RIGHT,
                feedback=partial(self._feedback, question, read, verdict),
                prompt_tokens=completion.prompt_tokens or 0,
                completion_tokens=completion.completion_tokens or 0,
                template=template,
            )
            for (question, _), completion, read, verdict, template in zip(
                requests, completions, said, verdicts, used, strict=True
            )
        ]

    def _feedback(self, question: Question, said: Decoded, verdict: Judgement) -> str:
        if verdict.reward is None:
            return ""  # nobody reflects on a rollout without a score
        if self.feedback is not None:
            note = {"thought_taken_out": said.thought_taken_out, "reward": verdict.reward}
            return self.feedback(said.answer, {**self.rows[question.id], **note})
        # A reward function extracts nothing: a completion that it does not reward is wrong, not without an answer.
        extracted = verdict.extracted or (said.answer if verdict.reason == "wrong" else None)
        return rollout_feedback(
            reward=verdict.reward,
            extracted=extracted,
            solution=question.solution,
            answer_format=self._task_of[question.id].answer_format,
        )

    def measure(
        self,
        questions: Sequence[int],
        templates: Sequence[Template],
        *,
        n: int,
        seed: int,
        transcripts: Path,
        on_progress: Callable[[int, int], None],
    ) -> list[Groups]:
        """Fresh samples of the questions, bare and then under each template: those of evolution chose the templates."""
        conditions = []
        for name, text in [("bare", ""), *((f"template {i}", t.text) for i, t in enumerate(templates, 1))]:
            prompts, _ = self.prompts([(index, text) for index in questions])
            rows = [{"prompt": prompt, "index": index} for prompt, index in zip(prompts, questions, strict=True)]
            conditions.append(QuestionSet(name, rows, self._score_rows))
        samples = evaluate(
            conditions, self.model, self.sampling, n=n, seed=seed, transcripts=transcripts, on_progress=on_progress
        )
        return [samples[condition.name] for condition in conditions]

    def _score_rows(self, completions: Sequence[Decoded], rows: list[dict[str, Any]]) -> list[Judgement]:
        return self.score(completions, [row["index"] for row in rows])


def hard_questions(groups: Groups, near_hard: bool) -> list[int]:
    """Questions, by their place among the groups, that are hard by mining's rule; ascending."""
    mined = HardSamples(near_hard)
    for index, group in enumerate(groups):
        mined.record(index, [math.nan if s.reward is None else float(s.reason == RIGHT) for s in group])
    return mined.hard_set()


def gains(measured: Sequence[Groups], seed: int) -> dict[str, Any]:
    """What templates change, from fresh samples of [`FrozenPolicy.measure`]; success is the share of right answers.

    Args:
        seed: of the bootstrap.

    Returns:
        `bare` with `success` and its `standard_error`; `templates`, of each the same as `measured` and its `difference`
        to bare; `solved_bare` and `solved_under_some_template`, questions with a right answer; `unscored`
        where there are any, questions left out for want of a scored answer under one of the conditions.
    """
    rates = [[[float(s.reason == RIGHT) for s in group if s.reward is not None] for group in g] for g in measured]
    scored = [i for i in range(len(rates[0])) if all(groups[i] for groups in rates)]
    if not scored:
        return {"unscored": len(rates[0]), "templates": [{} for _ in rates[1:]]}
    unscored = len(rates[0]) - len(scored)
    rates = [[groups[i] for i in scored] for groups in rates]
    means = [[sum(group) / len(group) for group in groups] for groups in rates]
    templates = []
    for groups, mean in zip(rates[1:], means[1:], strict=True):
        changes = [b - a for a, b in zip(means[0], mean, strict=True)]
        difference = asdict(paired_bootstrap(changes, seed=seed))
        templates.append({"measured": success(groups), "difference": difference})
    solved = [{i for groups in part for i, group in enumerate(groups) if any(group)} for part in (rates[:1], rates[1:])]
    return {
        "bare": success(rates[0]),
        "solved_bare": len(solved[0]),
        "solved_under_some_template": len(solved[1]),
        **({"unscored": unscored} if unscored else {}),
        "templates": templates,
    }
