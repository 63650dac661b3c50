"""`p2o train`: evaluate, train, evaluate again, and leave a directory that explains itself."""

import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from p2o.cli.arguments import InputError, Run, prepare, take_option
from p2o.cli.run_directory import RunDirectory, check_writable

RUNS = Path("runs")


def train(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        resume = take_flag(argv, "--resume")
        directory, argv = run_directory(argv, resume)
        run = prepare(argv, str(directory))
        return _train(run, RunDirectory(directory), resume, console)
    except InputError as error:
        errors.print(f"[bold red]Error:[/] {error}", markup=True)
        return 2


def take_flag(argv: list[str], name: str) -> bool:
    present = name in argv
    if present:
        argv.remove(name)
    return present


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
    if named is None:
        method = argv[argv.index("--method") + 1] if "--method" in argv[:-1] else "p2o"
        stem = RUNS / f"{method}-{datetime.now():%Y%m%d-%H%M%S}"
        named = str(next(p for p in (stem, *(Path(f"{stem}-{i}") for i in range(2, 10**6))) if not p.exists()))
    elif (Path(named) / "config.yaml").exists():
        raise InputError(f"{named} already holds a run: go on with --resume, or choose another --output_dir.")
    return Path(named), argv


def _train(run: Run, directory: RunDirectory, resume: bool, console: Console) -> int:
    # Imported late: bad input should be answered before torch and TRL have been waited for.
    import torch
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import get_kbit_device_map, get_peft_config, get_quantization_config

    from p2o.cli.console import Watch, clock, outcome_table
    from p2o.state import write_json
    from p2o.trainer import P2OTrainer, newest_checkpoint

    class Interruption(TrainerCallback):
        """Ctrl-C in the policy phase: the step under way is finished and saved. Elsewhere all is saved already."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if interrupt.asked:
                control.should_save = control.should_training_stop = True

    if run.arguments.num_threads:
        torch.set_num_threads(run.arguments.num_threads)
    quantization = get_quantization_config(run.model)
    run.training.model_init_kwargs = {
        "revision": run.model.model_revision,
        "trust_remote_code": run.model.trust_remote_code,
        "attn_implementation": run.model.attn_implementation,
        "dtype": run.model.dtype,
        **({"device_map": get_kbit_device_map(), "quantization_config": quantization} if quantization else {}),
        **(run.training.model_init_kwargs or {}),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = P2OTrainer(
                model=run.model.model_name_or_path,
                reward_funcs=run.rewards,
                args=run.training,
                train_dataset=run.train_dataset,
                eval_dataset=run.eval_datasets or None,
                feedback_func=run.feedback,
                peft_config=get_peft_config(run.model),
            )
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    bytes_of_weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    problem = check_writable(directory.path, needed_bytes=7 * bytes_of_weights)
    if problem:
        raise InputError(problem)
    checkpoint = newest_checkpoint(directory.path) if resume else None
    step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    if resume:
        directory.rewind(step)
    else:
        directory.create(run.config)
    started = time.monotonic() - directory.seconds
    directory.started = started
    watch = Watch(console, f"P²O · {run.arguments.method} · {directory.path}", started)
    interrupt = Interrupt()
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    for added in (directory, watch, Interruption()):
        trainer.add_callback(added)

    where = f"resumed from step {step}" if checkpoint else "a new run" if not resume else "from the start"
    console.print(f"{watch.title} · {where}")
    try:
        with watch.show(), interrupt.handled(lambda: watch.phase == "policy"):
            before = directory.recorded("before.json")
            if before is None and run.final_datasets:
                watch.begin("evaluation before")
                before = _accuracies(trainer.evaluate(run.final_datasets))
                write_json(directory.path / "before.json", before)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if interrupt.asked:
                raise KeyboardInterrupt
            after = {}
            if run.final_datasets:
                watch.begin("evaluation after")
                after = _accuracies(trainer.evaluate(run.final_datasets))
            trainer.save_model(str(directory.path / "model"))
    except KeyboardInterrupt:
        console.print(f"Interrupted; nothing is lost. Go on with: p2o train --resume --output_dir {directory.path}")
        return 130
    except Exception as error:
        for note in (f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])):
            Console(stderr=True, soft_wrap=True, markup=False).print(note)
        if newest_checkpoint(directory.path):
            console.print(f"Go on with: p2o train --resume --output_dir {directory.path}")
        raise

    before = before or {}
    state = trainer.p2o
    summary = {
        "method": run.arguments.method,
        "seed": run.training.seed,
        "bare_accuracy": {name: {"before": before.get(name), "after": after.get(name)} for name in run.final_datasets},
        "steps": trainer.state.global_step,
        "epochs": state.epoch + 1,
        "rollouts": {**state.ledger.rollouts, "total": state.ledger.total_rollouts},
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
    console.print(f"Model: {directory.path / 'model'} · what happened: {directory.path / 'RUN.md'}")
    return 0


def _accuracies(metrics: dict[str, float]) -> dict[str, float]:
    """`eval_hard_accuracy` and its like, by dataset."""
    ending = "_accuracy"
    return {k.removeprefix("eval_").removesuffix(ending): v for k, v in metrics.items() if k.endswith(ending)}


class Interrupt:
    """Ctrl-C or SIGTERM: asked politely where a step should be finished first; else, and the second time, at once."""

    def __init__(self) -> None:
        self.asked = False

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
