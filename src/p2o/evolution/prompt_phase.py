"""The prompt phase: GEPA evolves instructions under which the present policy solves its hard questions.

GEPA's own engine does the evolving. This module feeds it in batches (all parents of an iteration roll out together,
reflect together, and their accepted children are scored together), keeps out templates that cheat, and makes the phase
resumable: every batch of rollouts or reflections is written to a journal when it is done. Evolution is deterministic
given those, so an interrupted phase runs again from its journal and goes on where it stopped, to the same end.
"""

import hashlib
import json
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gepa
from gepa.core.adapter import EvaluationBatch
from gepa.gepa_utils import remove_dominated_programs
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal
from gepa.strategies.instruction_proposal import InstructionProposalSignature
from gepa.strategies.proposal_sampling import ProposalTask

from p2o.evolution.budget import metric_call_budget, split_hard_set
from p2o.evolution.guard import check_template, stock_runs
from p2o.ledger import Ledger
from p2o.seeding import derive_seed
from p2o.templates import Template

logger = logging.getLogger(__name__)

COMPONENT = "template"
LOST = "lost"

Stage = Literal["seed", "feedback", "minibatch", "dev", "done"]


@dataclass(frozen=True)
class Question:
    """A hard question.

    Args:
        id: row in the training set.
        text: the bare question, for reflection and the guard.
        solution: gold answer as text, "" when the data has none.
    """

    id: int
    text: str
    solution: str


@dataclass(frozen=True)
class Rollout:
    """One completion of one question under one template.

    Args:
        reward: None where nobody could score it. It then counts as the lowest that was seen, so that no template gains
            by it, and nobody reflects on it.
        solved: mining's criterion of success.
        template: the one really used, "" where the one asked for did not fit the question.
        completion_ids: its tokens, where they are wanted for reuse.
    """

    completion: str
    reward: float | None
    solved: bool
    feedback: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    template: str = ""
    completion_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Success:
    """A rollout of evolution that solved its question, kept for reuse."""

    question: int
    template: str
    completion_ids: list[int]


@dataclass(frozen=True)
class Reflection:
    """What the reflection model answered.

    Args:
        text: "" where it failed, which costs that one proposal.
        prompt_tokens: read; None where nobody told. A failed reflection may have cost tokens too.
        completion_tokens: generated.
        cost: US dollars.
        error: why it failed, in a form that may be shown to anybody; "" where it did not.
        truncated: whether a server says that the limit on its length ended it.
    """

    text: str
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost: float = 0.0
    error: str = ""
    truncated: bool = False


class ReflectionError(Exception):
    """Raised by a [`ReflectionFn`] that can answer nothing at present: it ends the prompt phase, not the run.

    Whatever else it raises is taken for a mistake in it, and does end the run.

    Args:
        reason: what is wrong and what to do, in a form that may be shown to anybody.
        reflections: those that failed, for what they cost.
    """

    def __init__(self, reason: str, reflections: Sequence[Reflection] = ()) -> None:
        super().__init__(reason)
        self.reflections = list(reflections)


class RolloutFn(Protocol):
    """Samples and scores one completion for each (question, template), from a stream seeded by `seed`."""

    def __call__(
        self, requests: list[tuple[Question, str]], *, seed: int, purpose: Literal["feedback", "dev"]
    ) -> list[Rollout]: ...


class ReflectionFn(Protocol):
    """Answers each reflection prompt, in their order.

    Raises:
        ReflectionError: none can be had at present; evolution ends with what it has.
    """

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]: ...


