"""Defaults of `p2o train` that depend on data, model and hardware; each is reported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import p2o.pico
from p2o.cli.settings import Settings, read_settings
from p2o.tasks import is_task, verifier_of

EMBEDDED, EMBEDDED_WITH_TOOLS = "pico", "pico-tools"
WORKED = "worked_solution"  # column of the embedded training questions, for hints alone
EMBEDDED_RECIPE = Path(p2o.pico.__file__).parent / "recipe.yaml"
# Settings of the recipe that concern the embedded questions, not the embedded model.
ABOUT_ITS_QUESTIONS = ("dataset_name", "reward_funcs", "feedback_func", "eval_strategy", "eval_steps")


def with_defaults(settings: Mapping[str, Any], has_file: bool) -> tuple[Settings, list[str]]:
    """Settings with defaults filled in, and messages about these defaults.

    Args:
        settings: of the command line and the configuration file.
        has_file: whether there is a configuration file; the embedded world's recipe is used only without one.
    """
    messages = []
    base: Settings = {}
    data, model = settings.get("dataset_name"), settings.get("model_name_or_path")
    if not has_file and data in (None, EMBEDDED):
        base = read_settings(EMBEDDED_RECIPE)
    elif not has_file and model in (None, EMBEDDED):
        base = {k: v for k, v in read_settings(EMBEDDED_RECIPE).items() if k not in ABOUT_ITS_QUESTIONS}
        if model is None:
            messages.append("No model given: using the embedded model 'pico' (1M parameters) and its recipe.")
    chosen = {**base, **settings}
    if data is not None and not chosen.get("reward_funcs"):
        name = str(data)
        chosen["reward_funcs"] = [verifier_of(name) if is_task(name) else "math"]
        why = "this set's verifier" if is_task(name) else "math-verify on the gold answers"
        messages.append(f"No reward given: using {chosen['reward_funcs'][0]}, {why}.")
    machine = for_the_machine(chosen)
    if machine:
        listed = ", ".join(f"{name}: {str(value).lower()}" for name, value in machine.items())
        messages.append(f"{_why(chosen)}: {listed}.")
    return {**chosen, **machine}, messages


def for_the_machine(settings: Mapping[str, Any]) -> Settings:
    """Precision and device for this machine, if not set. TRL's defaults assume bfloat16."""
    on_cpu = bool(settings.get("use_cpu")) or not _has_accelerator()
    made: Settings = {}
    if on_cpu:
        made = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    elif settings.get("bf16") is None and settings.get("fp16") is None and not _has_bfloat16():
        made = {"bf16": False, "fp16": True}
    return {name: value for name, value in made.items() if settings.get(name) is None}


def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


def _has_bfloat16() -> bool:
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def _why(settings: Mapping[str, Any]) -> str:
    if settings.get("use_cpu"):
        return "On the CPU"
    return "This GPU has no bfloat16" if _has_accelerator() else "This machine has no GPU"
