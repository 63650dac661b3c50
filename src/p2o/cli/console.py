"""Progress display: a live panel in a terminal, one line per event otherwise."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2o.callbacks import P2OCallback
from p2o.prompt_phase.phase import dev_success
from p2o.prompt_phase.traces import shorten
from p2o.prompt_phase.types import EvolutionProgress, EvolutionResult
from p2o.reports.metrics import WITH_PROMPTS
from p2o.state import P2OState

LONGEST_SHOWN = 240  # characters of a question or an answer


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def by_set(metrics: dict[str, Any], what: str = "accuracy") -> dict[str, float]:
    """One of the evaluation metrics by dataset: `eval_hard_accuracy` is that of "hard"."""
    return {
        name.removeprefix("eval").removesuffix(what).strip("_") or "all": value
        for name, value in metrics.items()
        if name.startswith("eval") and name.endswith(f"_{what}") and value is not None
    }


class Pace:
    """Estimates the time left from the mean duration of policy steps and prompt phases."""

    def __init__(self) -> None:
        self.seconds = {"step": 0.0, "prompt phase": 0.0}
        self.count = {"step": 0, "prompt phase": 0}

    def add(self, what: str, seconds: float) -> None:
        self.seconds[what] += seconds
        self.count[what] += 1

    def left(self, steps: int, prompt_phases: int) -> float | None:
        """Seconds; None before the first step. Prompt phases count as 0 until one has run."""
        if not self.count["step"]:
            return None
        means = {what: self.seconds[what] / max(self.count[what], 1) for what in self.seconds}
        return steps * means["step"] + prompt_phases * means["prompt phase"]


class Watch(P2OCallback):
    """Follows a run through callback events only.

    Args:
        console: where to write.
        title: of the panel.
        started: `time.monotonic()` of the run's start, minus the time of earlier sessions.
        every: seconds after which a prompt phase in which nothing has been found says how far it is, without a
            terminal.
    """

    def __init__(self, console: Console, title: str, started: float, every: float = 30.0) -> None:
        self.console, self.title, self.started, self.every = console, title, started, every
        self.pace = Pace()
        self.phase = "starting"
        self.epoch, self.epochs, self.step, self.steps = 0, 0, 0, 0
        self.spent, self.budget = 0, 0  # rollouts, if they and not the epochs end the run
        self._spent_before = 0  # by earlier sessions of a resumed run
        self.accuracy: dict[str, list[float]] = {}
        self.metrics: dict[str, float] = {}
        self.evolution: EvolutionProgress | None = None
        self.template = ""
        self._since = self._said = time.monotonic()
        self._live: Live | None = None

    @contextmanager
    def show(self) -> Iterator[None]:
        """Shows the panel inside the `with` block; does nothing without a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self.panel, console=self.console, refresh_per_second=4, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def say(self, text: str) -> None:
        self._said = time.monotonic()
        self.console.print(Text.assemble((f"{clock(time.monotonic() - self.started):>7}  ", "dim"), text))

    def begin(self, phase: str) -> None:
        self.phase = phase
        self._since = time.monotonic()

    # -- events ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps, self.step, self.epochs = state.max_steps, state.global_step, round(args.num_train_epochs)
        self.budget, self._spent_before = args.max_rollouts or 0, self.spent
        if args.max_steps > 0 or self.budget:
            self.epochs = 0
        self.begin("policy")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin("policy")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step, self.epoch = state.global_step, int(state.epoch or 0)
        self.pace.add("step", time.monotonic() - self._since)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        # Steps that reuse the rollouts of an earlier step log no reward.
        self.metrics.update({k: v for k, v in logs.items() if isinstance(v, int | float)})
        self.spent = int(self.metrics.get("p2o/rollouts/total", 0))
        if self._live is None:
            self.say(f"{self.progress_line()} · {self.policy_line()}{self.left_line()}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **kwargs: Any) -> None:
        for split, value in by_set(metrics).items():
            if split.startswith(WITH_PROMPTS):
                self.say(f"accuracy with prompts {split.removeprefix(WITH_PROMPTS)} {value:.1%}")
                continue
            self.accuracy.setdefault(split, []).append(value)
            self.say(f"bare accuracy {split} {value:.1%}")

    def on_prompt_phase_begin(
        self, args: Any, state: Any, control: Any, *, hard_set: Sequence[int], **kwargs: Any
    ) -> None:
        self.begin("prompt")
        self.evolution = None
        hard = "hard " if args.template_questions == "hard" else ""
        self.say(f"prompt phase · {len(hard_set)} {hard}questions")

    def on_prompt_phase_progress(
        self, args: Any, state: Any, control: Any, *, progress: EvolutionProgress, **kwargs: Any
    ) -> None:
        before, self.evolution = self.evolution, progress
        self.template = progress.best_template
        news = before is None or before.candidates != progress.candidates
        if self._live is None and (news or time.monotonic() - self._said >= self.every):
            self.say(f"{self.evolution_line()}{self.left_line()}")

    def on_prompt_phase_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        p2o: P2OState,
        result: EvolutionResult | None,
        reason: str | None,
        **kwargs: Any,
    ) -> None:
        if result is None:
            self.say(f"prompt phase skipped · {reason}")
            return
        self.pace.add("prompt phase", time.monotonic() - self._since)
        if result.ended_early is not None:
            self.say(f"prompt phase ended early · {result.ended_early}")
        covered = len(frozenset().union(*(t.solves for t in p2o.templates)))
        self.say(
            f"prompt phase done · {result.metric_calls} rollouts, {result.reflections} reflections, "
            f"{len(result.candidates)} candidates · {len(p2o.templates)} templates cover {covered} of "
            f"{len(result.dev_ids)} dev questions{self.dev_success_line(result)}"
        )
        for template in sorted(p2o.templates, key=lambda t: -t.score):
            self.say(f"  {template.score:.2f}  {template.text}")

    @staticmethod
    def dev_success_line(result: EvolutionResult) -> str:
        """Success on the dev questions, bare and under the selected set."""
        shown = [f"{name.rpartition('/')[2]} {rate:.1%}" for name, rate in dev_success(result).items()]
        note = " (within noise)" if result.within_noise else ""
        return f" · solved {', '.join(shown)}{note}" if shown else ""

    # -- display -----------------------------------------------------------------------------------------------------

    def progress_line(self) -> str:
        if self.budget:
            return f"step {self.step} · rollouts {self.spent}/{self.budget}"
        epoch = f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs} · " if self.epochs else ""
        return f"{epoch}step {self.step}/{self.steps}" if self.steps else ""

    def policy_line(self) -> str:
        m = self.metrics
        parts = [
            f"reward {m.get('reward', 0):.2f}",
            f"collapsed groups {m.get('frac_reward_zero_std', 0):.0%}",
            f"templated {m.get('p2o/templated_rollouts', 0):.0%}",
            f"hard so far {m.get('p2o/hard_so_far', 0):.0f} of {m.get('p2o/questions_so_far', 0):.0f}",
        ]
        return " · ".join(parts)

    def evolution_line(self) -> str:
        e = self.evolution
        if e is None:
            return ""
        best = f" · best dev score {e.best_dev_score:.2f} {e.best_template!r}" if e.candidates else ""
        return (
            f"evolution iteration {e.iteration} · rollouts {e.metric_calls}/{e.max_metric_calls} · "
            f"candidates {e.candidates} · rejected {e.rejected}{best}"
        )

    def left(self) -> float | None:
        if self.budget:
            spent = self.spent - self._spent_before
            return sum(self.pace.seconds.values()) / spent * max(self.budget - self.spent, 0) if spent > 0 else None
        steps = self.steps - self.step
        phases = 0
        if self.pace.count["prompt phase"] and self.epochs:
            phases = max(self.epochs - self.epoch - 1, 0)
        left = self.pace.left(steps, phases)
        if left is not None and self.phase == "prompt" and self.evolution and self.evolution.metric_calls:
            e, took = self.evolution, time.monotonic() - self._since
            left += took * max(e.max_metric_calls / e.metric_calls - 1, 0)
        return left

    def left_line(self) -> str:
        left = self.left()
        return f" · about {clock(left)} left" if left else ""

    def panel(self) -> Panel:
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        phase = {"policy": "policy phase", "prompt": "prompt phase"}.get(self.phase, self.phase)
        head.add_row(
            Text(" · ".join(filter(None, (phase, self.progress_line()))), style="bold"),
            f"{clock(time.monotonic() - self.started)} elapsed{self.left_line()}",
        )
        bar = Table.grid(expand=True)  # a bar by itself does not end its line
        bar.add_row(
            ProgressBar(total=self.budget or self.steps or 1, completed=self.spent if self.budget else self.step)
        )
        lines: list[Any] = [head, bar]
        if self.accuracy:
            shown = (f"{s} {v[-1]:.1%} (first {v[0]:.1%})" for s, v in self.accuracy.items())
            lines.append(Text("bare accuracy  " + "   ".join(shown), style="green"))
        if self.metrics:
            lines.append(Text(self.policy_line()))
        if self.evolution is not None:
            e = self.evolution
            lines.append(
                Text(
                    f"evolution  iteration {e.iteration} · rollouts {e.metric_calls}/{e.max_metric_calls} · candidates "
                    f"{e.candidates} · rejected {e.rejected} · best dev score {e.best_dev_score:.2f}"
                )
            )
            if self.template:
                lines.append(Text(f"“{self.template}”", style="cyan"))
        return Panel(Group(*lines), title=self.title, title_align="left")


