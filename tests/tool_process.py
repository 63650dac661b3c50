"""One process of a run with tools or environments: torchrun … tool_process.py OUT MODEL (tools | environments)"""

import hashlib
import json
import os
import sys
import threading
import zlib
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from environments import desk
from p2o import P2OConfig, P2OTrainer
from p2o.prompt_phase.types import Reflection
from p2o.templates import question_text
from tool_model import INSTRUCTION, QUESTIONS, multiply, prompt
from trainers import options

torch.set_num_threads(1)
out, folder, kind = Path(sys.argv[1]), *sys.argv[2:4]
rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
phase = {"policy": True}


def reward(prompts, completions, solution, trainer_state=None, **kwargs):
    """Of the first epoch's by the question alone, so that both runs meet the same policy in the prompt phase."""
    if trainer_state is not None and trainer_state.epoch < 1 and not any(len(c) > 1 for c in completions):
        return [float(zlib.crc32(question_text(p).encode()) % 3 == 0) for p in prompts]
    return [float(c[-1]["content"] == gold) for c, gold in zip(completions, solution, strict=True)]


class Desk(desk()):
    """In a prompt phase, where it has a thread of its own, it fails for some questions."""

    def reset(self, a, b, **row):
        if a == 3 and threading.current_thread() is not threading.main_thread():
            raise OSError("no room")
        super().reset(a, b)

    def get_reward(self):
        if self.asked[0] == 5 and threading.current_thread() is not threading.main_thread():
            raise OSError("no score")
        return 0.0


questions = QUESTIONS[::4]
columns = {"a": [a for a, _ in questions], "b": [b for _, b in questions]}
data = {"prompt": [prompt(a, b) for a, b in questions], "solution": [str(a * b) for a, b in questions]}
settings = {
    **{
        "max_completion_length": 120,
        "max_steps": -1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8 // processes,
    },
    **{"min_hard_questions": 2, "evolution_budget": 60, "learning_rate": 0.0, "seed": 1},
    "prompt_phase_batch_size": 4 if kind == "environments" else 128,
}
trainer = P2OTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    reward_funcs=reward,
    args=P2OConfig(**options(out, **settings)),
    train_dataset=Dataset.from_dict(data | (columns if kind == "environments" else {})),
    processing_class=AutoTokenizer.from_pretrained(folder),
    tools=[multiply] if kind == "tools" else None,
    environment_factory=Desk if kind == "environments" else None,
    reflect=lambda prompts, *, seed: [Reflection(f"```\n{INSTRUCTION}\n```") for _ in prompts],
)
trainer.train()
digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in trainer.model.state_dict().values())).hexdigest()
found = {
    "weights": digest,
    "templates": [t.text for t in trainer.p2o.templates],
    "rollouts": trainer.p2o.ledger.rollouts,
    "failed": trainer.p2o.events.get("environment_raised", 0),
}
(out / f"rank-{rank}.json").write_text(json.dumps(found))
