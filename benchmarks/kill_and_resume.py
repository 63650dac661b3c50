"""Kills runs at random moments over both phases (SIGKILL), resumes them, and compares how they end: the weights bit for
bit, and the ledger of every rollout and token.

    python benchmarks/kill_and_resume.py --kills 50

The runs are the embedded world in small: three epochs with two prompt phases, in float32 on one thread. The reward is a
hash of the completion, so that whatever the model can do there are successes, hard questions and templates.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2o.seeding import derive_seed

MODULES = ["p2o.trainer", "p2o.pico.world"]


@dataclass(frozen=True)
class Kill:
    """When a run was killed, in which phase that was, what it went on from, and whether it ended the same."""

    second: float
    phase: str
    checkpoint: str
    identical: bool


def chance(completions: list[Any], **kwargs: Any) -> list[float]:
    """1 for one completion in five, by its text."""
    return [float(zlib.crc32(c[-1]["content"].encode()) % 5 == 0) for c in completions]


def run_to_the_end(directory: str, resume: bool) -> None:
    """Trains in `directory`; leaves a hash of weights and ledger in `end` and the phase under way in `phase`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from p2o import P2OCallback, P2OConfig, P2OTrainer
    from p2o.checkpointing import newest_checkpoint
    from p2o.pico import model_path, world

    torch.set_num_threads(1)
    path = Path(directory)

    class Tell(P2OCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (path / "phase").write_text("policy")

        def on_prompt_phase_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (path / "phase").write_text("prompt")

    trainer = P2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32),
        reward_funcs=chance,
        args=P2OConfig(
            output_dir=directory,
            num_generations=4,
            reused_rollouts_per_group=1,
            per_device_train_batch_size=16,
            num_train_epochs=3,
            learning_rate=1e-3,
            max_completion_length=48,
            min_hard_questions=2,
            evolution_budget="40",
            parents_per_iteration=2,
            reflection_prompt=world.REFLECTION_PROMPT,
            reflection_max_tokens=48,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=3,
            per_device_eval_batch_size=16,
            save_strategy="steps",
            save_steps=2,
            save_total_limit=2,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=world.train_dataset(hard=12, easy=4),
        eval_dataset=world.eval_dataset(per_split=4)["easy"],
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        feedback_func=world.feedback,
        callbacks=[Tell()],
    )
    checkpoint = newest_checkpoint(path) if resume else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(json.dumps(asdict(trainer.p2o.ledger)).encode())
    assert trainer.p2o.templates and trainer.p2o.kept, "a run without templates would show nothing"
    (path / "end").write_text(digest.hexdigest())


def kill_and_resume(kills: int, seed: int, work: Path) -> list[Kill]:
    """Kills `kills` runs, half of them about a prompt phase and half in a policy phase, and resumes each to its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)

    def start(directory: Path, resume: bool = False) -> Any:
        # Its chatter belongs to nobody.
        process = context.Process(target=_quietly, args=(str(directory), resume))
        process.start()
        return process

    def finish(directory: Path, resume: bool = False) -> str:
        process = start(directory, resume)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"The run failed:\n{(directory / 'log').read_text()[-4000:]}")
        return (directory / "end").read_text()

    imported = context.Process(target=_nothing)
    imported.start()  # the first one waits for the imports
    imported.join()
    straight = work / "straight"
    straight.mkdir(parents=True)
    began = time.monotonic()
    expected = finish(straight)
    seconds = time.monotonic() - began

    rng = random.Random(derive_seed(seed, "kills"))
    results = []
    while len(results) < kills:
        directory = work / f"killed-{len(results)}"
        directory.mkdir()
        began = time.monotonic()
        process = start(directory)
        if len(results) % 2:
            while process.is_alive() and _phase(directory) != "prompt":
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.2 * seconds))
        else:
            time.sleep(rng.uniform(0.05, 0.95) * seconds)
            while process.is_alive() and _phase(directory) != "policy":
                time.sleep(0.005)
        phase, second = _phase(directory), time.monotonic() - began
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:  # else it was over already; another moment is drawn
            checkpoints = sorted(directory.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
            kept = checkpoints[-1].name if checkpoints else "the start"
            identical = finish(directory, resume=True) == expected
            results.append(Kill(round(second, 2), phase, kept, identical))
        shutil.rmtree(directory)
    return results


def _nothing() -> None: ...


def _phase(directory: Path) -> str:
    path = directory / "phase"
    return (path.read_text() if path.exists() else "") or "start"


def _quietly(directory: str, resume: bool) -> None:
    log = os.open(Path(directory) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    run_to_the_end(directory, resume)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        results = kill_and_resume(arguments.kills, arguments.seed, Path(work))
    for kill in results:
        verdict = "identical" if kill.identical else "DIFFERENT"
        print(f"killed after {kill.second:6.2f} s in {kill.phase:6} · resumed from {kill.checkpoint:14} · {verdict}")
    same = sum(kill.identical for kill in results)
    prompt = sum(kill.phase == "prompt" for kill in results)
    print(f"{same} of {len(results)} runs ended with identical weights and ledgers; {prompt} died in a prompt phase.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(kill) for kill in results], indent=1))
    if same < len(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
