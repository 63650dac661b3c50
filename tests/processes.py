"""One process of a small run of P²O, for test_processes.py: torchrun … processes.py OUT OPTIONS-AS-JSON

What the policy phase earns depends on the question alone, so that no gradient arises in the first epoch, and the prompt
phase meets the same policy whatever the number of processes.
"""

import hashlib
import json
import os
import sys
import time
import zlib
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOTrainer

from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.pico import model_path, world
from p2o.prompt_phase.types import Reflection
from p2o.templates import question_text
from trainers import brute_force_logps, coin

torch.set_num_threads(1)
out = Path(sys.argv[1])
changes = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
sharded, partitioned = (os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
resume, fail, fail_at, lora, slow = (changes.pop(name, None) for name in ("resume", "fail", "fail_at", "lora", "slow"))
rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
phase = "policy"
policy_tokens = 0


class Tell(P2OCallback):
    def on_prompt_phase_begin(self, *args, **kwargs):
        global phase
        phase = "prompt"

    def on_prompt_phase_end(self, args, state, control, p2o, **kwargs):
        global phase
        phase = "policy"


def two_contexts():
    return bool(trainer.p2o.assignment or trainer.p2o.kept)


def reward(prompts, completions, completion_ids, **kwargs):
    global policy_tokens
    if phase == "policy" and not two_contexts():
        policy_tokens += sum(map(len, completion_ids))
    if trainer.p2o.epoch == 0:
        return [float(zlib.crc32(question_text(prompt).encode()) % 3 == 0) for prompt in prompts]
    if phase == fail and rank == processes - 1 and fail_at in (None, trainer.state.global_step):
        raise RuntimeError(f"the {phase} phase is too much for rank {rank}")
    return coin(completions)


def feedback(completion, row):
    if fail == "feedback":
        raise RuntimeError("the feedback is too much for the first process")
    return world.feedback(completion, row)


def reflect_slowly(prompts, *, seed):
    global slow
    time.sleep(slow)
    slow = 0.1
    return [Reflection("```\nThink before you answer.\n```") for _ in prompts]


trainer = P2OTrainer(
    model=model_path(),
    reward_funcs=reward,
    args=P2OConfig(
        **{
            "output_dir": str(out),
            "model_init_kwargs": {"dtype": "float32"},
            "num_generations": 4,
            "per_device_train_batch_size": 16 // processes,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "max_completion_length": 16,
            "min_hard_questions": 2,
            "evolution_budget": "110",
            "parents_per_iteration": 3,
            "prompt_phase_batch_size": 8,
            "reflection_prompt": world.REFLECTION_PROMPT,
            "reflection_max_tokens": 48,
            "logging_steps": 1,
            "save_strategy": "no",
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "ddp_backend": "gloo",
            "report_to": "none",
            "disable_tqdm": True,
            **changes,
        }
    ),
    train_dataset=world.train_dataset(hard=12, easy=4),
    processing_class=AutoTokenizer.from_pretrained(model_path()),
    feedback_func=feedback,
    reflect=reflect_slowly if slow else None,
    callbacks=[Tell()],
    peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
)
if sharded:
    # Accelerate does this by itself on GPUs, and only there.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    trainer.is_fsdp_enabled = True
    for part in (trainer, getattr(trainer, "vllm_generation", None)):
        if part is not None:
            part._dist = type(part._dist)(trainer.accelerator)


def rows_of(output):
    """Prompt, completion and advantages of each row, without padding."""
    for row, advantages in enumerate(output["advantages"]):
        said = output["completion_mask"][row].bool()
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()]
        yield [x.tolist() for x in (prompt, output["completion_ids"][row][said], advantages.expand(len(said))[said])]


def watch(name, batches):
    original = getattr(trainer, name)

    def watched(*args):
        result = original(*args)
        output = result[0] if isinstance(result, tuple) else result
        batches.append({"rows": list(rows_of(output)), "items": int(output["num_items_in_batch"])})
        return result

    setattr(trainer, name, watched)


def count_rollouts_to_generate():
    """Those of batches of two contexts, some of whose rollouts may be kept ones and are not generated."""
    complete = trainer._complete

    def counted(contexts, *images):
        global policy_tokens
        completions = complete(contexts, *images)
        if phase == "policy":
            asked.append(len(contexts))
            policy_tokens += sum(map(len, completions[0]))
        return completions

    trainer._complete = counted


def compare_with_the_engine():
    """Whoever asks the engine is told about what it has asked: log-probabilities are those of that very context."""
    ask = GRPOTrainer._generate_single_turn

    def compared(trainer, contexts, *args):
        completions, told = ask(trainer, contexts, *args)
        for context, completion, logps in zip(contexts, completions, told, strict=True):
            with torch.no_grad():
                expected = brute_force_logps(trainer.model, context, completion)
            gaps.append((expected - torch.tensor(logps)).abs().max().item())
        return completions, told

    GRPOTrainer._generate_single_turn = compared


asked, gaps = [], []
count_rollouts_to_generate()
if trainer.use_vllm:
    compare_with_the_engine()
sampled, learnt = [], []
watch("_sample", sampled)
watch("_generate_and_score_completions", learnt)
checkpoint = out / f"checkpoint-{resume}" if resume else None
trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
digest = hashlib.sha256()
weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters(remove_duplicate=False))
assert sharded == any(hasattr(weight, "full_tensor") for weight in weights.values())
assert partitioned == any(hasattr(weight, "ds_id") for weight in weights.values())
for name, weight in sorted(weights.items()):
    with trainer._dist.gather_params([weight]):
        full = weight.full_tensor() if sharded else weight
        digest.update(name.encode() + full.detach().numpy().tobytes())
state = trainer.p2o.to_dict()
(out / f"rank-{rank}.json").write_text(
    json.dumps(
        {
            **{name: state[name] for name in ("hard_set", "templates", "assignment", "ledger", "events")},
            "kept": sorted(trainer.p2o.kept),
            "policy_tokens": policy_tokens,
            "sampled": sampled,
            "learnt": learnt,
            "weights": digest.hexdigest(),
            "asked": asked,
            "engine_gaps": gaps,
        }
    )
)