@dataclass(frozen=True)
class EvolutionConfig:
    """
    Args:
        budget: preset or number of rollouts, see [`metric_call_budget`]. It is a bound at the start of an iteration:
            the last one may exceed it by its own 2 · parents · minibatch + accepted · dev rollouts. A question asked
            again under a template counts, though it is not generated again.
        max_metric_calls: upper limit on top, what is left of a run's budget.
        parents_per_iteration: distinct parents of one iteration.
        fill_iterations: whether parents take further minibatches where the front has fewer than that.
        feedback_minibatch_size: questions each parent reflects on.
        max_dev_questions: see [`split_hard_set`].
        max_template_length: in characters.
        reflection_prompt_template: wording with `<curr_param>` and `<side_info>`; GEPA's own when None.
    """

    budget: str | int = "light"
    max_metric_calls: int | None = None
    parents_per_iteration: int = 16
    fill_iterations: bool = False
    feedback_minibatch_size: int = 3
    max_dev_questions: int = 300
    max_template_length: int = 2000
    reflection_prompt_template: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A template that GEPA kept; the first is the empty seed. Scores are by dev question."""

    index: int
    text: str
    parents: list[int]
    iteration: int
    dev_rewards: dict[int, float]
    dev_solved: dict[int, bool]

    def as_template(self) -> Template:
        """What selection looks at: its mean dev reward, and the dev questions that it solves."""
        return Template(
            text=self.text,
            score=sum(self.dev_rewards.values()) / max(len(self.dev_rewards), 1),
            solves=frozenset(question for question, solved in self.dev_solved.items() if solved),
            candidate=self.index,
        )


@dataclass(frozen=True)
class EvolutionResult:
    """What a prompt phase found and what it spent.

    Args:
        rejections: reflections that became no candidate, by reason.
        events: counted incidents that lost nothing else.
        ended_early: why reflection was given up before the budget was spent; None when it was not.
    """

    feedback_ids: list[int]
    dev_ids: list[int]
    candidates: list[Candidate]
    spent: Ledger
    iterations: int
    rejections: dict[str, int] = field(default_factory=dict)
    successes: list[Success] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    ended_early: str | None = None

    @property
    def metric_calls(self) -> int:
        return self.spent.metric_calls

    @property
    def reflections(self) -> int:
        return self.spent.rollouts["reflection"]

    def to_dict(self) -> dict[str, Any]:
        """For a reader: all but the successes' tokens."""
        return {name: value for name, value in asdict(self).items() if name != "successes"}


@dataclass(frozen=True)
class EvolutionProgress:
    """Where evolution stands, for whoever watches; `best_dev_score` is a mean reward over the dev questions."""

    stage: Stage
    iteration: int
    metric_calls: int
    max_metric_calls: int
    candidates: int
    best_dev_score: float
    best_template: str
    rejected: int


def evolve(
    questions: list[Question],
    rollout: RolloutFn,
    reflect: ReflectionFn,
    config: EvolutionConfig,
    *,
    seed: int,
    epoch: int,
    run_dir: Path,
    special_tokens: Collection[str] = (),
    spent: Ledger | None = None,
    on_progress: Callable[[EvolutionProgress], None] | None = None,
) -> EvolutionResult:
    """Evolves templates for the hard questions; `run_dir` holds the journal from which an interrupted call goes on.

    Args:
        spent: an empty ledger, in which spending is counted as it happens; the result's.

    Raises:
        ValueError: fewer than two questions.
        Exception: whatever `rollout` or `reflect` raise, but for [`ReflectionError`]; nothing done before is lost.
    """
    spent = Ledger() if spent is None else spent
    if len(questions) < 2:
        raise ValueError(f"Evolution needs two hard questions, one to learn from and one to judge by; got {questions}.")
    by_id = {question.id: question for question in questions}
    rng = random.Random(derive_seed(seed, "prompt phase", epoch, "split"))
    feedback_ids, dev_ids = split_hard_set(list(by_id), max_dev=config.max_dev_questions, rng=rng)
    limit = metric_call_budget(config.budget, len(dev_ids))
    if config.max_metric_calls is not None:
        limit = min(limit, config.max_metric_calls)
    if limit <= len(dev_ids):
        logger.warning("No prompt phase: %d rollouts do not even score the empty template.", limit)
        return EvolutionResult(feedback_ids, dev_ids, [], spent, 0)

    fingerprint = {"seed": seed, "epoch": epoch, "limit": limit, "config": asdict(config), "ids": sorted(by_id)}
    with Journal(run_dir / "journal.jsonl", fingerprint) as journal:
        world = _World(by_id, set(dev_ids), rollout, journal, seed, epoch, spent)
        reflector = _Reflector(
            world, reflect, config, special_tokens, stock_runs([(q.text, q.solution) for q in questions])
        )
        watcher = _Watcher(world, reflector, limit, on_progress)
        result = gepa.optimize(
            seed_candidate={COMPONENT: ""},
            trainset=[by_id[i] for i in feedback_ids],
            valset=[by_id[i] for i in dev_ids],
            adapter=world,
            sampling_strategy=DistinctParents(config, seed, epoch),
            reflection_strategy=reflector,
            skip_perfect_score=False,  # the adapter's reflective dataset is empty where there is nothing to learn
            max_metric_calls=limit,
            stop_callbacks=[reflector.stopped, world.all_solved],
            track_best_outputs=False,
            logger=_QuietLogger(),
            callbacks=[watcher],
            raise_on_exception=True,
            seed=0,
        )
    if reflector.error is not None:
        raise reflector.error
    if reflector.ended_early is not None:
        logger.warning(
            "The prompt phase before epoch %d ends early, after %d of %d rollouts and with the %d candidate(s) it has, "
            "the empty one included: %s",
            epoch,
            spent.metric_calls,
            limit,
            len(result.candidates),
            reflector.ended_early,
        )
    return EvolutionResult(
        feedback_ids=feedback_ids,
        dev_ids=dev_ids,
        candidates=[
            Candidate(
                index=index,
                text=candidate[COMPONENT],
                parents=[parent for parent in result.parents[index] if parent is not None],
                iteration=watcher.found_in[index],
                dev_rewards={q: world.score(r) for q, r in world.dev_results(candidate[COMPONENT]).items()},
                dev_solved={q: bool(r[1]) for q, r in world.dev_results(candidate[COMPONENT]).items()},
            )
            for index, candidate in enumerate(result.candidates)
        ],
        spent=world.spent,
        iterations=watcher.iteration,
        rejections=dict(sorted(reflector.rejections.items())),
        successes=world.successes,
        events=dict(sorted((reflector.events + world.events).items())),
        ended_early=reflector.ended_early,
    )


