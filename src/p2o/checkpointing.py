"""Atomic checkpoints, and the state that training needs to continue exactly."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from p2o.engines.processes import all_reduce_max, failed_together
from p2o.seeding import set_rng_states
from p2o.state import STATE_FILE, CheckpointError

BUFFER_FILE = "p2o_buffer_{process}.pt"
STAGING_DIR = ".incomplete"

# Settings that must be equal for a checkpoint to continue exactly.
SETTINGS = (
    "seed num_generations generation_batch_size steps_per_generation num_iterations temperature near_hard "
    "success_threshold success_reward prompt_phase min_hard_questions max_dev_questions evolution_budget "
    "parents_per_iteration feedback_minibatch_size max_template_length reflection_prompt "
    "reflection_model reflection_max_tokens reflection_temperature "
    "same_template_per_group bare_rollouts_per_group drop_failed_templated context_mask "
    "context_ratio_min context_ratio_max old_logprobs_context dynamic_sampling_rounds max_completion_length "
    "context_distillation max_prompt_phases reused_rollouts_per_group "
    "loss_type shuffle_dataset"
).split()


def fingerprint(args: Any, prompts: Iterable[Any], processes: int) -> dict[str, Any]:
    """Settings and data that a checkpoint is only continued under; `prompts` are those of the training set."""
    digest, count = hashlib.sha256(), 0
    for prompt in prompts:
        digest.update(json.dumps(prompt, sort_keys=True).encode())
        count += 1
    values = {name: getattr(args, name) for name in SETTINGS}
    if args.selection_margin is not None:  # older checkpoints know of no other rule than the paper's
        values |= {"selection_margin": args.selection_margin, "selection_rollouts": args.selection_rollouts}
    if args.thoughts != "auto":
        values["thoughts"] = args.thoughts
    return {**values, "processes": processes, "questions": count, "prompts_sha256": digest.hexdigest()[:16]}


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
        """Renames it to its final path once it is flushed to disk."""
        for path in (*self.path.iterdir(), self.path):
            _fsync(path)
        shutil.rmtree(self.final, ignore_errors=True)
        os.replace(self.path, self.final)
        shutil.rmtree(self.path.parent, ignore_errors=True)


@contextlib.contextmanager
def staged(accelerator: Accelerator, args: TrainingArguments, state: TrainerState) -> Iterator[StagedCheckpoint]:
    """A checkpoint of this step, to be written inside by all processes; complete and the newest one afterwards."""
    directory = Path(args.output_dir)
    checkpoint = StagedCheckpoint(directory, state.global_step)
    if args.should_save:
        shutil.rmtree(checkpoint.path.parent, ignore_errors=True)
        checkpoint.path.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        yield checkpoint
    finally:
        checkpoint.under_way = False
    accelerator.wait_for_everyone()
    if args.should_save:
        if state.best_global_step:
            # transformers has looked for it in the staging directory.
            best = checkpoint_path(directory, state.best_global_step)
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
    accelerator.wait_for_everyone()


def rescue(
    error: Exception,
    accelerator: Accelerator,
    args: TrainingArguments,
    state: TrainerState,
    passes: int,
    rng_states: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """After a failed batch: saves the finished work, and adds to the error from where to resume.

    Args:
        passes: of the loss so far; within a step nothing can be saved.
        rng_states: from before the batch, which will be repeated.
        save: writes a checkpoint of this step.
    """
    if state.global_step == 0 or args.save_strategy == "no" or not failed_together(accelerator, error):
        return
    path = checkpoint_path(args.output_dir, state.global_step)
    missing = not all_reduce_max(accelerator, int(path.exists()))
    if missing and passes % args.gradient_accumulation_steps == 0:
        set_rng_states(rng_states)
        save()
    if path.exists():
        error.add_note(f"Everything up to step {state.global_step} is saved; resume from {path}.")


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


def resolve_checkpoint(wanted: str | bool | None, directory: Path) -> Path | None:
    """The checkpoint to resume from, the newest for `True`; None for a fresh start.

    Raises:
        CheckpointError: there is none.
    """
    if wanted is True:
        newest = newest_checkpoint(directory)
        if newest is None:
            raise CheckpointError(f"There is no checkpoint in {directory} to resume from.")
        return newest
    return Path(wanted) if wanted else None


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
    rollouts: list[dict[str, Any]] = torch.load(path, map_location="cpu", weights_only=True)
    return send_to_device(rollouts, accelerator.device)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
