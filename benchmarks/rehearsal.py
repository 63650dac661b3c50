"""The recipes for GPUs, rehearsed without one: everything real but the transformer's size and what it would generate.

    python benchmarks/rehearsal.py                                     # both recipes, one process: some minutes each
    python benchmarks/rehearsal.py --recipes paper-self-deepscaler --processes 2
    python benchmarks/rehearsal.py --small                             # seconds: does it work?

`p2o train` runs with the recipe's own numbers of questions, rollouts, parents and lengths. The model has Qwen3's
architecture with one narrow layer and the embedded world's tokenizer; rollouts and reflections are made up, each with a
length drawn up to the recipe's limit; passes of the policy see the first tokens of a completion only. All the rest is
what a run on GPUs has: TRL, verifiers in their processes, mining, masks, GEPA, journal, checkpoints, report.

A few batches of bare rollouts (`--full`), the outcomes of the epoch's other questions made up, a whole prompt phase
that is killed and resumed, as many batches of the next epoch. An epoch's seconds are those of one of these, where a
third of the questions is templated, times the batches, and the prompt phase's.

Seconds inside P²O's code by purpose are without what it calls in TRL, transformers and the engine, and with what it
waits for in verifiers' processes; beside those of the clock stand the processor's, which other work on the machine does
not distort. One process carries the batch of all the recipe's GPUs, but each of these has verifiers of its own, whose
seconds are divided by their number. Goals: processor's seconds of 1 % of the hours that docs/scaling.md computes; 4 GiB
of a process's memory, 200 MB of journal, 5 MB of report, and 2 s of a browser's main thread to draw it.
"""

import argparse
import importlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
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

import yaml
from random_model import save_random_model

ROOT = Path(__file__).parent.parent
RECIPES = ("paper-self-deepscaler", "single-24gb-lora")
THEIRS = ("TRL and transformers", "engine (made up)", "passes (cut short)")
KILLED = 9
ONCE = ("reading and checking the data", "resuming", "report")
SEGMENTS = ("bare batch", "templated batch", "prompt phase")
GOALS = {"own_share": 0.01, "memory": 4 * 2**30, "journal": 200e6, "report": 5e6, "open_cpu": 2.0}


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
    ("p2o.trainer", "P2OTrainer", "_begin_epoch _generate_for_evolution _score_for_evolution", "evolution"),
    ("p2o.trainer", "P2OTrainer", "_report_rollouts _notify log", "metrics, panel and run directory"),
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
    ("p2o.trainer", "P2OTrainer", "fingerprint", "resuming"),
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
    draw = P2OTrainer._get_train_sampler

    def sampler(trainer: Any, dataset: Any = None) -> Any:
        made = draw(trainer, dataset)
        made.num_samples = plan["full"] * trainer.args.generation_batch_size // trainer.num_generations
        return made

    def batch(trainer: Any, inputs: Any) -> Any:
        WATCH.begin("templated batch" if trainer.p2o.assignment else "bare batch")
        return sample(trainer, inputs)

    def phase(trainer: Any) -> None:
        make_up_outcomes(trainer)
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
    P2OTrainer._prompt_phase = phase  # type: ignore[method-assign]
    code = p2o(["train", *argv])
    leave(killed=False)
    return code


# -- the whole of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How one recipe is rehearsed.

    Args:
        written_for: GPUs of the recipe, whose batch the processes share.
        batches: of an epoch.
        options: on the command line beside the recipe.
        kill_after: rollouts of the prompt phase.
    """

    recipe: str
    processes: int
    written_for: int
    batches: int
    options: dict[str, Any]
    kill_after: int
    arguments: argparse.Namespace


def planned(recipe: str, arguments: argparse.Namespace) -> Plan:
    """The recipe's own batch on however many processes."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    written_for = 8 if recipe.startswith("paper") else 1
    options: dict[str, Any] = {
        name: settings[name] * written_for // arguments.processes
        for name in ("steps_per_generation", "gradient_accumulation_steps")
    }
    options |= {"use_cpu": True, "reflection_func": "rehearsal:propose"}
    questions = settings.get("dataset_size", 5000)
    if arguments.small:
        questions = 48
        options |= {"steps_per_generation": 24, "gradient_accumulation_steps": 12, "max_completion_length": 256}
        options |= {"dataset_size": questions, "evolution_budget": 120, "min_hard_questions": 2, "save_steps": 4}
    per_batch = options["steps_per_generation"] * settings["per_device_train_batch_size"] * arguments.processes
    batches = questions * settings["num_generations"] // per_batch
    updates = options["steps_per_generation"] // options["gradient_accumulation_steps"]
    options["max_steps"] = 2 * arguments.full * updates
    kill_after = (60 if arguments.small else 600) // arguments.processes
    return Plan(recipe, arguments.processes, written_for, batches, options, kill_after, arguments)


def make_model(directory: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 32}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 40_960}
    save_random_model(directory, **shape)


