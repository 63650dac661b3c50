"""`p2o train`: evaluates, trains, evaluates again and writes a self-describing directory."""

import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from p2o.batch_sizes import BatchSizes
from p2o.checkpointing import newest_checkpoint
from p2o.cli.arguments import Run, prepare
from p2o.cli.console import Watch, by_set, clock, examples_table, outcome_table
from p2o.cli.data import hub_name
from p2o.cli.errors import InputError
from p2o.cli.final_evaluation import check_kl, kl_to_base, under_template
from p2o.cli.help import asks_for_help
from p2o.cli.interrupt import Interrupt
from p2o.cli.options import Parser
from p2o.cli.preflight import check_trainer_builds, make_trainer, refuse_other_checkpoint
from p2o.cli.run_directory import RunDirectory, check_writable
from p2o.cli.settings import read_settings
from p2o.cli.upload import prepare_upload
from p2o.cli.words import normalized_option, take_option
from p2o.files import unwritable, write_errors
from p2o.reports.metrics import WITH_PROMPTS
from p2o.reports.page import write_report
from p2o.reports.run_data import load_run
from p2o.state import CheckpointError, write_json
from p2o.templates import best_template
from p2o.trainer import P2OTrainer

RUNS = Path("runs")


def train(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    # Only rank 0 prints and writes.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=os.environ.get("RANK", "0") != "0")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    # Hide library warnings and progress bars that would break our output.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    disable_progress_bar()
    try:
        argv = [normalized_option(word) for word in argv]
        if asks_for_help(argv):
            Parser().print_help()
            return 0
        resume, argv = take_resume(argv)
        if resume is None:
            console.print("This run is finished.")
            return 0
        check_only = take_flag(argv, "--check_only")
        directory, argv = run_directory(argv, resume)
        run = prepare(argv, str(directory))
        for line in run.default_messages:
            console.print(line, markup=False)
        if check_only:
            return _check(run, directory, resume, console)
        if run.report and (problem := run.report.error_message()):
            raise InputError(problem)
        if run.arguments.evaluate_kl:
            check_kl(run.training)
        return _train(run, RunDirectory(directory), resume, console)
    except InputError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", markup=True)
        return 2


def take_resume(argv: list[str]) -> tuple[bool | None, list[str]]:
    """Whether the run is to be continued, None if it is finished and to be left alone; and the other words.

    Raises:
        InputError: --resume_or_start without a directory.
    """
    argv = list(argv)
    if not take_flag(argv, "--resume_or_start"):
        return take_flag(argv, "--resume"), argv
    named = take_option(list(argv), "--output_dir")
    if named is None:
        raise InputError("--resume_or_start needs --output_dir.")
    if (Path(named) / "summary.json").exists():
        return None, argv
    # Of a run that has begun, the directory has the configuration.
    return (True, ["--output_dir", named]) if (Path(named) / "config.yaml").exists() else (False, argv)


def take_flag(argv: list[str], name: str) -> bool:
    present = name in argv
    if present:
        argv.remove(name)
    return present


def _check(run: Run, directory: Path, resume: bool, console: Console) -> int:
    """Prints what the checks found and what would stop training; changes nothing.

    Raises:
        InputError: what would stop training.
    """
    if run.report is None:
        console.print(f"{run.arguments.dataset_name}: {len(run.train_dataset)} generated questions")
    else:
        console.print(run.report.table())
        if problem := run.report.error_message():
            raise InputError(problem)
    _refuse_unless_writable(directory, 0, make=False)
    check_trainer_builds(run, newest_checkpoint(directory) if resume else None)
    given = "generation_batch_size" in run.config
    sizes = BatchSizes.of_complete(run.training, evaluates=bool(run.final_datasets), batch_is_given=given)
    console.print(sizes.summary())
    console.print("All checks passed; training was not started.")
    return 0


def run_directory(argv: list[str], resume: bool) -> tuple[Path, list[str]]:
    """The run's directory, by the command line or the configuration, and the command line without that option.

    For a resumed run, its configuration is added to the command line.

    Raises:
        InputError: nothing to resume, or a directory that already holds a run.
    """
    file = take_option(list(argv), "--config")
    named = take_option(argv, "--output_dir") or (read_settings(file).get("output_dir") if file else None)
    if named is not None and not isinstance(named, str):
        raise InputError(f"{file}: output_dir: {named!r} is not a path.")
    if resume:
        if named is None:
            runs = sorted(RUNS.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
            if not runs:
                raise InputError(f"No run to resume in {RUNS}/; name one with --output_dir.")
            named = str(runs[-1].parent)
        config = Path(named) / "config.yaml"
        if not config.exists():
            raise InputError(f"{named} holds no run to resume: it has no config.yaml.")
        return Path(named), argv if file else ["--config", str(config), *argv]
    if named is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("Several processes need --output_dir; otherwise each process would choose its own directory.")
    if named is None:
        method = take_option(list(argv), "--method") or "p2o"
        stem = RUNS / f"{method}-{datetime.now():%Y%m%d-%H%M%S}"
        names = chain([stem], (Path(f"{stem}-{i}") for i in count(2)))
        named = str(next(path for path in names if not path.exists()))
    elif (Path(named) / "config.yaml").exists():
        raise InputError(f"{named} already holds a run: continue it with --resume, or choose another --output_dir.")
    return Path(named), argv


def _train(run: Run, directory: RunDirectory, resume: bool, console: Console) -> int:
    _refuse_unless_writable(directory.path, 0)
    if run.arguments.num_threads:
        torch.set_num_threads(run.arguments.num_threads)
    upload = prepare_upload(run, directory.path)
    run.training.model_init_kwargs = {
        "revision": run.model.model_revision,
        "trust_remote_code": run.training.trust_remote_code,
        "attn_implementation": run.model.attn_implementation,
        "dtype": run.model.dtype,
        **(run.training.model_init_kwargs or {}),
    }
    checkpoint = newest_checkpoint(directory.path) if resume else None
    trainer = make_trainer(run)
    refuse_other_checkpoint(trainer, checkpoint)
    # Two checkpoints with weights and two moments each, and the final model.
    needed = 7 * sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    _refuse_unless_writable(directory.path, needed)
    step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    leads = trainer.is_world_process_zero()
    if resume and leads:
        directory.rewind(step)
    elif leads:
        directory.create(run.config)
        if run.report:
            write_json(directory.path / "data.json", run.report.to_dict())
    started = time.monotonic() - directory.seconds
    directory.started = started
    watch = Watch(console, f"P²O · {run.arguments.method} · {directory.path}", started)
    where = f"resumed from step {step}" if checkpoint else "a new run" if not resume else "from the start"
    console.print(f"{watch.title} · {where}")
    if run.report:
        for line in (*run.report.notes, run.report.line()):
            console.print(line, markup=False)
    try:
        found = _evaluated_training(trainer, run, directory, checkpoint, watch)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        console.print(f"Interrupted; nothing is lost. Continue with: p2o train --resume --output_dir {directory.path}")
        return 130
    except Exception as error:
        full = isinstance(error, OSError) and unwritable(error)  # `main` says so
        for note in () if full else (f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])):
            Console(stderr=True, soft_wrap=True, markup=False).print(note)
        if newest_checkpoint(directory.path):
            console.print(f"Continue with: p2o train --resume --output_dir {directory.path}")
        raise
    if not leads:
        return 0
    _write_outcome(trainer, run, directory, found, started, console)
    return _upload(upload, run, directory, console)


