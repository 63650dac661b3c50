import os

# Before torch is imported: two threads on two busy cores run slower than one, and results must not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pytest
import torch
import yaml
from hypothesis import settings

from p2o.pico import world

torch.set_num_threads(1)

# Helpers that assert something: a failure there shows its values, too.
pytest.register_assert_rewrite("either_engine", "trainers")

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


SMALL = {
    "model_name_or_path": "pico",
    "reward_funcs": ["pico"],
    "feedback_func": "pico",
    "num_generations": 4,
    "num_generations_eval": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "num_train_epochs": 2,
    "learning_rate": 1e-3,
    "max_completion_length": 48,
    "min_hard_questions": 2,
    "evolution_budget": 40,
    "parents_per_iteration": 2,
    "reflection_prompt": world.REFLECTION_PROMPT,
    "reflection_max_tokens": 48,
    "logging_steps": 1,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "num_threads": 1,
}


@pytest.fixture
def no_keys(monkeypatch):
    """No key of an endpoint in the environment."""
    for name in list(os.environ):
        if name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path):
    """A configuration file of a small run on the user's own data, and a function that changes it."""
    for name, rows in (
        ("train", world.train_dataset(hard=12, easy=4)),
        ("test", world.eval_dataset(per_split=4)["hard"]),
    ):
        rows.to_json(tmp_path / f"{name}.jsonl")

    def write(**changes):
        settings = {**SMALL, "dataset_name": str(tmp_path / "train.jsonl"), **changes}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
        return str(path)

    return write
