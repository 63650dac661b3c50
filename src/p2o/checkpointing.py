"""Atomic checkpoints, and the state that training needs to continue exactly."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from safetensors import safe_open
from transformers import PreTrainedModel, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from p2o.engines.processes import all_reduce_max, failed_together
from p2o.files import sampled_digest, sync, sync_tree, write_errors, write_whole
from p2o.seeding import set_rng_states
from p2o.state import STATE_FILE, CheckpointError, P2OState

BUFFER_FILE = "p2o_buffer_{process}.pt"
STAGING_DIR = ".incomplete"

MANIFEST = "p2o_files.json"
# Files that nobody edits; others, such as a model card or config.json, may be.
_UNEDITED = ("*.pt", "*.pth", "*.bin", "*.safetensors", "*.distcp", TRAINER_STATE_NAME, STATE_FILE)
# What transformers, FSDP (folders) and DeepSpeed (`global_step…`) call what a run continues from beside its weights.
_PARTS = {
    "the optimizer's state": ("optimizer*", "global_step*"),
    "the learning-rate scheduler's state": ("scheduler.pt", "global_step*"),
    "the trainer's state": (TRAINER_STATE_NAME,),
}


class StagedCheckpoint:
    """A checkpoint that is being written: in a staging directory, renamed when it is complete.

    Attributes:
        final: its final path.
        path: its staging path.
        to_push: whether an upload was requested meanwhile; it runs in the background, and its directory must not be
            renamed.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self.final = checkpoint_path(directory, step)
        self.path = directory / STAGING_DIR / self.final.name
        self.to_push = False
        self.under_way = True

    def publish(self) -> None:
        """Renames it to its final path once it is flushed to disk, with a list of its files."""
        files = [path for path in self.path.rglob("*") if path.is_file()]
        listed = {str(path.relative_to(self.path)): [path.stat().st_size, sampled_digest(path)] for path in files}
        write_whole(self.path / MANIFEST, json.dumps(listed, indent=1, sort_keys=True))
        sync_tree(self.path)
        if self.final.exists():
            os.replace(self.final, self.path.parent / "replaced")
        os.replace(self.path, self.final)
        sync(self.final.parent)
        shutil.rmtree(self.path.parent, ignore_errors=True)


def staging(checkpoint: StagedCheckpoint | None) -> str | None:
    """Where checkpoints are written while this one is; None where none is."""
    return str(checkpoint.path.parent) if checkpoint and checkpoint.under_way else None


def pushed_later(checkpoint: StagedCheckpoint | None) -> bool:
    """Whether an upload waits for the final folder of this checkpoint, which is being written; notes that it does."""
    if checkpoint is None or not checkpoint.under_way:
        return False
    checkpoint.to_push = True
    return True


@contextlib.contextmanager
def staged(accelerator: Accelerator, args: TrainingArguments, state: TrainerState) -> Iterator[StagedCheckpoint]:
    """A checkpoint of this step, to be written inside by all processes; complete and the newest one afterwards.

    Raises:
        OSError: it cannot be written. What was written of it is removed; earlier checkpoints are as they were.
    """
    directory = Path(args.output_dir)
    checkpoint = StagedCheckpoint(directory, state.global_step)
    try:
        with write_errors(checkpoint.final):
            if args.should_save:
                shutil.rmtree(checkpoint.path.parent, ignore_errors=True)
                checkpoint.path.mkdir(parents=True)
            accelerator.wait_for_everyone()
            yield checkpoint
            checkpoint.under_way = False
            accelerator.wait_for_everyone()
            if args.should_save:
                _publish(checkpoint, args, state)
    except Exception:
        if args.should_save:
            shutil.rmtree(checkpoint.path.parent, ignore_errors=True)
        raise
    finally:
        checkpoint.under_way = False
    accelerator.wait_for_everyone()


def _publish(checkpoint: StagedCheckpoint, args: TrainingArguments, state: TrainerState) -> None:
    if state.best_global_step:
        # transformers has looked for it in the staging directory.
        best = checkpoint_path(args.output_dir, state.best_global_step)
        if best.exists() or best == checkpoint.final:
            state.best_model_checkpoint = str(best)
            state.save_to_json(str(checkpoint.path / TRAINER_STATE_NAME))
    checkpoint.publish()
    rotate_checkpoints(
        output_dir=args.output_dir,
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )


@contextlib.contextmanager
def rescued(
    accelerator: Accelerator,
    args: TrainingArguments,
    state: TrainerState,
    passes: int,
    rng_states: dict[str, Any],
    save: Callable[[], None],
) -> Iterator[None]:
    """Inside is a batch. Where it fails the finished work is saved, and the error says from where to resume.

    Args:
        passes: of the loss so far; within a step nothing can be saved.
        rng_states: from before the batch, which will be repeated.
        save: writes a checkpoint of this step.
    """
    try:
        yield
    except Exception as error:
        if state.global_step == 0 or args.save_strategy == "no" or not failed_together(accelerator, error):
            raise
        path = checkpoint_path(args.output_dir, state.global_step)
        missing = not all_reduce_max(accelerator, int(path.exists()))
        if missing and passes % args.gradient_accumulation_steps == 0:
            set_rng_states(rng_states)
            save()
        if path.exists():
            error.add_note(f"Everything up to step {state.global_step} is saved; resume from {path}.")
        raise