def make_data(directory: Path) -> None:
    from datasets import Dataset

    from p2o.tasks import NAMED_SETS

    (named,) = (n for n in NAMED_SETS if n.name == "deepscaler-5k")
    directory.mkdir()
    Dataset.from_list([problem(i) for i in range(named.rows)]).to_parquet(directory / f"{named.split}.parquet")


def run(plan: Plan, directory: Path, *, resume: bool) -> float:
    """Runs `p2o train` until it is killed or ends; returns the seconds it took.

    Raises:
        SystemExit: it ended otherwise.
    """
    kill_after = None if resume else plan.kill_after
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "P2O_REHEARSAL": str(directory),
        "P2O_REHEARSAL_PLAN": json.dumps(
            {"full": plan.arguments.full, "seen": plan.arguments.seen, "kill_after": kill_after}
        ),
    }
    options = {"model_name_or_path": directory / "tiny", "dataset_path": directory / "data", **plan.options}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable]
    if plan.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(plan.processes)]
        words += ["--ddp_backend", "gloo"]
    command += [__file__, "--worker", "--output_dir", str(directory / "run")]
    command += ["--resume"] if resume else ["--config", str(ROOT / "recipes" / f"{plan.recipe}.yaml"), *words]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    wanted = "ended" if resume else "killed"
    if not list(directory.glob(f"measured-{wanted}-*.json")):
        raise SystemExit(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}\nThe run should have {wanted}.")
    return time.perf_counter() - began


def size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def seconds_to_open(page: Path) -> tuple[float, float] | None:
    """Until a browser has drawn the page, on the clock and of its main thread's CPU, the best of three.

    None without Chromium and playwright.
    """
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        return None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        took = []
        for _ in range(3):
            tab = browser.new_page(offline=True)
            metrics = tab.context.new_cdp_session(tab)
            metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
            began = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            tab.wait_for_selector("html[data-ready=yes]", state="attached")
            tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            clock = time.perf_counter() - began
            cpu = {m["name"]: m["value"] for m in metrics.send("Performance.getMetrics")["metrics"]}
            took.append((clock, cpu["TaskDuration"]))
            tab.close()
        browser.close()
    return min(took)


def gpu_hours(plan: Plan) -> float:
    """What docs/scaling.md computes for the GPUs: an epoch and a prompt phase."""
    import scaling

    card = scaling.H100 if plan.written_for > 1 else scaling.RTX_4090
    setup = scaling.Setup(plan.recipe, plan.written_for, card, plan.written_for)
    e = scaling.Estimate(setup, scaling.parser_of_assumptions().parse_args([]))
    return e.generation(e.epoch_rollouts, e.batch) + e.learning() + e.evolving() + e.reflecting()


def measured(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(directory.glob("measured-*-*.json"))]


Seconds = dict[str, dict[str, list[float]]]
"""By purpose and segment: of the clock, and of the processors."""


def seconds_by_purpose(records: list[dict[str, Any]]) -> Seconds:
    """Of the first process: a bare batch, a templated one, a prompt phase; both runs' together."""
    found: Seconds = defaultdict(lambda: {segment: [0.0, 0.0] for segment in SEGMENTS})
    for segment in SEGMENTS:
        count = sum(record["batches"].get(segment, 0) for record in records) if segment != "prompt phase" else 1
        for record in records:
            for purpose, spent in record["seconds"].get(segment, {}).items():
                for i in range(2):
                    found[purpose][segment][i] += spent[i] / max(count, 1)
    return found


def of_an_epoch(purposes: Seconds, batches: int) -> dict[str, list[float]]:
    """An epoch of templated batches with its prompt phase, by purpose."""
    return {
        purpose: [batches * by["templated batch"][i] + by["prompt phase"][i] for i in range(2)]
        for purpose, by in purposes.items()
        if purpose not in ONCE
    }


def once(record: dict[str, Any]) -> dict[str, float]:
    """Own seconds on the clock of what happens once a run or once a start, by purpose."""
    spent = [(purpose, s[0]) for by in record["seconds"].values() for purpose, s in by.items()]
    return {name: sum(seconds for purpose, seconds in spent if purpose == name) for name in ONCE}


