"""One process of a rehearsal: `p2o train` with a clock, made-up rollouts and passes cut short.

`rehearsal.py` starts it, with P2O_REHEARSAL (the folder for what was measured) and P2O_REHEARSAL_PLAN (`full`, `seen`
and `kill_after` as JSON) in the environment.
"""

import importlib
import json
import os
import random
import re
import resource
import sys
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

THEIRS = ("TRL and transformers", "engine (made up)", "passes (cut short)")
KILLED = 9


# -- the clock ---------------------------------------------------------------------------------------------------------


@dataclass
class Stopwatch:
    """Seconds by what the run was doing and for which purpose; the innermost purpose has them.

    Of the clock, and of this process on the processors, which other work on the same machine does not distort.
    """

    segment: str = "start"
    seconds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    )
    batches: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    stack: list[str] = field(default_factory=lambda: [THEIRS[0]])
    since: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def charge(self) -> None:
        now = (time.perf_counter(), time.process_time())
        spent = self.seconds[self.segment][self.stack[-1]]
        for i in range(2):
            spent[i] += now[i] - self.since[i]
        self.since = now

    def begin(self, segment: str) -> None:
        self.charge()
        self.segment = segment
        self.batches[segment] += 1

    @contextmanager
    def doing(self, purpose: str) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.charge()
        self.stack.append(purpose)
        try:
            yield
        finally:
            self.charge()
            self.stack.pop()

    def watch(self, owner: Any, name: str, purpose: str) -> None:
        """Has a function or method of this name charged to a purpose."""
        function = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.doing(purpose):
                return function(*args, **kwargs)

        setattr(owner, name, watched)


WATCH = Stopwatch()

# Where our code begins, and where it calls theirs: the module, the class or nothing, the names, the purpose.
PLACES: tuple[tuple[str, str, str, str], ...] = (
    (
        "p2o.trainer",
        "P2OTrainer",
        "_generate_and_score_completions _sample _generate _generate_single_turn",
        "sampling",
    ),
    ("p2o.trainer", "P2OTrainer", "_calculate_rewards", "rewards"),
    ("p2o.trainer", "P2OTrainer", "_compute_loss _get_per_token_logps_and_entropies", "loss"),
    ("p2o.trainer", "P2OTrainer", "_begin_epoch _generate_for_evolution", "evolution"),
    ("p2o.trainer", "", "report_rollouts", "metrics, panel and run directory"),
    ("p2o.trainer", "P2OTrainer", "_notify log", "metrics, panel and run directory"),
    ("p2o.trainer", "P2OTrainer", "_save_checkpoint", "checkpoints"),
    ("p2o.policy_phase.phase", "PolicyPhase", "plan", "assignment"),
    ("p2o.policy_phase.phase", "PolicyPhase", "charge mine", "mining"),
    ("p2o.policy_phase.phase", "PolicyPhase", "prepare_distillation mask", "context distillation"),
    ("p2o.prompt_phase.policy_rollouts", "PolicyRollouts", "__call__", "evolution's rollouts"),
    ("p2o.prompt_phase.journal", "Journal", "__init__ call", "journal"),
    ("p2o.cli.train", "", "prepare", "reading and checking the data"),
    ("p2o.input_checks", "", "check_questions check_prompt_lengths", "reading and checking the data"),
    ("p2o.cli.train", "", "write_report", "report"),
    ("p2o.state", "P2OState", "load", "resuming"),
    ("p2o.identity", "RunIdentity", "fingerprint", "resuming"),
    ("p2o.verifiers.rewards", "", "math", "verifiers"),
    ("trl", "GRPOTrainer", "_generate_and_score_completions _generate _generate_single_turn", THEIRS[0]),
    ("trl", "GRPOTrainer", "_calculate_rewards _compute_loss log", THEIRS[0]),
    ("transformers", "Trainer", "_save_checkpoint log", THEIRS[0]),
    ("trl", "GRPOTrainer", "_get_per_token_logps_and_entropies", THEIRS[2]),
)


def watch_everything() -> None:
    for module, kind, names, purpose in PLACES:
        owner = importlib.import_module(module)
        for name in names.split():
            WATCH.watch(getattr(owner, kind) if kind else owner, name, purpose)


# -- what is made up ---------------------------------------------------------------------------------------------------