# -- the journal -----------------------------------------------------------------------------------------------------


class Journal:
    """Results of every batch in the order in which they were asked for; a second run is answered from it.

    A line is written whole and flushed to disk before evolution goes on, so a kill loses at most the batch under way;
    a torn last line is cut off. A journal of another phase (fingerprint) is started anew. What was spent without any
    result stands between the results, and is no step of evolution: `lost` has it.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.header = {"fingerprint": hashlib.sha256(repr(fingerprint).encode()).hexdigest()}
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        if lines and json.loads(lines[0]) != self.header:
            logger.warning("%s belongs to another prompt phase and is started anew.", path)
            lines = []
        records: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
        self.lost = [record for record in records if record["kind"] == LOST]
        self.done = [record for record in records if record["kind"] != LOST]
        self.position = 0
        self.file = open(path, "wb")  # noqa: SIM115 (closed in __exit__)
        self._write(self.header, *self.lost, *self.done)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def _write(self, *records: dict[str, Any]) -> None:
        self.file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self.file.flush()
        os.fsync(self.file.fileno())

    def call(self, kind: str, request: Any, run: Callable[[int], Any]) -> Any:
        """The recorded result of this, the next request, or that of `run(position)`, which is recorded.

        A record of a different request means that something evolution depends on has changed; the records from there
        on are dropped.
        """
        digest = hashlib.sha256(repr((kind, request)).encode()).hexdigest()[:16]
        number, self.position = self.position, self.position + 1
        if number < len(self.done):
            if self.done[number]["request"] == digest:
                return self.done[number]["result"]
            logger.warning("The journal departs from this run at record %d; going on from there.", number)
            del self.done[number:]
            self.file.seek(0)
            self.file.truncate()
            self._write(self.header, *self.lost, *self.done)
        result = run(number)
        self._write({"kind": kind, "request": digest, "result": result})
        return result

    def lose(self, result: Any) -> None:
        """Notes what the present request has cost in vain; whoever asks it again finds that in `lost`."""
        self._write({"kind": LOST, "result": result})


# -- GEPA's seams ----------------------------------------------------------------------------------------------------


class _World:
    """GEPA's adapter: rollouts in, scores and traces out.

    A question is tried once under a template: the policy does not change within a phase, and who asks again, for a
    parent's next minibatch, is told what came out before. The budget counts what was asked, `spent` what was generated.
    """

    propose_new_texts = None

    def __init__(
        self,
        questions: Mapping[int, Question],
        dev_ids: set[int],
        rollout: RolloutFn,
        journal: Journal,
        seed: int,
        epoch: int,
        spent: Ledger,
    ) -> None:
        self.questions, self.dev_ids, self.rollout, self.journal = questions, dev_ids, rollout, journal
        self.seed, self.epoch, self.spent = seed, epoch, spent
        self.known: dict[tuple[int, str], list[Any]] = {}
        self.asked, self.best_reward, self.worst_reward = 0, float("-inf"), float("inf")
        self.events: Counter[str] = Counter()
        self.successes: list[Success] = []

    def dev_results(self, template: str) -> dict[int, list[Any]]:
        """What came out on each dev question under a template that was tried on all of them."""
        return {question: self.known[question, template] for question in sorted(self.dev_ids)}

    def score(self, result: list[Any]) -> float:
        """Reward of a result; where nobody could score it, the lowest that was seen, and 0 before there is one."""
        if result[0] is not None:
            return float(result[0])
        return self.worst_reward if math.isfinite(self.worst_reward) else 0.0

    def all_solved(self, state: Any) -> bool:
        """Whether a template solves every dev question for the highest reward that was ever seen.

        It is then the whole selection, ties go to the earlier one, and only a reward yet unseen could change that.
        """

        def solves(template: str, question: int) -> bool:
            reward, solved, *_ = self.known[question, template]
            return bool(solved) and reward is not None and reward >= self.best_reward

        templates = (candidate[COMPONENT] for candidate in state.program_candidates)
        return any(template and all(solves(template, question) for question in self.dev_ids) for template in templates)

    def stream(self, position: int) -> int:
        return derive_seed(self.seed, "prompt phase", self.epoch, "batch", position)

    def evaluate(
        self, batch: list[Question], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Any, Any]:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(
        self, items: list[tuple[dict[str, str], list[Question]]], capture_traces: bool = True
    ) -> list[EvaluationBatch[Any, Any]]:
        asked = [(question.id, candidate[COMPONENT]) for candidate, batch in items for question in batch]
        dev = asked[0][0] in self.dev_ids
        self.asked += len(asked)
        self._roll_out([key for key in dict.fromkeys(asked) if key not in self.known], dev)
        batches = []
        for candidate, batch in items:
            template = candidate[COMPONENT]
            part = [self.known[question.id, template] for question in batch]
            batches.append(
                EvaluationBatch(
                    outputs=[r[1] for r in part],
                    scores=[self.score(r) for r in part],
                    trajectories=list(zip(batch, part, strict=True)),
                )
            )
        return batches

    def _roll_out(self, keys: list[tuple[int, str]], dev: bool) -> None:
        """Rollouts of these questions under these templates, in one batch, into what is known."""
        if not keys:
            return
        requests = [(self.questions[question], template) for question, template in keys]
        purpose: Literal["feedback", "dev"] = "dev" if dev else "feedback"

        def run(position: int) -> list[Any]:
            rollouts = self.rollout(requests, seed=self.stream(position), purpose=purpose)
            if len(rollouts) != len(requests):
                raise RuntimeError(f"{len(requests)} rollouts were asked for, {len(rollouts)} came back.")
            # Nobody reads what a dev rollout said, and failures are not reused; there can be thousands of them.
            said = [["", ""] if dev else [r.completion, r.feedback] for r in rollouts]
            kept = [[r.template, r.completion_ids] if r.solved and r.completion_ids else [] for r in rollouts]
            return [
                [r.reward, r.solved, r.prompt_tokens, r.completion_tokens, *s, k]
                for r, s, k in zip(rollouts, said, kept, strict=True)
            ]

        results = self.journal.call(purpose, keys, run)
        tokens = (sum(r[2] for r in results), sum(r[3] for r in results))
        self.spent.add("evolution_dev" if dev else "evolution_feedback", len(results), *tokens)
        for key, result in zip(keys, results, strict=True):
            self.known[key] = result
            if result[0] is None:
                self.events["unscored_rollouts"] += 1
            else:
                self.best_reward = max(self.best_reward, result[0])
                self.worst_reward = min(self.worst_reward, result[0])
            if kept := result[6]:
                self.successes.append(Success(key[0], *kept))

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Any, Any], components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The minibatch as records to reflect on; none where all of it is solved: there is nothing to learn."""
        trajectories = [(q, result) for q, result in eval_batch.trajectories or [] if result[0] is not None]
        if all(result[1] for _, result in trajectories):
            return {}
        return {
            COMPONENT: [
                {"Question": question.text, "Answer given": result[4], "Feedback": result[5]}
                for question, result in trajectories
            ]
        }


