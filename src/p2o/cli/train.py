"""`p2o train`: evaluate, train, evaluate again, and leave a directory that explains itself."""

import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from rich.console import Console
from rich.markup import escape
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import get_peft_config, get_quantization_config

from p2o.checkpointing import newest_checkpoint
from p2o.cli.arguments import Run, hub_name, prepare, spelled, take_option
from p2o.cli.console import Watch, bare_accuracies, clock, outcome_table
from p2o.cli.errors import InputError
from p2o.cli.report import write_report
from p2o.cli.run_directory import RunDirectory, check_writable
from p2o.state import write_json
from p2o.trainer import P2OTrainer

RUNS = Path("runs")


def train(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    # One of several processes speaks and writes.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=os.environ.get("RANK", "0") != "0")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    # What the libraries say to programmers, and bars that cross ours, are not for a watcher.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    disable_progress_bar()
    try:
        argv = [spelled(word) for word in argv]
        resume = take_flag(argv, "--resume")
        check_only = take_flag(argv, "--check_only")
        directory, argv = (RUNS, argv) if check_only else run_directory(argv, resume)
        run = prepare(argv, str(directory))
        if check_only:
            return _tell_check(run, console)
        if run.report and (problem := run.report.problem()):
            raise InputError(problem)
        return _train(run, RunDirectory(directory), resume, console)
    except InputError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", markup=True)
        return 2


def take_flag(argv: list[str], name: str) -> bool:
    present = name in argv
    if present:
        argv.remove(name)
    return present


def _tell_check(run: Run, console: Console) -> int:
    if run.report is None:
        console.print(f"{run.arguments.dataset_name}: {len(run.train_dataset)} questions that the package makes itself")
        return 0
    console.print(run.report.table())
    return 2 if run.report.stops else 0


def run_directory(argv: list[str], resume: bool) -> tuple[Path, list[str]]:
    """Where the run lives, and the command line with what that implies: a resumed run brings its configuration.

    Raises:
        InputError: nothing to resume, or a directory that already holds a run.
    """
    named = take_option(argv, "--output_dir")
    if resume:
        if named is None:
            runs = sorted(RUNS.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
            if not runs:
                raise InputError(f"There is no run in {RUNS}/ to resume; name one with --output_dir.")
            named = str(runs[-1].parent)
        config = Path(named) / "config.yaml"
        if not config.exists():
            raise InputError(f"{named} holds no run to resume: it has no config.yaml.")
        return Path(named), argv if "--config" in argv else ["--config", str(config), *argv]
    if named is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("Several processes need --output_dir: each would make up a name of its own.")
    if named is None:
        method = argv[argv.index("--method") + 1] if "--method" in argv[:-1] else "p2o"
        stem = RUNS / f"{method}-{datetime.now():%Y%m%d-%H%M%S}"
        names = chain([stem], (Path(f"{stem}-{i}") for i in count(2)))
        named = str(next(path for path in names if not path.exists()))
    elif (Path(named) / "config.yaml").exists():
        raise InputError(f"{named} already holds a run: go on with --resume, or choose another --output_dir.")
    return Path(named), argv


def _train(run: Run, directory: RunDirectory, resume: bool, console: Console) -> int:
    _refuse_unless_writable(directory, 0)
    if run.arguments.num_threads:
        torch.set_num_threads(run.arguments.num_threads)
    upload = take_upload(run, directory.path)
    run.training.model_init_kwargs = {
        "revision": run.model.model_revision,
        "trust_remote_code": run.training.trust_remote_code,
        "attn_implementation": run.model.attn_implementation,
        "dtype": run.model.dtype,
        **(run.training.model_init_kwargs or {}),
    }
    try:
        trainer = P2OTrainer(
            model=run.model.model_name_or_path,
            reward_funcs=run.rewards,
            args=run.training,
            train_dataset=run.train_dataset,
            eval_dataset=run.eval_datasets or None,
            feedback_func=run.feedback,
            reflect=run.reflect,
            peft_config=get_peft_config(run.model),
            quantization_config=get_quantization_config(run.model),
        )
    except (ValueError, OSError, ImportError) as error:
        raise InputError(str(error)) from error
    # Two checkpoints with weights and two moments each, and the final model.
    _refuse_unless_writable(directory, 7 * sum(p.numel() * p.element_size() for p in trainer.model.parameters()))
    checkpoint = newest_checkpoint(directory.path) if resume else None
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
    interrupt = Interrupt()
    samples = trainer.num_generations_eval
    evaluated = {**run.final_datasets, **run.eval_datasets}
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    for added in (directory, watch, interrupt):
        trainer.add_callback(added)

    where = f"resumed from step {step}" if checkpoint else "a new run" if not resume else "from the start"
    console.print(f"{watch.title} · {where}")
    if run.report:
        console.print(run.report.line(), markup=False)
    try:
        with watch.show(), interrupt.handled(lambda: watch.phase == "policy"):
            # Without a checkpoint the ledger starts anew, and with it this evaluation.
            before = directory.recorded("before.json") if checkpoint else None
            if before is None and evaluated:
                watch.begin("evaluation before")
                with directory.answers("before", samples):
                    before = bare_accuracies(trainer.evaluate(evaluated))
                if leads:
                    write_json(directory.path / "before.json", before)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if interrupt.asked:
                raise KeyboardInterrupt
            after = {}
            if evaluated:
                watch.begin("evaluation after")
                with directory.answers("after", samples):
                    after = bare_accuracies(trainer.evaluate(evaluated))
            _save_model(trainer, run, directory.path)
    except KeyboardInterrupt:
        console.print(f"Interrupted; nothing is lost. Go on with: p2o train --resume --output_dir {directory.path}")
        return 130
    except Exception as error:
        for note in (f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])):
            Console(stderr=True, soft_wrap=True, markup=False).print(note)
        if newest_checkpoint(directory.path):
            console.print(f"Go on with: p2o train --resume --output_dir {directory.path}")
        raise

    if not leads:
        return 0
    before = before or {}
    state = trainer.p2o
    summary = {
        "method": run.arguments.method,
        "seed": run.training.seed,
        "bare_accuracy": {name: {"before": before.get(name), "after": after.get(name)} for name in run.final_datasets},
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
    spent = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in state.ledger.rollouts.items())
    console.print(f"Rollouts to train: {state.ledger.total_rollouts} (all by purpose: {spent}).")
    if state.events:
        console.print("Events: " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in state.events.items()) + ".")
    console.print(
        f"{clock(summary['wall_seconds'])} in all, {summary['peak_rss_bytes'] / 1e9:.1f} GB of memory at most."
    )
    write_report([directory.path], directory.path / "report.html")
    console.print(f"Model: {directory.path / 'model'} · what happened: {directory.path / 'report.html'}")
    if upload is None:
        return 0
    try:
        console.print(f"Uploaded: {upload()}")
    except Exception as error:  # of the hub, the network or its client; the work is done and safe
        Console(stderr=True, soft_wrap=True, markup=False).print(
            f"The model is complete, but was not uploaded: {error}\n"
            f"To try again: hf upload {run.training.hub_model_id} {directory.path / 'model'}"
        )
        return 1
    return 0