@dataclass
class Evaluated:
    """Accuracies by evaluation set, in [0, 1].

    Args:
        before, after: bare.
        with_prompts: after training, with `template` in front of every question, by name of set; empty where that was
            not asked for, or nothing was selected.
        kl: nats a token, by evaluation set, to the model that training started from; empty where not asked for.
    """

    before: dict[str, float]
    after: dict[str, float] = field(default_factory=dict)
    with_prompts: dict[str, float] = field(default_factory=dict)
    template: str = ""
    kl: dict[str, float] = field(default_factory=dict)

    def as_summary(self, sets: Iterable[str]) -> dict[str, Any]:
        """Of these sets, as `summary.json` has it."""
        sets = list(sets)
        bare = {name: {"before": self.before.get(name), "after": self.after.get(name)} for name in sets}
        prompted = {name.removeprefix(WITH_PROMPTS): value for name, value in self.with_prompts.items()}
        return {
            "bare_accuracy": bare,
            **({"prompted_accuracy": prompted, "evaluation_template": self.template} if prompted else {}),
            **({"kl_to_base": {name: self.kl[name] for name in sets if name in self.kl}} if self.kl else {}),
        }


def _evaluated_training(
    trainer: P2OTrainer, run: Run, directory: RunDirectory, checkpoint: Path | None, watch: Watch
) -> Evaluated:
    """Trains, and evaluates before and after.

    Raises:
        KeyboardInterrupt: when asked to stop; what was done is saved.
    """
    interrupt = Interrupt()
    samples = trainer.num_generations_eval
    evaluated = {**run.final_datasets, **run.eval_datasets}
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    for added in (directory, watch, interrupt):
        trainer.add_callback(added)
    with watch.show(), interrupt.handled(lambda: watch.phase == "policy"):
        # Without a checkpoint the ledger starts at zero, so this evaluation is repeated.
        before = directory.recorded("before.json") if checkpoint else None
        if before is None and evaluated:
            watch.begin("evaluation before")
            with directory.answers("before", samples):
                before = by_set(trainer.evaluate(evaluated))
            if trainer.is_world_process_zero():
                write_json(directory.path / "before.json", before)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupt.asked:
            raise KeyboardInterrupt
        found = Evaluated(before or {})
        if evaluated:
            watch.begin("evaluation after")
            base = str(run.model.model_name_or_path)
            measuring = kl_to_base(trainer, base) if run.arguments.evaluate_kl else nullcontext()
            with directory.answers("after", samples), measuring:
                metrics = trainer.evaluate(evaluated)
            found.after = by_set(metrics)
            found.kl = by_set(metrics, "kl") if run.arguments.evaluate_kl else {}
        best = best_template(trainer.p2o.selected) if run.arguments.evaluate_with_prompts else None
        if best is not None and run.final_datasets:
            watch.begin("evaluation with prompts")
            under = under_template(run.final_datasets, best.text, trainer.policy_rollouts)
            found.with_prompts, found.template = by_set(trainer.evaluate(under)), best.text
        _save_model(trainer, run, directory.path)
    return found