class _Reflector:
    """GEPA's reflection strategy: all reflections of an iteration in one batch, and the guard behind them."""

    def __init__(
        self,
        world: _World,
        reflect: ReflectionFn,
        config: EvolutionConfig,
        special_tokens: Collection[str],
        stock: set[tuple[str, ...]],
    ) -> None:
        self.world, self.reflect_fn, self.config = world, reflect, config
        self.special_tokens, self.stock = special_tokens, stock
        self.solutions = {question.text: question.solution for question in world.questions.values()}
        self.proposed = {""}
        self.rejections: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.error: Exception | None = None
        self.ended_early: str | None = None
        for record in world.journal.lost:
            self._count([Reflection(**reflection) for reflection in record["result"]])

    def stopped(self, state: Any) -> bool:
        """GEPA swallows what a reflection raises; it is kept and ends the phase, where a mistake is raised from."""
        return self.error is not None or self.ended_early is not None

    def reflect(self, *job: Any) -> tuple[ReflectionProposal, "_Reflector"]:
        return self.reflect_many([job])[0]

    def reflect_many(self, jobs: list[Any]) -> list[tuple[ReflectionProposal, "_Reflector"]]:
        proposals = [ReflectionProposal(new_texts={}) for _ in jobs]
        asked = [index for index, (_, records, _) in enumerate(jobs) if records.get(COMPONENT)]
        prompts = [
            str(
                InstructionProposalSignature.prompt_renderer(
                    {
                        "current_instruction_doc": jobs[index][0][COMPONENT],
                        "dataset_with_feedback": jobs[index][1][COMPONENT],
                        "prompt_template": self.config.reflection_prompt_template,
                    }
                )
            )
            for index in asked
        ]
        if prompts and not self.stopped(None):
            try:
                recorded = self.world.journal.call(
                    "reflection",
                    prompts,
                    lambda position: [asdict(r) for r in self.reflect_fn(prompts, seed=self.world.stream(position))],
                )
                answers = [Reflection(**record) for record in recorded]
                self._count(answers)
                for index, answer in zip(asked, answers, strict=True):
                    text = None if answer.error else self._checked(answer.text, jobs[index][1][COMPONENT])
                    if text is not None:
                        proposals[index].new_texts[COMPONENT] = text
            except ReflectionError as error:
                # A batch with some answers is in the journal as it came out, failures and all. Of one without any only
                # the cost is: it has changed nothing but the end of the phase, and whoever resumes here has perhaps
                # mended what was wrong and is glad if it is asked again. Where it fails again, the phase ends just the
                # same.
                self.ended_early = str(error)
                self.world.journal.lose([asdict(reflection) for reflection in error.reflections])
                self._count(error.reflections)
            except Exception as error:
                self.error = error
        return [(proposal, self) for proposal in proposals]

    def _count(self, reflections: Sequence[Reflection]) -> None:
        spent = self.world.spent
        failed = sum(bool(r.error) for r in reflections)
        tokens = (sum(r.prompt_tokens or 0 for r in reflections), sum(r.completion_tokens or 0 for r in reflections))
        spent.add("reflection", len(reflections) - failed, *tokens)
        spent.reflection_cost += sum(r.cost for r in reflections)
        if failed:
            self.rejections["failed"] += failed
            self.events["reflection_failed"] += failed
        unknown = sum(r.prompt_tokens is None for r in reflections)
        if unknown:
            self.events["reflection_usage_unknown"] += unknown

    def _checked(self, answer: str, records: Sequence[Mapping[str, Any]]) -> str | None:
        # A model that thinks aloud may try out proposals there; one that did not come to an end has made none.
        answer = answer.rpartition("</think>")[2].partition("<think>")[0]
        text = InstructionProposalSignature.output_extractor(answer.strip())["new_instruction"].strip()
        reason: str | None
        if answer.strip() and "```" not in answer:
            reason = "no_fence"
        elif text and text in self.proposed:
            reason = "duplicate"
        else:
            reason = check_template(
                text,
                questions=[(r["Question"], self.solutions[r["Question"]]) for r in records],
                max_length=self.config.max_template_length,
                special_tokens=self.special_tokens,
                stock=self.stock,
            )
        if reason is not None:
            self.rejections[reason] += 1
            logger.info("Reflection rejected (%s): %.200s", reason, answer)
            return None
        self.proposed.add(text)
        return text


