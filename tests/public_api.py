"""A user's callback and README's example, type-checked strictly by `mypy` (pyproject.toml) and never run."""
# ruff: noqa: I001 - README's order of imports

from collections.abc import Sequence
from typing import Any

from transformers import TrainerControl, TrainerState

from p2o import P2OCallback, P2OConfig
from p2o.callbacks import SampledRollout
from p2o.state import P2OState


class TemplatesAtWork(P2OCallback):
    def __init__(self) -> None:
        self.rewards: dict[str, list[float]] = {}

    def on_rollouts(
        self,
        args: P2OConfig,
        state: TrainerState,
        control: TrainerControl,
        *,
        p2o: P2OState,
        rollouts: Sequence[SampledRollout],
        **kwargs: Any,
    ) -> None:
        for rollout in rollouts:
            self.rewards.setdefault(rollout.template, []).append(rollout.reward)


def readme() -> list[str]:
    from datasets import load_dataset
    from p2o import P2OConfig, P2OTrainer
    from trl.rewards import accuracy_reward

    trainer = P2OTrainer(
        model="Qwen/Qwen3-4B",
        reward_funcs=accuracy_reward,
        args=P2OConfig(
            output_dir="Qwen3-4B-P2O",
            num_generations=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=48,  # 2 × 48 rollouts a GPU: 16 questions × 6
            max_completion_length=12_288,  # it thinks before it answers
            reflection_max_tokens=8192,  # and before it proposes an instruction
            evolution_budget="heavy_4",  # rollouts of a prompt phase: a preset of the paper's, or a number
            use_vllm=True,  # pip install 'p2o-rl[vllm]'
        ),
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train[:5000]"),
    )
    trainer.train()

    trainer.add_callback(TemplatesAtWork())
    templates: list[str] = [template.text for template in trainer.p2o.templates]
    return templates