def _write_outcome(
    trainer: P2OTrainer,
    run: Run,
    directory: RunDirectory,
    found: Evaluated,
    started: float,
    console: Console,
) -> None:
    """Writes the summary and the report, and prints the essentials."""
    state = trainer.p2o
    if state.epoch_complete:
        directory.write_outcomes(state.epoch, state.outcomes, state.assignment)
    summary = {
        "method": run.arguments.method,
        "seed": run.training.seed,
        **found.as_summary(run.final_datasets),
        "steps": trainer.state.global_step,
        "epochs": state.epoch + 1,
        "rollouts": {**state.ledger.rollouts, "total": state.ledger.total_rollouts},
        "tokens": {k: v for k, v in asdict(state.ledger).items() if k.endswith("_tokens")},
        "reflection_cost": state.ledger.reflection_cost,
        "templates": [t.to_dict() for t in state.templates],
        "events": state.events,
        "wall_seconds": round(time.monotonic() - started, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write_json(directory.path / "summary.json", summary)
    if summary["bare_accuracy"]:
        console.print(outcome_table(summary))
    finished = load_run(directory.path)
    if examples := finished.examples():
        console.print(examples_table(examples))
    spent = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in state.ledger.rollouts.items())
    console.print(f"Rollouts charged to training: {state.ledger.total_rollouts} (by purpose: {spent}).")
    if state.events:
        console.print("Events: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in state.events.items()) + ".")
    console.print(f"{clock(summary['wall_seconds'])} in total, peak memory {summary['peak_rss_bytes'] / 1e9:.1f} GB.")
    write_report([finished], directory.path / "report.html")
    console.print(f"Model: {directory.path / 'model'} · report: {directory.path / 'report.html'}")


def _upload(upload: Callable[[], str] | None, run: Run, directory: RunDirectory, console: Console) -> int:
    """The exit code: 1 where the model could not be uploaded."""
    if upload is None:
        return 0
    try:
        console.print(f"Uploaded: {upload()}")
    except Exception as error:  # of the hub, the network or its client; the model is saved already
        Console(stderr=True, soft_wrap=True, markup=False).print(
            f"The model is complete, but was not uploaded: {error}\n"
            f"To try again: hf upload {run.training.hub_model_id} {directory.path / 'model'}"
        )
        return 1
    return 0


def _save_model(trainer: P2OTrainer, run: Run, directory: Path) -> None:
    with write_errors(directory / "model"):
        trainer.save_model(str(directory / "model"))
    name = run.training.hub_model_id or directory.name
    trainer.create_model_card(name.split("/")[-1], hub_name(run.arguments))
    if trainer.is_world_process_zero():
        shutil.copy(directory / "README.md", directory / "model" / "README.md")


def _refuse_unless_writable(path: Path, needed_bytes: int, *, make: bool = True) -> None:
    problem = check_writable(path, needed_bytes, make=make)
    if problem:
        raise InputError(problem)
