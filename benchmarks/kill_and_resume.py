"""Kills runs at random moments over both phases (SIGKILL), resumes them, and compares how they end: the weights bit for
bit, and the ledger of every rollout and token.

    python benchmarks/kill_and_resume.py --kills 100
    python benchmarks/kill_and_resume.py --kills 30 --processes 2          # one of them, whichever, is killed
    python benchmarks/kill_and_resume.py --kills 30 --during checkpoint    # while one is being written
    VLLM_CPU_KVCACHE_SPACE=1 python benchmarks/kill_and_resume.py --kills 30 --vllm_server

A server of vLLM samples with a generator of its own, so that no two runs are alike. What is compared then are the
rollouts of the policy phase and of evaluation; those of prompt phases have to be as many as their journals hold; and
every epoch has to have asked each question once, whenever it was interrupted.

The runs are the embedded world in small: three epochs with two prompt phases, in float32 on one thread. The reward is a
hash of the completion, so that whatever the model can do there are successes, hard questions and templates.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import forked
from chance import chance
from p2o.checkpointing import STAGING_DIR
from p2o.seeding import derive_seed
from vllm_server import vllm_server

STEPS, BATCHES_OF_A_PHASE = 12, 8
"""Of a run, and of rollouts and reflections that its prompt phases have at least, or nearly always."""
LATER = {"policy": 0.5, "prompt": 0.1, "checkpoint": 0.15}
"""Seconds within which, from the beginning of what it is in, a run is killed."""


@dataclass(frozen=True)
class Kill:
    """When a run was killed, and at what, what it went on from, and whether it ended the same.

    Args:
        phase: the phase under way, or "checkpoint" where one was being written.
        end: what it ended with, where that differs.
    """

    second: float
    phase: str
    checkpoint: str
    identical: bool
    end: str = ""


def run_to_the_end(directory: str, resume: bool, server: str | None = None) -> None:
    """Trains in `directory`; leaves what it ended with in `end` and the phase under way in `phase`.

    Args:
        server: URL of vLLM's, which samples; transformers does when None.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from p2o import P2OCallback, P2OConfig, P2OTrainer
    from p2o.checkpointing import newest_checkpoint
    from p2o.pico import model_path, world
    from p2o.templates import question_text

    torch.set_num_threads(1)
    path, processes = Path(directory), int(os.environ.get("WORLD_SIZE", 1))
    engine = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server} if server else {}

    class Tell(P2OCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (path / "phase").write_text("policy")

        def on_prompt_phase_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (path / "phase").write_text("prompt")

        def on_rollouts(self, args: Any, state: Any, control: Any, *, rollouts: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                asked = [question_text(rollout.prompt) for rollout in rollouts[:: args.num_generations]]
                with open(path / "asked", "a") as file:
                    file.write(json.dumps([state.global_step, asked]) + "\n")

    trainer = P2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32),
        reward_funcs=chance,
        args=P2OConfig(
            output_dir=directory,
            num_generations=4,
            reused_rollouts_per_group=0 if server else 1,
            **engine,
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
    assert server or (trainer.p2o.templates and trainer.p2o.kept), "a run without templates would show nothing"
    if trainer.is_world_process_zero():
        end = counts(trainer, path) if server else digest(trainer)
        (path / "end").write_text(end)


def digest(trainer: Any) -> str:
    """Of the weights, bit for bit, and of the ledger."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(json.dumps(asdict(trainer.p2o.ledger)).encode())
    return digest.hexdigest()


def counts(trainer: Any, directory: Path) -> str:
    """Of rollouts, by what they were for, and whether every epoch asked each question once.

    Args:
        directory: its file `asked` has lines of a step and the questions of its batch; of a step that was repeated the
            last one is what counts.
    """
    from p2o.templates import question_text

    batches = dict(json.loads(line) for line in (directory / "asked").read_text().splitlines())
    epochs, steps = int(trainer.args.num_train_epochs), trainer.state.max_steps // int(trainer.args.num_train_epochs)
    every = sorted(question_text(row["prompt"]) for row in trainer.train_dataset)
    of_epochs = [range(epoch * steps, (epoch + 1) * steps) for epoch in range(epochs)]
    spent = trainer.p2o.ledger.rollouts
    missing = _journaled(directory) - spent["evolution_feedback"] - spent["evolution_dev"]
    return json.dumps(
        {
            "policy": spent["policy"],
            "evaluation": spent["evaluation"],
            "of prompt phases, not counted": missing,
            "epochs with each question once": [
                sorted(chain.from_iterable(batches[step] for step in epoch)) == every for epoch in of_epochs
            ],
        }
    )


def _journaled(directory: Path) -> int:
    """Rollouts in the journals of a run's prompt phases."""
    lines = chain.from_iterable(path.read_text().splitlines() for path in directory.glob("evolution/*/journal.jsonl"))
    records = [record for record in map(json.loads, lines) if record.get("kind") in ("feedback", "dev")]
    return sum(len(record["result"]) for record in records)


@dataclass(frozen=True)
class Job:
    """A run in a directory, of one or several processes."""

    directory: Path
    processes: list[Any]

    @classmethod
    def start(cls, directory: Path, count: int, server: str | None = None, *, resume: bool = False) -> "Job":
        given = {"logs": directory, "processes": count, "launched": count > 1}
        return cls(directory, forked.start(run_to_the_end, str(directory), resume, server, **given))

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

    def wait_for(self, moment: str, rng: random.Random) -> str:
        """Waits for a random moment of this kind, by what the run has done; returns what is under way then."""
        if moment == "checkpoint":
            number, seen, before = rng.randrange(5), set[str](), ""
            while self.is_alive() and len(seen) <= number:
                before = next((path.name for path in (self.directory / STAGING_DIR).glob("*")), before)
                seen |= {before} - {""}
                time.sleep(0.001)
        elif moment == "policy":
            self._wait_for_lines(rng.randrange(STEPS), self.directory / "asked", moment)
        else:
            journal = self.directory / "evolution" / f"epoch-{rng.choice((1, 2)):03}" / "journal.jsonl"
            self._wait_for_lines(1 + rng.randrange(BATCHES_OF_A_PHASE), journal, moment)
        time.sleep(rng.uniform(0, LATER[moment]))
        if moment == "checkpoint" and any((self.directory / STAGING_DIR).glob("*")):
            return moment
        return _phase(self.directory)

    def _wait_for_lines(self, count: int, path: Path, phase: str) -> None:
        """Until the file has as many, in this phase."""
        while self.is_alive() and (_phase(self.directory) != phase or _lines(path) < count):
            time.sleep(0.005)


def kill_and_resume(
    kills: int,
    seed: int,
    work: Path,
    processes: int = 1,
    moments: Sequence[str] = ("policy", "prompt"),
    server: str | None = None,
) -> Iterator[Kill]:
    """Kills `kills` runs, each at one of the `moments` in turn, and resumes each to its end.

    Yields:
        what became of them, and of further ones that were to be killed at such a moment and were killed after it.
    """
    straight = work / "straight"
    straight.mkdir(parents=True)
    for process in forked.start(_nothing, logs=straight):  # the first one waits for the imports
        process.join()
    expected = Job.start(straight, processes, server).end()
    if server and json.loads(expected)["of prompt phases, not counted"]:
        raise RuntimeError(f"The run that nobody killed is wrong already: {expected}")

    rng = random.Random(derive_seed(seed, "kills"))
    done = 0
    while done < kills:
        directory = work / "killed"
        directory.mkdir()
        began = time.monotonic()
        job = Job.start(directory, processes, server)
        phase = job.wait_for(moments[done % len(moments)], rng)
        second = time.monotonic() - began
        if job.kill(rng.randrange(processes)):  # else it was over already; another moment is drawn
            checkpoints = sorted(directory.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
            kept = checkpoints[-1].name if checkpoints else "the start"
            end = Job.start(directory, processes, server, resume=True).end()
            yield Kill(round(second, 2), phase, kept, end == expected, "" if end == expected else end)
            # The moment may be over before the kill; a run that was killed after it is not one of the wanted ones.
            done += phase == moments[done % len(moments)]
        shutil.rmtree(directory)


def _nothing() -> None: ...


def _phase(directory: Path) -> str:
    path = directory / "phase"
    return (path.read_text() if path.exists() else "") or "start"


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--during", choices=["phases", "checkpoint"], default="phases", help="when they are killed")
    parser.add_argument("--vllm_server", action="store_true", help="sample with a server of vLLM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    moments = ("checkpoint",) if arguments.during == "checkpoint" else ("policy", "prompt")
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        server = stack.enter_context(vllm_server(Path(work) / "server.log")) if arguments.vllm_server else None
        given = (arguments.kills, arguments.seed, Path(work), arguments.processes, moments, server)
        results = []
        for number, kill in enumerate(kill_and_resume(*given), 1):
            results.append(kill)
            verdict = "identical" if kill.identical else f"DIFFERENT: {kill.end}"
            where = f"{kill.second:6.2f} s in {kill.phase:10} · resumed from {kill.checkpoint:14}"
            print(f"{number:3} · killed after {where} · {verdict}", flush=True)
    same = sum(kill.identical for kill in results)
    of_interest = moments[-1]
    died = sum(kill.phase == of_interest for kill in results)
    where = "while a checkpoint was written" if of_interest == "checkpoint" else "in a prompt phase"
    what = "all rollouts and questions accounted for" if arguments.vllm_server else "identical weights and ledgers"
    said = f"{same} of {len(results)} runs ended with {what}; {died} died {where}."
    print(said)
    if arguments.json:
        content = {"said": [said], "kills": [asdict(kill) for kill in results]}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    if same < len(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
