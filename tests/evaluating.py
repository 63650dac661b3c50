"""One process of evaluations, for test_evaluation_processes.py: torchrun … evaluating.py OUT OPTIONS

OPTIONS is a JSON list of evaluations, each {"questions": {set: count}, "settings": {option: value}}. OUT gets a file a
process, with what each evaluation said.
"""

import json
import os
import sys
import zlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.pico import model_path, world
from p2o.templates import question_text

torch.set_num_threads(1)
out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
tokenizer = AutoTokenizer.from_pretrained(model_path())
judged = []


def by_text(prompts, completions, log_metric, log_extra, **kwargs):
    judged.append(len(prompts))
    texts = [completion[0]["content"] for completion in completions]
    log_metric("share_of_short", sum(len(text) < 20 for text in texts) / len(texts))
    log_extra("length", [len(text) for text in texts])
    return [None if zlib.crc32(text.encode()) % 7 == 0 else float(zlib.crc32(text.encode()) % 3) for text in texts]


class Watch(P2OCallback):
    def __init__(self):
        self.seen = []

    def on_evaluation_rollouts(self, args, state, control, rollouts, dataset, **kwargs):
        for rollout in rollouts:
            (message,) = rollout.completion
            self.seen.append([dataset, question_text(rollout.prompt), message["content"], str(rollout.reward)])


def evaluation(number, questions, settings):
    watch = Watch()
    trainer = P2OTrainer(
        model=model_path() if settings.get("use_vllm") else AutoModelForCausalLM.from_pretrained(model_path()),
        reward_funcs=by_text,
        args=P2OConfig(
            **{
                "output_dir": str(out / f"run-{number}"),
                "num_generations": 4,
                "per_device_train_batch_size": 48 // int(os.environ["WORLD_SIZE"]),
                "max_completion_length": 24,
                "beta": 0.1,
                "bf16": False,
                "use_cpu": True,
                "ddp_backend": "gloo",
                "report_to": "none",
                "disable_tqdm": True,
                **settings,
            }
        ),
        train_dataset=world.train_dataset(hard=8, easy=8),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    data = world.train_dataset(hard=16, easy=16)
    first, sets = 0, {}
    for name, count in questions.items():
        sets[name] = data.select(range(first, first + count))
        first += count
    judged.clear()
    metrics = trainer.evaluate(sets if list(sets) != [""] else sets[""])
    extra = list(trainer._logs["extra"]["length"])
    return {
        "metrics": {name: value for name, value in metrics.items() if "runtime" not in name and "second" not in name},
        "rollouts": watch.seen,
        "judged": sum(judged),
        "table": [len(trainer._logs["prompt"]), len(extra)],
        "extra": extra,
        "ledger": [trainer.p2o.ledger.rollouts["evaluation"], trainer.p2o.ledger.completion_tokens["evaluation"]],
    }


said = [evaluation(number, **one) for number, one in enumerate(json.loads(sys.argv[2]))]
(out / f"rank-{rank}.json").write_text(json.dumps(said))