def checkpoint_path(directory: str | Path, step: int) -> Path:
    return Path(directory) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def newest_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    checkpoints = [
        path
        for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rsplit("-", 1)[1].isdecimal() and (path / STATE_FILE).exists()
    ]
    return max(checkpoints, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def resolve_checkpoint(wanted: str | bool | None, directory: str | Path) -> Path | None:
    """The checkpoint to resume from, the newest for `True`; None for a fresh start.

    Raises:
        CheckpointError: there is none.
    """
    if wanted is True:
        newest = newest_checkpoint(Path(directory))
        if newest is None:
            raise CheckpointError(f"There is no checkpoint in {directory} to resume from.")
        return newest
    return Path(wanted) if wanted else None


def load(
    checkpoint: Path, accelerator: Accelerator, fingerprint: dict[str, Any]
) -> tuple[P2OState, list[dict[str, Any]] | None]:
    """The state of a run, and this process's rollouts that are still to be trained on, for the present configuration.

    Logs in one line what makes the run inexact.

    Raises:
        CheckpointError: it lacks something, is damaged, or was made under a configuration that would go on otherwise.
    """
    check_parts(checkpoint)
    state = P2OState.load(checkpoint, fingerprint, report=accelerator.is_main_process)
    return state, load_buffer(checkpoint, accelerator)


def load_renamed(model: Any, checkpoint: Path) -> None:
    """Loads weights that a checkpoint has by other names than the model, as vision-language models do.

    `Trainer` reads weights by the model's names and passes over all others, with a warning: it would go on from the
    weights that the run started with.

    Raises:
        CheckpointError: weights of the model are in the checkpoint by no name at all.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not isinstance(model, PreTrainedModel) or not files:
        return
    names = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    own = model.state_dict()
    if names <= own.keys():
        return
    loaded, report = type(model).from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise CheckpointError(
            f"{checkpoint} lacks weights of the model: {', '.join(sorted(report['missing_keys'])[:5])}"
        )
    model.load_state_dict(loaded.state_dict())


def check_parts(checkpoint: Path) -> None:
    """Nothing, for a checkpoint from which a run can continue.

    Raises:
        CheckpointError: it lacks the state of the optimizer, the scheduler, the random generators or the trainer, or a
            file is missing, cut, or not the one that was written with it; each is named.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not there.")
    here = [*(name for name, globs in _PARTS.items() if not any(any(checkpoint.glob(glob)) for glob in globs))]
    if not any(checkpoint.glob("rng_state*.pth")):
        here.append("the random generators' states")
    problems = [f"it has no file with {', '.join(here)}"] if here else []
    for name, (size, digest) in _listed(checkpoint).items():
        path = checkpoint / name
        if not path.exists():
            problems.append(f"{name} is missing")
        elif not any(path.match(pattern) for pattern in _UNEDITED):
            problems += [f"{name} is not JSON"] if path.suffix == ".json" and not _is_json(path) else []
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size:,} of {size:,} bytes")
        elif sampled_digest(path) != digest:
            problems.append(f"{name} is damaged, or of another checkpoint")
    if problems:
        raise CheckpointError(
            f"{checkpoint} cannot be continued exactly: {'; '.join(problems)}. Resume from another checkpoint; or take "
            "its weights as the model of a new run. (A run with save_only_model=True writes no other kind.)"
        )


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _listed(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Lengths and digests of the files that it was written with, but for documents; empty where there is no list.

    Raises:
        CheckpointError: the list is damaged.
    """
    path = checkpoint / MANIFEST
    if not path.exists():
        return {}
    try:
        listed = {str(name): (int(size), str(digest)) for name, (size, digest) in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); resume from another checkpoint.") from None
    return {name: entry for name, entry in listed.items() if not name.endswith(".md")}


def scale_learning_rates(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiplies the rates that a checkpoint has brought along: a scheduler loads them, whatever the options say."""
    if factor == 1.0:
        return
    for group in optimizer.param_groups:
        group.update({name: group[name] * factor for name in ("lr", "initial_lr") if name in group})
    scheduler = getattr(scheduler, "scheduler", scheduler)  # of accelerate's wrapper
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


def save_buffer(checkpoint: Path, accelerator: Accelerator, rollouts: list[dict[str, Any]] | None) -> None:
    """Writes this process's rollouts that have not been trained on yet; nothing for None."""
    if rollouts is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)  # as transformers does for its own files of each process
        torch.save(rollouts, checkpoint / BUFFER_FILE.format(process=accelerator.process_index))


def load_buffer(checkpoint: Path, accelerator: Accelerator) -> list[dict[str, Any]] | None:
    """What [`save_buffer`] wrote, on this process's device; None for nothing."""
    path = checkpoint / BUFFER_FILE.format(process=accelerator.process_index)
    if not path.exists():
        return None
    try:
        rollouts: list[dict[str, Any]] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch says of a damaged file
        raise CheckpointError(f"{path} is damaged ({error}); resume from another checkpoint.") from None
    return send_to_device(rollouts, accelerator.device)