def rehearse(plan: Plan, directory: Path) -> dict[str, Any]:
    """Both runs, and all that is measured about them."""
    make_model(directory / "tiny")
    make_data(directory / "data")
    took = [run(plan, directory, resume=False), run(plan, directory, resume=True)]
    records = measured(directory)
    first = [json.loads((directory / f"measured-{how}-0.json").read_text()) for how in ("killed", "ended")]
    purposes = seconds_by_purpose(first)
    epoch = of_an_epoch(purposes, plan.batches)
    own, own_cpu = (sum(spent[i] for purpose, spent in epoch.items() if purpose not in THEIRS) for i in range(2))
    # Theirs is not known by batch; each rollout takes as long.
    rollouts = json.loads((directory / "run" / "summary.json").read_text())["rollouts"]
    scored = sum(rollouts[kind] for kind in ("policy", "evolution_feedback", "evolution_dev"))
    planned_for = plan.batches * rollouts["policy"] / (2 * plan.arguments.full) + scored - rollouts["policy"]
    verifiers = sum(record["cpu_below"] for record in first) * planned_for / scored
    out = directory / "run"
    checkpoints = sorted(out.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    hours, opened = gpu_hours(plan), seconds_to_open(out / "report.html")
    return {
        "recipe": plan.recipe,
        "processes": plan.processes,
        "batches": plan.batches,
        "purposes": purposes,
        "epoch": epoch,
        "own": own,
        "own_cpu": own_cpu,
        "verifiers_cpu": verifiers,
        "gpu_hours": hours,
        "own_share": (own_cpu + verifiers / plan.written_for) / (hours * 3600),
        "memory": max(record["peak"] for record in records),
        "memory_by_process": [record["peak"] for record in records],
        "verifier_memory": max(record["peak_below"] for record in records),
        "once": once(first[1]),
        "journal": size(out / "evolution"),
        "checkpoint": size(checkpoints[-1]) if checkpoints else 0,
        "state": size(checkpoints[-1] / "p2o_state.json") if checkpoints else 0,
        "hard_sets": size(out / "hard_sets"),
        "report": size(out / "report.html"),
        "open": opened and opened[0],
        "open_cpu": opened and opened[1],
        "resume": first[1]["resumed_after"][0],
        "seconds": took,
        "hard_set": len(json.loads(next((out / "hard_sets").glob("*.json")).read_text())["rows"]),
        "rollouts": rollouts,
    }


def show(found: dict[str, Any]) -> str:
    """Tables for people."""
    from rich.console import Console
    from rich.table import Table

    title = f"{found['recipe']}, {found['processes']} process(es): seconds of the first on the clock (and of its CPU)"
    table = Table(title=title)
    for heading in ("", *SEGMENTS, f"epoch: {found['batches']} templated batches and the prompt phase"):
        table.add_column(heading, justify="right" if heading else "left")
    for purpose in sorted(found["epoch"], key=lambda purpose: (purpose in THEIRS, -found["epoch"][purpose][0])):
        spent = [found["purposes"][purpose][segment] for segment in SEGMENTS]
        cells = [f"{clock:.2f} ({cpu:.2f})" for clock, cpu in spent]
        clock, cpu = found["epoch"][purpose]
        table.add_row(purpose, *cells, f"{clock:.0f} ({cpu:.0f})")
    console = Console(width=130)
    with console.capture() as captured:
        console.print(table)
        for line in lines(found):
            console.print(line, highlight=False)
    return captured.get()


def lines(found: dict[str, Any]) -> list[str]:
    def verdict(name: str) -> str:
        return "goal met" if found[name] is None or found[name] <= GOALS[name] else "GOAL MISSED"

    opened = "no browser here"
    if found["open"] is not None:
        opened = f"drawn in {found['open_cpu']:.1f} s of a browser ({verdict('open_cpu')}; clock {found['open']:.1f})"
    peaks = ", ".join(f"{peak / 2**30:.2f}" for peak in found["memory_by_process"])
    return [
        f"Own code, an epoch with its prompt phase: {found['own_cpu']:.0f} s of the processor and "
        f"{found['verifiers_cpu']:.0f} s of all verifiers' processes, {found['own_share']:.2%} of the "
        f"{found['gpu_hours']:.1f} h computed for the GPUs ({verdict('own_share')}); {found['own']:.0f} s on this "
        "machine's clock.",
        f"Memory: {peaks} GiB at most in each process, killed and resumed, with all imports ({verdict('memory')}); "
        f"{found['verifier_memory'] / 2**30:.2f} in a verifier's.",
        f"Disk: journal {found['journal'] / 1e6:.1f} MB ({verdict('journal')}), checkpoint "
        f"{found['checkpoint'] / 1e6:.1f} MB of which P²O's state {found['state'] / 1e6:.2f}, hard sets "
        f"{found['hard_sets'] / 1e6:.2f} MB, report {found['report'] / 1e6:.1f} MB ({verdict('report')}), {opened}.",
        f"Resumed in the prompt phase: {found['resume']:.0f} s from the start of the process to its first new rollout. "
        f"Once a run: {', '.join(f'{purpose} {seconds:.1f} s' for purpose, seconds in found['once'].items())}. "
        f"{found['hard_set']} hard questions; {found['seconds'][0]:.0f} + {found['seconds'][1]:.0f} s in all.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--processes", type=int, choices=(1, 2, 4, 8), default=1)
    parser.add_argument("--full", type=int, default=1, help="batches before the prompt phase, and behind it")
    parser.add_argument("--seen", type=int, default=32, help="tokens of a completion that a pass sees")
    parser.add_argument("--small", action="store_true", help="tiny numbers in place of the recipe's")
    parser.add_argument("--keep", type=Path, help="a folder for the runs, which are otherwise deleted")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for recipe in arguments.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            if arguments.keep:
                directory = arguments.keep.absolute() / recipe
                directory.mkdir(parents=True)
            results.append(rehearse(planned(recipe, arguments), directory))
        print(show(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        # Under the name by which options find it, and not a second time.
        sys.modules.setdefault("rehearsal", sys.modules["__main__"])
        sys.exit(worker(sys.argv[2:]))
    main()
