"""What `p2o train` measures after training beside bare accuracy: accuracy with prompts, and the KL to the base."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, create_model_from_path

from p2o.cli.errors import InputError
from p2o.config import P2OConfig
from p2o.images import question_prompt
from p2o.policy_phase.rollouts import contexts_within
from p2o.prompt_phase.policy_rollouts import PolicyRollouts
from p2o.reports.metrics import WITH_PROMPTS
from p2o.templates import apply_template
from p2o.trainer import P2OTrainer


def under_template(sets: Mapping[str, Dataset], template: str, rollouts: PolicyRollouts) -> dict[str, Dataset]:
    """Evaluation sets with T(x, z) in place of each question x, under names that say so.

    A question whose prompt would be too long keeps its own.

    Args:
        sets: by name.
        template: z, for all questions.
        rollouts: of training: how long prompts may be, and where their templates stand.
    """
    where = rollouts.args.template_position
    made = {}
    for name, dataset in sets.items():
        asked = [question_prompt(row) for row in dataset]
        _, used = contexts_within(asked, [template] * len(asked), rollouts.tokenize, rollouts.max_prompt_length, where)

        def templated(row: dict[str, Any], number: int, used: list[str] = used) -> dict[str, Any]:
            return {"prompt": apply_template(row["prompt"], used[number], where)}

        made[WITH_PROMPTS + name] = dataset.map(templated, with_indices=True, load_from_cache_file=False)
    return made


def check_kl(args: P2OConfig) -> None:
    """
    Raises:
        InputError: options under which TRL's KL term is not one to the model that training starts from.
    """
    if args.sync_ref_model:
        raise InputError("evaluate_kl does not go with sync_ref_model: the reference is not the base any more.")
    if args.cast_lm_head_to_fp32 and not args.beta:
        raise InputError("evaluate_kl with cast_lm_head_to_fp32 needs a beta, with which TRL makes the reference.")


@contextmanager
def kl_to_base(trainer: P2OTrainer, base: str) -> Iterator[None]:
    """Inside, evaluations log TRL's KL term between the policy and the model that training started from.

    Args:
        base: name or path of that model. It is loaded unless training has it already, or trains an adapter.
    """
    if trainer.beta:
        yield
        return
    if not hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"):
        trainer.ref_model = _loaded(trainer, base)
    trainer.beta = sys.float_info.min  # as a factor in the loss this is 0
    try:
        yield
    finally:
        trainer.beta, trainer.ref_model = 0.0, None


def _loaded(trainer: P2OTrainer, base: str) -> Any:
    """As TRL loads and prepares a reference."""
    how = {"trust_remote_code": trainer.args.trust_remote_code, **(trainer.args.model_init_kwargs or {})}
    how["dtype"] = trainer.accelerator.unwrap_model(trainer.model).dtype
    if trainer.accelerator.num_processes > 1:
        how["device_map"] = None
    model = create_model_from_path(base, **how)
    add_fused_lm_head(model, temperature=trainer.temperature, cast_lm_head_to_fp32=False)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(model, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return prepare_fsdp(model, trainer.accelerator)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)
