"""Kills runs at random moments over both phases (SIGKILL), resumes them, and compares how they end: the weights bit for
bit, and the ledger of every rollout and token.

    python benchmarks/kill_and_resume.py --kills 50
    python benchmarks/kill_and_resume.py --kills 30 --processes 2          # one of them, whichever, is killed
    python benchmarks/kill_and_resume.py --kills 30 --during checkpoint    # while one is being written

The runs are the embedded world in small: three epochs with two prompt phases, in float32 on one thread. The reward is a
hash of the completion, so that whatever the model can do there are successes, hard questions and templates.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import forked

from p2o.checkpointing import STAGING_DIR
from p2o.seeding import derive_seed

WRITING = 0.3
"""Seconds within which, from its beginning, the writing of a checkpoint is interrupted, or just over."""


@dataclass(frozen=True)
class Kill:
    """When a run was killed, and at what, what it went on from, and whether it ended the same.

    Args:
        phase: the phase under way, or "checkpoint" where one was being written.
    """

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
    path, processes = Path(directory), int(os.environ.get("WORLD_SIZE", 1))

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
            per_device_train_batch_size=16 // processes,
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
            per_device_eval_batch_size=16 // processes,
            save_strategy="steps",
            save_steps=2,
            save_total_limit=2,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            ddp_backend="gloo" if processes > 1 else None,
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
    if trainer.is_world_process_zero():
        (path / "end").write_text(digest.hexdigest())


@dataclass(frozen=True)
class Job:
    """A run in a directory, of one or several processes."""

    directory: Path
    processes: list[Any]

    @classmethod
    def start(cls, directory: Path, count: int, *, resume: bool = False) -> "Job":
        given = {"logs": directory, "processes": count, "launched": count > 1}
        return cls(directory, forked.start(run_to_the_end, str(directory), resume, **given))

    def is_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self, which: int) -> bool:
        """Kills one of its processes, and then the others, as a launcher would; whether there was one to kill."""
        self.processes[which].kill()
        self.processes[which].join()
        for process in self.processes:
            process.kill()
            process.join()
        return bool(self.processes[which].exitcode == -signal.SIGKILL)

    def end(self) -> str:
        """What it ended with."""
        for process in self.processes:
            process.join()
        if any(process.exitcode for process in self.processes):
            raise RuntimeError(f"The run failed:\n{forked.printed(self.directory)[-4000:]}")
        return (self.directory / "end").read_text()

    def wait_for(self, moment: str, rng: random.Random, seconds: float) -> str:
        """Waits for a random moment of this kind in a run of so many seconds; returns what is under way then."""
        if moment == "checkpoint":
            number, seen, before = rng.randrange(5), set[str](), ""
            while self.is_alive() and len(seen) <= number:
                before = next((path.name for path in (self.directory / STAGING_DIR).glob("*")), before)
                seen |= {before} - {""}
                time.sleep(0.001)
            time.sleep(rng.uniform(0, WRITING))
            return moment if any((self.directory / STAGING_DIR).glob("*")) else _phase(self.directory)
        if moment == "policy":
            time.sleep(rng.uniform(0.05, 0.95) * seconds)
        while self.is_alive() and _phase(self.directory) != moment:
            time.sleep(0.005)
        if moment == "prompt":
            time.sleep(rng.uniform(0, 0.2 * seconds))
        return _phase(self.directory)


def kill_and_resume(
    kills: int, seed: int, work: Path, processes: int = 1, moments: Sequence[str] = ("policy", "prompt")
) -> list[Kill]:
    """Kills `kills` runs, each at one of the `moments` in turn, and resumes each to its end."""
    straight = work / "straight"
    straight.mkdir(parents=True)
    for process in forked.start(_nothing, logs=straight):  # the first one waits for the imports
        process.join()
    began = time.monotonic()
    expected = Job.start(straight, processes).end()
    seconds = time.monotonic() - began

    rng = random.Random(derive_seed(seed, "kills"))
    results: list[Kill] = []
    while len(results) < kills:
        directory = work / f"killed-{len(results)}"
        directory.mkdir()
        began = time.monotonic()
        job = Job.start(directory, processes)
        phase = job.wait_for(moments[len(results) % len(moments)], rng, seconds)
        second = time.monotonic() - began
        if job.kill(rng.randrange(processes)):  # else it was over already; another moment is drawn
            checkpoints = sorted(directory.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
            kept = checkpoints[-1].name if checkpoints else "the start"
            identical = Job.start(directory, processes, resume=True).end() == expected
            results.append(Kill(round(second, 2), phase, kept, identical))
        shutil.rmtree(directory)
    return results


def _nothing() -> None: ...


def _phase(directory: Path) -> str:
    path = directory / "phase"
    return (path.read_text() if path.exists() else "") or "start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--during", choices=["phases", "checkpoint"], default="phases", help="when they are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        moments = ("checkpoint",) if arguments.during == "checkpoint" else ("policy", "prompt")
        results = kill_and_resume(arguments.kills, arguments.seed, Path(work), arguments.processes, moments)
    for kill in results:
        verdict = "identical" if kill.identical else "DIFFERENT"
        print(f"killed after {kill.second:6.2f} s in {kill.phase:10} · resumed from {kill.checkpoint:14} · {verdict}")
    same = sum(kill.identical for kill in results)
    of_interest = moments[-1]
    died = sum(kill.phase == of_interest for kill in results)
    where = "while a checkpoint was written" if of_interest == "checkpoint" else "in a prompt phase"
    print(f"{same} of {len(results)} runs ended with identical weights and ledgers; {died} died {where}.")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(kill) for kill in results], indent=1))
    if same < len(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
