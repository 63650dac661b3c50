"""Everything that would stop training before the first step, checked without loading the weights."""

import copy
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from trl import get_peft_config, get_quantization_config

from p2o.checkpointing import check_parts
from p2o.cli.arguments import Run
from p2o.cli.errors import InputError
from p2o.engines import vllm
from p2o.features.guidance import Guidance
from p2o.images import image_columns
from p2o.pico import model_path
from p2o.state import P2OState
from p2o.trainer import P2OTrainer

# What `check_trainer_builds` puts in place of the run's: another model, loaded otherwise, and no engine.
NOT_THE_RUNS = ("architecture", "start_weights", "model_init_kwargs", "use_vllm", "max_prompt_length_in_force")


def make_trainer(run: Run, **parts: Any) -> P2OTrainer:
    """The trainer of a run.

    Args:
        parts: arguments of the trainer in place of the run's.

    Raises:
        InputError: options, data or packages that it refuses.
    """
    _check_trackers(run.training)
    try:
        arguments = {
            "model": run.model.model_name_or_path,
            "reward_funcs": run.rewards,
            "args": run.training,
            "train_dataset": run.train_dataset,
            "eval_dataset": run.eval_datasets or None,
            "feedback_func": run.feedback,
            "reflect": run.reflect,
            "tools": run.tools,
            "peft_config": get_peft_config(run.model),
            "quantization_config": get_quantization_config(run.model),
        }
        return P2OTrainer(**{**arguments, **parts})
    except (ValueError, OSError, ImportError) as error:
        raise InputError(str(error)) from error


def _check_trackers(training: TrainingArguments) -> None:
    """
    Raises:
        InputError: a tracker that transformers does not know, or whose package is missing.
    """
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to: {error}") from error


def check_trainer_builds(run: Run, checkpoint: Path | None) -> None:
    """Builds the trainer with the embedded model in place of the run's, and checks the checkpoint to resume from.

    Args:
        checkpoint: to resume from; None for a new run.

    Raises:
        InputError: what would stop training.
    """
    name = run.model.model_name_or_path
    known = {"revision": run.model.model_revision, "trust_remote_code": run.training.trust_remote_code}
    with tempfile.TemporaryDirectory() as scratch:
        training = copy.copy(run.training)
        training.output_dir, training.report_to, training.model_init_kwargs = scratch, [], None
        training.push_to_hub = False
        try:
            vllm.check(training, name)
            model = AutoModelForCausalLM.from_pretrained(
                model_path(), attn_implementation=run.model.attn_implementation
            )
            whole = AutoConfig.from_pretrained(name, **known)
            config = whole.get_text_config()
            # so that prompt lengths are checked against the real model's context
            model.config.max_position_embeddings = getattr(config, "max_position_embeddings", None)
            model.name_or_path = name  # which a difficulty profile's is compared with
            shows = image_columns(run.train_dataset)
            if shows:
                model.config.image_token_id = whole.image_token_id  # TRL keeps it from being sampled
            processing_class = (AutoProcessor if shows else AutoTokenizer).from_pretrained(name, **known)
            get_peft_config(run.model)
            guided = training.feature_token_weight, training.feature_proxy_reward
            if training.guided_by_features:
                Guidance.load(str(training.feature_dictionary)).saved.origin.check(config, str(name))
            training.feature_token_weight = training.feature_proxy_reward = 0.0  # this is not the model that it reads
        except (ValueError, OSError, ImportError) as error:
            raise InputError(str(error)) from error
        training.use_vllm = False
        parts = {"model": model, "args": training, "peft_config": None, "quantization_config": None}
        trainer = make_trainer(run, processing_class=processing_class, **parts)
        training.feature_token_weight, training.feature_proxy_reward = guided
        refuse_other_checkpoint(trainer, checkpoint, without=NOT_THE_RUNS, report=True)


def refuse_other_checkpoint(
    trainer: P2OTrainer, checkpoint: Path | None, *, without: Collection[str] = (), report: bool = False
) -> None:
    """
    Args:
        without: what of the trainer's is not the run's, and not compared.
        report: whether to log what makes the run inexact.

    Raises:
        InputError: a checkpoint that was made under other settings, or is damaged.
    """
    if checkpoint is None:
        return
    try:
        check_parts(checkpoint)
        P2OState.load(checkpoint, trainer.fingerprint(), without=without, report=report)
    except ValueError as error:
        raise InputError(str(error)) from error
