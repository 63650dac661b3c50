"""The configuration of a small run of `p2o train`, and its data."""

import yaml

from p2o.pico import world

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


def write_data(directory):
    for name, rows in (
        ("train", world.train_dataset(hard=12, easy=4)),
        ("test", world.eval_dataset(per_split=4)["hard"]),
    ):
        rows.to_json(directory / f"{name}.jsonl")


def write_config(directory, **changes):
    """The file of a small run with these changes, on the data of the same directory."""
    settings = {**SMALL, "dataset_name": str(directory / "train.jsonl"), **changes}
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return str(path)