class DistinctParents:
    """GEPA's sampling strategy: distinct parents from the Pareto front, each with a feedback minibatch of its own.

    A parent's weight is the number of dev questions on whose front it is, after GEPA has struck out the dominated. All
    of the front, when it is smaller than asked for; `fill_iterations` then deals out the minibatches that are missing
    evenly, the first drawn before the others, and a parent meets no question twice. The draws of an iteration depend
    on its number and on the front only.
    """

    def __init__(self, config: EvolutionConfig, seed: int, epoch: int) -> None:
        self.config, self.seed, self.epoch = config, seed, epoch

    def sample_tasks(
        self, state: Any, candidate_selector: Any, batch_sampler: Any, trainset: Any
    ) -> list[ProposalTask[Any, Any]]:
        rng = random.Random(derive_seed(self.seed, "prompt phase", self.epoch, "parents", state.i))
        scores = state.program_full_scores_val_set
        fronts = remove_dominated_programs(state.get_pareto_front_mapping(), scores)
        weights = Counter(parent for front in fronts.values() for parent in front)
        wanted, size = self.config.parents_per_iteration, self.config.feedback_minibatch_size
        parents = draw_distinct(dict(sorted(weights.items())), wanted, rng)
        more, left = divmod(wanted, len(parents)) if self.config.fill_iterations else (1, 0)
        ids = list(trainset.all_ids())
        tasks = []
        for place, parent in enumerate(parents):
            drawn = rng.sample(ids, min((more + (place < left)) * size, len(ids)))
            for start in range(0, len(drawn), size):
                batch = sorted(drawn[start : start + size])
                tasks.append(ProposalTask(parent, state.program_candidates[parent], batch, trainset.fetch(batch)))
        return tasks