def outcome_table(summary: dict[str, Any]) -> Table:
    """The end of a run on one screen: bare accuracy before and after, and what else was measured."""
    table = Table(title="Bare accuracy, no instruction (share of rollouts right)")
    prompted, kl = summary.get("prompted_accuracy"), summary.get("kl_to_base")
    more = [*(["after, with prompts"] if prompted else []), *(["KL to base"] if kl else [])]
    for heading in ("questions", "before", "after", *more):
        table.add_column(heading, justify="left" if heading == "questions" else "right")
    for split, values in summary["bare_accuracy"].items():
        shown = [share(values.get(when)) for when in ("before", "after")]
        shown += [share(prompted.get(split))] if prompted else []
        table.add_row(split, *shown, *([f"{kl[split]:.4f}" if split in kl else "–"] if kl else []))
    return table


def examples_table(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    """Questions and one bare answer to each of them, before and after."""
    table = Table(title="Bare answers", show_lines=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading, ratio=1)
    for before, after in pairs:
        answers = (f"{excerpt(answer['completion'])}\n[reward {answer['reward']:g}]" for answer in (before, after))
        table.add_row(*map(Text, (excerpt(str(before["question"])), *answers)))
    return table


def excerpt(text: str) -> str:
    """The text, or its beginning and its end where it is longer than `LONGEST_SHOWN`."""
    text = text.strip()
    return text if len(text) <= LONGEST_SHOWN else shorten(text, LONGEST_SHOWN / len(text))


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


class Meter:
    """Progress of counted work and the time left: a bar in a terminal, otherwise a line now and then.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every = console, every
        self._phase = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}{task.fields[note]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "Meter":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Reports progress of `phase`. What was done before its first report does not count towards the pace."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._since, self._before, self._printed = phase, now, done, now
            if self._bar.task_ids:
                self._bar.update(self._bar.task_ids[-1], visible=False)
            self._bar.add_task(phase, total=total, note="", left="")
        pace = (now - self._since) / (done - self._before) if done > self._before else None
        left = f"about {clock(pace * max(total - done, 0))} left" if pace is not None and done < total else ""
        self._bar.update(self._bar.task_ids[-1], completed=done, total=total, note=note, left=left)
        if not self.console.is_terminal and (now - self._printed >= self.every or done >= total):
            self._printed = now
            ending = f" · {left}" if left else ""
            self.console.print(f"{phase}: {done}/{total}{note}{ending}", markup=False)
