"""P²O's part of a checkpoint: everything the next step needs beside weights, optimizer and generators."""

import contextlib
import copy
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from p2o import continuation
from p2o.difficulty.shortcut import ShortcutWatch
from p2o.files import write_whole
from p2o.ledger import Ledger
from p2o.policy_phase.feature_guidance import ProxyWatch
from p2o.policy_phase.lengths import LengthWatch
from p2o.policy_phase.reuse import Kept, load_kept, save_kept
from p2o.prompt_phase.hard_samples import HardSamples, Outcome, taken_over
from p2o.templates import Template

logger = logging.getLogger(__name__)

STATE_FILE = "p2o_state.json"
STATE_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued: not P²O's, of another version, or of another configuration."""


@dataclass
class P2OState:
    """Where a run stands: what was hard, which templates are in use and by whom, and what was spent.

    Args:
        epoch: index of the policy epoch the next step belongs to, or has just completed.
        epoch_complete: whether that epoch's last step is done, so that the prompt phase comes next.
        outcomes: mining's counts of this epoch so far, by question.
        last_outcomes: those of the last complete epoch.
        hard_set: questions that were hard in the epoch before.
        templates: selected set in use.
        selected: what each prompt phase selected, by the epoch that it came before.
        prompt_phases: how many there have been.
        assignment: for each templated question the index of each rollout's template, `None` for bare ones.
        ledger: rollouts and tokens spent.
        events: counted incidents that lost nothing (templates over the length limit, unscored rollouts, …).
        first_accuracy: of each evaluation set, what later ones are held against.
        lengths: of completions, now and in the beginning.
        shortcut: entropy and success in the same way.
        proxy: strength of features and success in the same way, where features guide.
        templated_outcomes: mining's counts of the last complete epoch, of the questions that had templates in it.
        rewritten: rewrites that take the place of a hard question in this epoch, each with that question.
        hint_levels: how many parts of its worked solution each question's hint shows, of those that were ever hard.
        trainer_step: TRL's count of forward/backward passes, its place within a generation batch.
        pending_metrics: metrics gathered since the last log.
        kept: successes of the last prompt phase that this epoch's groups reuse, by question.
        phase_ledger: spent by the prompt phase under way; it enters `ledger` once, however often the phase was
            interrupted, and is in no checkpoint.
        rate_factor: by what the learning rates in the checkpoint just loaded are to be multiplied; in no checkpoint.
    """

    epoch: int = 0
    epoch_complete: bool = False
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    last_outcomes: dict[int, Outcome] = field(default_factory=dict)
    hard_set: list[int] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    selected: dict[int, list[Template]] = field(default_factory=dict)
    prompt_phases: int = 0
    assignment: dict[int, list[int | None]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    events: dict[str, int] = field(default_factory=dict)
    first_accuracy: dict[str, float] = field(default_factory=dict)
    lengths: LengthWatch = field(default_factory=LengthWatch)
    shortcut: ShortcutWatch = field(default_factory=ShortcutWatch)
    proxy: ProxyWatch = field(default_factory=ProxyWatch)
    templated_outcomes: dict[int, Outcome] = field(default_factory=dict)
    rewritten: dict[int, int] = field(default_factory=dict)
    hint_levels: dict[int, int] = field(default_factory=dict)
    trainer_step: int = 0
    pending_metrics: dict[str, list[float]] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict, compare=False)
    phase_ledger: Ledger = field(default_factory=Ledger, compare=False)
    rate_factor: float = field(default=1.0, compare=False)

    @property
    def ledgers(self) -> tuple[Ledger, Ledger]:
        """All that the run has spent so far."""
        return self.ledger, self.phase_ledger

    def event(self, name: str, count: int = 1) -> None:
        """Counts an incident that lost nothing; it shows in the metrics as `p2o/events/<name>`."""
        if count:
            self.events[name] = self.events.get(name, 0) + count

    def begin_next_epoch(self, *, near_hard: bool) -> None:
        """From the outcomes of the epoch just completed to its hard set; nobody has a template any more."""
        self.templated_outcomes = {q: o for q, o in self.outcomes.items() if q in self.assignment}
        # A question whose place a rewrite took was not asked, and is as hard as it was.
        self.hard_set = sorted({*HardSamples(near_hard, self.outcomes).hard_set(), *self.rewritten.values()})
        self.last_outcomes, self.outcomes = self.outcomes, {}
        self.assignment, self.kept, self.rewritten = {}, {}, {}
        self.epoch += 1
        self.epoch_complete = False

    def watch_length(self, mean_length: float, factor: float) -> None:
        """Takes note of a generation batch. Warns, and counts it, where response length leaves the range around its
        beginning that `factor` allows."""
        before, self.lengths = self.lengths, self.lengths.after(mean_length, factor)
        if self.lengths.outside and not before.outside:
            self.event("response_length_changed")
            logger.warning(
                "Response length has changed by more than length_change_factor=%g: %s.", factor, self.lengths
            )

    def watch_shortcut(self, success_rate: float | None, factor: float, margin: float) -> None:
        """Takes note of a generation batch, of which `watch_length` has the length. Warns, and counts it, where length
        and entropy collapse before success does; see [`p2o.difficulty.shortcut`]."""
        before, self.shortcut = self.shortcut, self.shortcut.after(self.lengths, success_rate, factor, margin)
        if self.shortcut.suspected and not before.suspected:
            self.event("shortcut_suspected")
            logger.warning(
                "The policy may be taking a shortcut: responses (%s) and the entropy of their tokens (%.2f of what it "
                "was) have both fallen by more than shortcut_factor=%g, while rewards still pay for them. Read some "
                "rollouts, and watch accuracy on questions that are not trained on.",
                self.lengths,
                self.shortcut.entropies.ratio,
                factor,
            )

    def watch_proxy(self, strength: float | None, success_rate: float, patience: float) -> None:
        """Takes note of a batch that features guide. Warns, counts it and switches their rewards off where features
        grow stronger and successes do not; see [`p2o.policy_phase.feature_guidance`]."""
        before, self.proxy = self.proxy, self.proxy.after(strength, success_rate, patience)
        if self.proxy.stopped and not before.stopped:
            self.event("feature_proxy_stopped")
            logger.warning(
                "The share of reasoning features in failed rollouts has risen by more than feature_proxy_patience=%g, "
                "and the share of successes has not: proxy rewards are switched off for the rest of the run.",
                patience,
            )

    def end_step(self, last_of_epoch: bool, metrics: Mapping[str, list[float]], passes: int) -> None:
        """Takes note of an optimizer step.

        Args:
            metrics: since the last log; TRL's `entropy` has one value a pass.
            passes: of a step.
        """
        self.epoch_complete |= last_of_epoch
        self.shortcut = self.shortcut.with_passes(metrics.get("entropy", [])[-passes:])

    def watch_accuracy(self, evaluation: str, metrics: Mapping[str, float], margin: float) -> None:
        """Warns, and counts it, when a set's accuracy is more than `margin` below the first one measured on it."""
        if (accuracy := metrics.get(f"{evaluation}_accuracy")) is None:
            return
        first = self.first_accuracy.setdefault(evaluation, accuracy)
        if accuracy < first - margin:
            self.event("accuracy_regression")
            logger.warning(
                "%s_accuracy fell from %.3f to %.3f, by more than regression_margin=%g.",
                evaluation,
                first,
                accuracy,
                margin,
            )

    def note_progress(self, trainer_step: int, metrics: Mapping[str, list[float]]) -> None:
        """Takes over what a checkpoint has to know of the trainer."""
        self.trainer_step = trainer_step
        self.pending_metrics = {name: list(values) for name, values in metrics.items()}

    def metrics(self, *, near_hard: bool) -> dict[str, float]:
        """The state in numbers, as it is logged with every training step."""
        logs: dict[str, float] = {
            "p2o/hard_set": len(self.hard_set),
            "p2o/hard_so_far": len(HardSamples(near_hard, self.outcomes).hard_set()),
            "p2o/questions_so_far": len(self.outcomes),
            "p2o/templated_questions": len(self.assignment),
            "p2o/rewritten_questions": len(self.rewritten),
            **taken_over(self.templated_outcomes, self.outcomes, self.assignment),
        }
        for unit in ("rollouts", "prompt_tokens", "completion_tokens"):
            for purpose, count in getattr(self.ledger, unit).items():
                logs[f"p2o/{unit}/{purpose}"] = count
        logs["p2o/length_ratio"] = self.lengths.ratio
        logs["p2o/entropy_ratio"] = self.shortcut.entropies.ratio
        logs["p2o/rollouts/total"] = self.ledger.total_rollouts
        if self.ledger.reflection_cost:
            logs["p2o/reflection_cost"] = self.ledger.reflection_cost
        logs["p2o/trained_tokens/forward"] = self.ledger.forward_tokens
        logs["p2o/trained_tokens/forward_backward"] = self.ledger.forward_backward_tokens
        return logs | {f"p2o/events/{name}": count for name, count in self.events.items()}

    def take_rate_factor(self) -> float:
        """`rate_factor`, once: rates in memory are multiplied by it, and later checkpoints have the products."""
        factor, self.rate_factor = self.rate_factor, 1.0
        return factor

    def to_dict(self) -> dict[str, Any]:
        data = {
            **asdict(replace(self, kept={})),
            "outcomes": _plain(self.outcomes),
            "last_outcomes": _plain(self.last_outcomes),
            "templated_outcomes": _plain(self.templated_outcomes),
            "templates": [t.to_dict() for t in self.templates],
            "selected": {str(epoch): [t.to_dict() for t in found] for epoch, found in self.selected.items()},
            "assignment": {str(q): draws for q, draws in self.assignment.items()},
            "rewritten": {str(rewrite): question for rewrite, question in self.rewritten.items()},
            "hint_levels": {str(question): level for question, level in self.hint_levels.items()},
        }
        # One is in a file of its own, the other is counted again from the journal of an interrupted phase.
        del data["kept"], data["phase_ledger"], data["rate_factor"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "P2OState":
        return cls(
            **{
                **data,
                "outcomes": _outcomes(data["outcomes"]),
                # Early checkpoints of 0.1 have none of these, nor `selected`.
                "last_outcomes": _outcomes(data.get("last_outcomes", {})),
                "templated_outcomes": _outcomes(data.get("templated_outcomes", {})),
                "lengths": LengthWatch(**_tuples(data.get("lengths", {}))),
                "shortcut": ShortcutWatch.from_dict(data.get("shortcut", {})),
                "proxy": ProxyWatch.from_dict(data.get("proxy", {})),
                "templates": [Template.from_dict(t) for t in data["templates"]],
                "selected": {int(e): [Template.from_dict(t) for t in f] for e, f in data.get("selected", {}).items()},
                "assignment": {int(q): draws for q, draws in data["assignment"].items()},
                "rewritten": {int(rewrite): question for rewrite, question in data.get("rewritten", {}).items()},
                "hint_levels": {int(question): level for question, level in data.get("hint_levels", {}).items()},
                "ledger": Ledger(**data["ledger"]),
            }
        )

    def save(self, checkpoint: Path, fingerprint: dict[str, Any]) -> None:
        write_json(
            checkpoint / STATE_FILE,
            {"version": STATE_VERSION, "fingerprint": fingerprint, "state": self.to_dict()},
        )
        save_kept(self.kept, checkpoint)

    @classmethod
    def load(
        cls, checkpoint: Path, fingerprint: dict[str, Any], *, without: Collection[str] = (), report: bool = True
    ) -> "P2OState":
        """The state in a checkpoint, for the configuration that is to continue it.

        Args:
            without: names in the fingerprint that are not compared.
            report: whether to log in one line what makes the run inexact.

        Raises:
            CheckpointError: no state of ours, of another version, or made under a configuration that would continue
                differently; each difference is named.
        """
        path = checkpoint / STATE_FILE
        try:
            data = json.loads(path.read_text())
            if (version := data["version"]) != STATE_VERSION:
                raise CheckpointError(
                    f"{path} has version {version}, this P²O reads version {STATE_VERSION}; continue it with the "
                    "release that wrote it."
                )
            was, state = dict(data["fingerprint"]), cls.from_dict(data["state"])
            state.kept = load_kept(checkpoint)
        except CheckpointError:
            raise
        except FileNotFoundError:
            raise CheckpointError(f"{checkpoint} is no checkpoint of P2OTrainer: it has no {STATE_FILE}.") from None
        except Exception as error:  # whatever a damaged file makes JSON, torch or the state's own types say
            raise CheckpointError(
                f"{path} or a file beside it is damaged ({error}); resume from an earlier checkpoint."
            ) from None
        comparison = continuation.compare(was, fingerprint, without=without)
        problem = comparison.refusal() if comparison.refused else None
        if problem := problem or continuation.division_problem(state.trainer_step, was, fingerprint):
            raise CheckpointError(
                f"{checkpoint} was made under another configuration and cannot be continued under this one: {problem}"
            )
        if report and (notice := comparison.notice()):
            logger.warning("%s: %s", checkpoint, notice)
        state.trainer_step = continuation.passes_done(state.trainer_step, was, fingerprint)
        state.rate_factor = continuation.learning_rate_factor(was, fingerprint)
        return state


def _plain(outcomes: Mapping[int, Outcome]) -> dict[str, list[int]]:
    return {str(question): [outcome.successes, outcome.rollouts] for question, outcome in outcomes.items()}


def _outcomes(plain: Mapping[str, Sequence[int]]) -> dict[int, Outcome]:
    return {int(question): Outcome(*counts) for question, counts in plain.items()}


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


@contextlib.contextmanager
def uncounted_on_failure(state: P2OState, metrics: dict[str, list[float]]) -> Iterator[None]:
    """What is counted inside stays counted unless it ends in an exception: the batch will be tried again."""
    counted, watches = copy.deepcopy((state.ledger, state.events)), (state.lengths, state.shortcut, state.proxy)
    outcomes = dict(state.outcomes)  # one a question of the epoch, and none ever changes
    logged = {name: list(values) for name, values in metrics.items()}
    try:
        yield
    except Exception:
        state.ledger, state.events = counted
        state.outcomes, (state.lengths, state.shortcut, state.proxy) = outcomes, watches
        metrics.clear()
        metrics.update(logged)
        raise


def write_json(path: Path, data: Any) -> None:
    """Writes whole or not at all: a reader, or a resumed run, never meets half a file."""
    write_whole(path, json.dumps(data, indent=1))