def draw_distinct(weights: Mapping[int, int], count: int, rng: random.Random) -> list[int]:
    """Up to `count` distinct keys, one after the other, each with probability proportional to its weight."""
    remaining = dict(weights)
    drawn: list[int] = []
    while remaining and len(drawn) < count:
        (choice,) = rng.choices(list(remaining), list(remaining.values()))
        del remaining[choice]
        drawn.append(choice)
    return drawn


class _Watcher:
    """GEPA's callbacks, turned into progress and the record of when each candidate was found."""

    def __init__(
        self,
        world: _World,
        reflector: _Reflector,
        limit: int,
        on_progress: Callable[[EvolutionProgress], None] | None,
    ) -> None:
        self.world, self.reflector, self.limit, self.on_progress = world, reflector, limit, on_progress
        self.iteration = 0
        self.found_in: dict[int, int] = {}
        self.best_score, self.best_template = float("-inf"), ""

    def _tell(self, stage: Stage) -> None:
        if self.on_progress is not None:
            self.on_progress(
                EvolutionProgress(
                    stage=stage,
                    iteration=self.iteration,
                    metric_calls=self.world.asked,
                    max_metric_calls=self.limit,
                    candidates=len(self.found_in),
                    best_dev_score=max(self.best_score, 0.0) if not self.found_in else self.best_score,
                    best_template=self.best_template,
                    rejected=sum(self.reflector.rejections.values()),
                )
            )

    def on_optimization_start(self, event: Any) -> None:
        self._tell("seed")

    def on_iteration_start(self, event: Any) -> None:
        self.iteration = event["iteration"]
        self._tell("feedback")

    def on_proposal_end(self, event: Any) -> None:
        self._tell("minibatch")

    def on_valset_evaluated(self, event: Any) -> None:
        self.found_in[event["candidate_idx"]] = event["iteration"]
        if event["average_score"] > self.best_score:
            self.best_score, self.best_template = event["average_score"], event["candidate"][COMPONENT]
        self._tell("dev")

    def on_optimization_end(self, event: Any) -> None:
        self._tell("done")


class _QuietLogger:
    def log(self, message: str) -> None:
        logger.debug("gepa: %s", message)