def take_upload(run: Run, directory: Path) -> Callable[[], str] | None:
    """What uploads the model in the end and returns its address, or None; the repository is made at once.

    Only `model/` goes to the hub. The trainer's own `push_to_hub` would send all of its directory, which here is the
    run's, with questions, answers and rollouts; and it writes its token down with the model.

    Raises:
        InputError: the repository cannot be made.
    """
    training = run.training
    wanted, token = training.push_to_hub, training.hub_token
    training.push_to_hub, training.hub_token = False, None
    run.config.pop("hub_token", None)
    if not wanted or os.environ.get("RANK", "0") != "0":
        return None
    api = HfApi(token=token)
    name = training.hub_model_id or directory.name
    try:
        repository = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:  # of the hub, the network or its client
        raise InputError(f"push_to_hub: there is no repository {name} to push to: {error}") from error
    training.hub_model_id = repository  # what the card's example loads

    def upload() -> str:
        return api.upload_folder(
            repo_id=repository,
            folder_path=directory / "model",
            commit_message="End of training",
            revision=training.hub_revision,
        ).commit_url

    return upload


def _save_model(trainer: P2OTrainer, run: Run, directory: Path) -> None:
    trainer.save_model(str(directory / "model"))
    name = run.training.hub_model_id or directory.name
    trainer.create_model_card(name.split("/")[-1], hub_name(run.arguments))
    if trainer.is_world_process_zero():
        shutil.copy(directory / "README.md", directory / "model" / "README.md")


def _refuse_unless_writable(directory: RunDirectory, needed_bytes: int) -> None:
    problem = check_writable(directory.path, needed_bytes)
    if problem:
        raise InputError(problem)


class Interrupt(TrainerCallback):
    """Ctrl-C or SIGTERM: a policy step is finished and saved first; elsewhere, and the second time, it is at once.

    Elsewhere everything is saved already: an evolution has its journal, an evaluation changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def handled(self, politely: Any) -> Iterator[None]:
        def handler(number: int, frame: Any) -> None:
            again, self.asked = self.asked, True
            if again or not politely():
                raise KeyboardInterrupt
            print("\nFinishing this step and saving; again to stop at once.", file=sys.stderr)

        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)