WORDS = (
    "consider suppose therefore since the sum of both sides equals a positive integer so we find that each root "
    "divides this product and by symmetry it follows hence let me check once more whether x satisfies 3x + 5 = 2y - 7"
).split()


def problem(number: int) -> dict[str, Any]:
    """A row in the layout of DeepScaleR, of ordinary length; its text begins with its number."""
    rng = random.Random(number)
    text = (
        f"Problem {number}. Let n = {number % 97 + 2}; {' '.join(rng.choices(WORDS, k=rng.randint(30, 90)))}. Find m."
    )
    return {"problem": text, "answer": answer(number)}


def answer(number: int) -> str:
    top, bottom = number * 7 % 1009, number % 5 + 1
    return str(top) if bottom == 1 else f"\\frac{{{top * bottom + 1}}}{{{bottom}}}"


def chance(number: int, instruction: str) -> float:
    """How likely a rollout succeeds: a quarter of the questions is hard, a fifth easy; instructions help some."""
    kind = zlib.crc32(f"kind {number}".encode()) % 100
    if instruction:
        return 0.6 if zlib.crc32(f"{number} {instruction}".encode()) % 100 < 30 else 0.02
    return 0.0 if kind < 25 else 1.0 if kind < 45 else 0.5


def propose(prompts: Sequence[str], *, seed: int) -> list[Any]:
    """Reflections that think at length before they propose."""
    from p2o.completions import Completion

    made = []
    for number, prompt in enumerate(prompts):
        rng = random.Random(f"{seed} {number}")
        thought = " ".join(rng.choices(WORDS, k=rng.randint(500, 5000)))
        text = f"<think>\n{thought}\n</think>\n```\n{' '.join(rng.choices(WORDS, k=50))}\n```"
        made.append(Completion(text, prompt_tokens=len(prompt) // 4, completion_tokens=len(text) // 4))
    return made


class Engine:
    """In the place of TRL's vLLM backend: completions of drawn lengths at once, with their log-probabilities."""

    mode, tensor_parallel_size = "colocate", 1
    kill_after: int | None = None  # rollouts of a prompt phase

    def __init__(self, *args: Any, processing_class: Any, max_completion_length: int, **kwargs: Any) -> None:
        length = kwargs.get("max_model_length") or 40_960
        engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=length))
        self.llm = SimpleNamespace(llm_engine=engine)
        self.tokenizer, self.longest = processing_class, max_completion_length
        rng = random.Random(0)
        text = " ".join(rng.choices(WORDS, k=self.longest + 2000))
        self.stock: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.logprobs = [[-rng.expovariate(3)] for _ in range(self.longest)]
        self.phase_rollouts = 0

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list[list[int]], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with WATCH.doing(THEIRS[1]):
            if WATCH.segment == "prompt phase":
                self.phase_rollouts += len(prompts)
                if self.kill_after is not None and rank() == 0 and self.phase_rollouts > self.kill_after:
                    leave(killed=True)
            import torch

            rng = random.Random(int(torch.randint(2**62, ())))
            texts = self.tokenizer.batch_decode(prompts)
            ids = [self.complete(text, rng) for text in texts]
            return prompts, ids, [self.logprobs[: len(one)] for one in ids], None

    def complete(self, prompt: str, rng: random.Random) -> list[int]:
        found = re.search(r"Problem (\d+)\.", prompt)
        if found is None:
            return self.stock[:8]
        number, instruction = int(found[1]), prompt[: found.start()].rsplit(">", 1)[-1].strip()
        right = rng.random() < chance(number, instruction)
        length = min(int(rng.uniform(0.005, 1.03) * self.longest), self.longest)
        start = rng.randrange(1000)
        if length == self.longest:
            return self.stock[start : start + length]  # cut off
        said = answer(number if right else number + 1)
        end = self.tokenizer(f"\nThe answer is \\boxed{{{said}}}.", add_special_tokens=False)["input_ids"]
        return [*self.stock[start : start + max(length - len(end) - 1, 0)], *end, self.tokenizer.eos_token_id]


def cut_passes(seen: int) -> None:
    """Has passes see so many tokens of a completion only; the others get a constant."""
    from torch.nn.functional import pad
    from trl import GRPOTrainer

    whole = GRPOTrainer._get_per_token_logps_and_entropies

    def cut(trainer: Any, model: Any, ids: Any, mask: Any, width: int, *args: Any, **kwargs: Any) -> Any:
        left = max(width - seen, 0)
        end = ids.size(1) - left
        results = whole(trainer, model, ids[:, :end], mask[:, :end], width - left, *args, **kwargs)
        return *(None if r is None else pad(r, (0, left), value=-0.3) for r in results[:2]), results[2]

    GRPOTrainer._get_per_token_logps_and_entropies = cut


