"""One process of a run on questions with images: torchrun … image_process.py OUT KIND (sampled | given)

sampled: completions are the model's, and it reflects, though what it proposes is replaced. given: completions depend on
the question and the rollout's place in its group, so that all of the training is the same however many processes.
"""

import json
import os
import random
import sys
import zlib
from dataclasses import fields, replace
from pathlib import Path

import torch

import vision_model
from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.images import MARK
from p2o.reflection.own_model import OwnReflection
from p2o.templates import question_text
from trainers import K, coin, options, weights

COUNTS = [1, 2, 0, 0, 1, 0, 2, 1]  # of two processes the second has no image in its part of the first batch
torch.set_num_threads(1)
out, kind, mode = Path(sys.argv[1]), *sys.argv[2:4]
rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Watch(P2OCallback):
    templated = 0

    def on_rollouts(self, args, state, control, p2o, rollouts, **kwargs):
        self.templated += sum(bool(rollout.template) for rollout in rollouts)


def reward(prompts, completions, images, trainer_state=None, **kwargs):
    """In the first epoch by the question alone, so that the prompt phase always meets the same policy."""
    for prompt, shown in zip(prompts, images, strict=True):
        blocks = [] if isinstance(prompt[-1]["content"], str) else prompt[-1]["content"]
        assert sum(block["type"] == "image" for block in blocks) == len(shown or [])
    if trainer.p2o.epoch == 0:
        return [float(zlib.crc32(question_text(prompt).encode()) % 3 == 0) for prompt in prompts]
    return coin(completions)


def given(prompts, trainer):
    contexts, completions = [], []
    for row, prompt in enumerate(prompts):
        contexts += trainer._tokenize_prompts([prompt])[0]
        asked_for = " ".join(question_text(prompt).split())  # alike in blocks and in one text
        draw = random.Random(zlib.crc32(f"{asked_for} {row % K}".encode()))
        letters = draw.choices(range(20, 80), k=draw.randint(2, 6))
        completions.append([*letters, trainer.processing_class.tokenizer.eos_token_id])
    return {"prompt_ids": contexts, "completion_ids": completions, "logprobs": None}


class Replaced(OwnReflection):
    """The model is asked, and shown the images."""

    def __call__(self, prompts, *, seed, images=()):
        assert [prompt.count(MARK) for prompt in prompts] == [len(shown) for shown in images or [()] * len(prompts)]
        asked.extend(len(shown) for shown in images)
        said = super().__call__(prompts, seed=seed, images=images)
        return [replace(one, text=f"```\nTry way {seed % 97 + n}.\n```") for n, one in enumerate(said)]


asked = []
settings = {
    **{"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 16 // processes, "optim": "sgd"},
    **{"max_completion_length": 8, "learning_rate": 0.3, "shuffle_dataset": False, "gradient_checkpointing": True},
    **{"min_hard_questions": 2, "evolution_budget": 40, "prompt_phase_batch_size": 2},
    **{"reflection_model": "reference" if kind == "gemma" else "policy", "reflection_max_tokens": 3},
    **{"context_ratio_min": 0.98, "context_ratio_max": 1.02, "ddp_backend": "gloo"},
}
model, processor = vision_model.make(kind)
questions = vision_model.questions(COUNTS)
if kind == "idefics":  # pads images to the largest of a batch, and whether the rest of a patch counts depends on that
    questions = questions.map(lambda row: {"images": [image.resize((16, 16)) for image in row["images"]]})
trainer = P2OTrainer(
    model=model,
    reward_funcs=reward,
    args=P2OConfig(**options(out, **settings)),
    train_dataset=questions,
    processing_class=processor,
    rollout_func=given if mode == "given" else None,
    callbacks=[watch := Watch()],
)
trainer.reflect = Replaced(**{field.name: getattr(trainer.reflect, field.name) for field in fields(OwnReflection)})
before = weights(trainer)
trainer.train()
after = weights(trainer)
ledger = trainer.p2o.ledger
found = {
    "hard_set": trainer.p2o.hard_set,
    "templates": [template.to_dict() for template in trainer.p2o.templates],
    "assignment": trainer.p2o.assignment,
    "evolved": {name: spent for name, spent in ledger.prompt_tokens.items() if name != "policy"},
    "rollouts": ledger.rollouts,
    "moved": max(float((after[name] - before[name]).abs().max()) for name in after),
    "templated": watch.templated,
    "shown to the model that reflects": sum(asked),
}
(out / f"rank-{rank}.json").write_text(json.dumps(found))
torch.save(after, out / f"rank-{rank}.pt")