# -- one process of a run ----------------------------------------------------------------------------------------------


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def leave(*, killed: bool) -> None:
    """Writes down what was measured, and ends this process when it is to be killed."""
    WATCH.charge()
    name = f"measured-{'killed' if killed else 'ended'}-{rank()}.json"
    measured = {
        "seconds": WATCH.seconds,
        "batches": WATCH.batches,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_below": max(map(peak_of, below(os.getpid())), default=0),
        "cpu_below": sum(map(cpu_of, below(os.getpid()))),
        "resumed_after": RESUMED_AFTER,
    }
    (Path(os.environ["P2O_REHEARSAL"]) / name).write_text(json.dumps(measured))
    if killed:
        os._exit(KILLED)


def below(pid: int) -> list[int]:
    """The processes that this one and its children started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return children + [further for child in children for further in below(child)]


def peak_of(pid: int) -> int:
    """The most memory that a process has had, in bytes; 0 where nobody knows."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def cpu_of(pid: int) -> float:
    """The processors' seconds that a process has had so far; 0 where nobody knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


RESUMED_AFTER: list[float] = []


def make_up_outcomes(trainer: Any) -> None:
    """Of the questions that no batch was about, as if their rollouts had been drawn like the others'."""
    from p2o.prompt_phase.hard_samples import Outcome

    k = trainer.num_generations
    for row, prompt in enumerate(trainer.train_dataset["prompt"]):
        number = int(re.search(r"Problem (\d+)\.", prompt[-1]["content"])[1])  # type: ignore[index]
        successes = sum(random.Random(f"{number} {i}").random() < chance(number, "") for i in range(k))
        trainer.p2o.outcomes.setdefault(row, Outcome(successes, k))


def worker(argv: list[str]) -> int:
    """`p2o train` with the stand-ins in place."""
    plan = json.loads(os.environ["P2O_REHEARSAL_PLAN"])
    began = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    from p2o import P2OTrainer
    from p2o.cli import main as p2o
    from p2o.engines import vllm

    vllm.check = lambda args, model: None
    vllm.CpuGeneration = Engine  # type: ignore[misc]
    cut_passes(plan["seen"])
    watch_everything()
    Engine.kill_after = plan["kill_after"]
    sample, evolve = P2OTrainer._generate_and_score_completions, P2OTrainer._prompt_phase
    draw, go_on = P2OTrainer._get_train_sampler, P2OTrainer._begin_epoch

    def sampler(trainer: Any, dataset: Any = None) -> Any:
        made = draw(trainer, dataset)
        made.num_samples = plan["full"] * trainer.args.generation_batch_size // trainer.num_generations
        return made

    def batch(trainer: Any, inputs: Any) -> Any:
        WATCH.begin("templated batch" if trainer.p2o.assignment else "bare batch")
        return sample(trainer, inputs)

    def begin_epoch(trainer: Any, batches_done: int) -> None:
        if trainer.p2o.epoch_complete:
            make_up_outcomes(trainer)
        go_on(trainer, batches_done)

    def phase(trainer: Any) -> None:
        WATCH.begin("prompt phase")
        evolve(trainer)
        WATCH.begin("after the prompt phase")

    def generate(*args: Any, **kwargs: Any) -> Any:
        if not RESUMED_AFTER:
            RESUMED_AFTER.append(time.perf_counter() - began)
        return first(*args, **kwargs)

    first = Engine.generate
    Engine.generate = generate  # type: ignore[method-assign]
    P2OTrainer._get_train_sampler = sampler  # type: ignore[method-assign]
    P2OTrainer._generate_and_score_completions = batch  # type: ignore[method-assign]
    P2OTrainer._begin_epoch = begin_epoch  # type: ignore[method-assign]
    P2OTrainer._prompt_phase = phase  # type: ignore[method-assign]
    code = p2o(["train", *argv])
    leave(killed=False)
    return code


if __name__ == "__main__":
    # Under the name by which options find it, and not a second time.
    sys.modules.setdefault("rehearsal_worker", sys.modules["__main__"])
    sys.exit(worker(sys.argv[1:]))
