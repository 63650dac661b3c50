"""How costs grow: pure logic with the hard set, a policy step with K and the batch, a prompt phase, and two processes.

    python benchmarks/cost.py --parts logic evolution step phase processes --json cost.json

Sizes take turns, and a figure is the median over turns: of CPU seconds, which a busy machine does not change, in all
parts but `processes`, which is about the clock on the wall. `slope` is that of the line
through the logarithms of size and seconds: 1 is linear, less means that a larger batch is the cheaper one. `to linear`
is how much more the largest size takes than the smallest one times their ratio would.

- logic: what P²O keeps books of, without any model: mining, the guard, selection, assignment, journal, checkpoint.
- evolution: a whole prompt phase whose policy and reflection model answer at once, so that what is left is GEPA and us.
- step, phase: the embedded world's base model with `transformers`, generation apart from everything else.
- processes: the same step and prompt phase in one process and in two (torchrun, gloo, one thread each).
"""

import argparse
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from p2o.ledger import Ledger
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.guard import check_template, stock_runs
from p2o.prompt_phase.hard_samples import HardSamples, Outcome
from p2o.prompt_phase.journal import Journal
from p2o.prompt_phase.types import EvolutionConfig, Question, Reflection, Rollout
from p2o.state import P2OState
from p2o.templates import Template, assign_templates, select_templates

K = 8
WORDS = [f"word{i}" for i in range(500)]
Measured = dict[str, float]


@contextmanager
def clock(seconds: Measured, name: str) -> Any:
    gc.disable()  # as timeit does: it takes the longer, the more is alive from elsewhere
    began = time.process_time()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
    gc.enable()


# -- without a model -------------------------------------------------------------------------------------------------


def asked(count: int) -> list[Question]:
    """Questions that share half of their wording, as word problems do."""
    rng = random.Random(0)
    stock = [" ".join(rng.choices(WORDS, k=30)) for _ in range(50)]
    return [
        Question(i, f"{rng.choice(stock)} {' '.join(rng.choices(WORDS, k=30))}", str(1000 + i)) for i in range(count)
    ]


def logic(questions: int) -> Measured:
    """One epoch's bookkeeping where every question is hard, and every tenth has found a template of its own."""
    rng, seconds = random.Random(0), Measured()
    hard = asked(questions)
    candidates = [
        Template(f"template {i}", rng.random(), frozenset(rng.sample(range(questions), min(30, questions))))
        for i in range(questions // 10)
    ]
    with clock(seconds, "mining"):
        mined = HardSamples()
        for question in range(questions):
            mined.record(question, [0.0] * K)
        ids = mined.hard_set()
    with clock(seconds, "guard: common wording"):
        stock = stock_runs([(q.text, q.solution) for q in hard])
    with clock(seconds, "guard: 100 templates"):
        for i in range(100):
            seen = [(q.text, q.solution) for q in rng.sample(hard, 3)]
            text = " ".join(random.Random(i).choices(WORDS, k=40))
            check_template(text, questions=seen, max_length=2000, stock=stock)
    with clock(seconds, "selection"):
        selected = select_templates(candidates)
    with clock(seconds, "assignment"):
        assignment = assign_templates(ids, selected, K, rng=rng)
    with tempfile.TemporaryDirectory() as directory:
        records = [[(q, "") for q in ids[start : start + 300]] for start in range(0, questions, 300)]
        with clock(seconds, "journal, written and read"):
            for _ in range(2):
                with Journal(Path(directory) / "journal.jsonl", {}) as journal:
                    for keys in records:
                        journal.call("dev", keys, lambda n, keys=keys: [[0.0, False, 9, 9, "", "", []] for _ in keys])
        with clock(seconds, "checkpoint, written and read"):
            state = P2OState(outcomes=mined.outcomes, hard_set=ids, templates=selected, assignment=assignment)
            state.save(Path(directory), {})
            P2OState.load(Path(directory), {})
    return seconds


def evolution(questions: int, budget: int) -> Measured:
    """A prompt phase of so many rollouts, none of which takes any time."""

    def rollout(requests: list[tuple[Question, str]], *, seed: int) -> list[Rollout]:
        rng = random.Random(seed)
        luck = [rng.random() < (0.3 if q.id % 7 == len(z) % 7 else 0.1) for q, z in requests]
        return [Rollout("", float(solved), solved, "", 9, 9) for solved in luck]

    def reflect(prompts: list[str], *, seed: int) -> list[Reflection]:
        rng = random.Random(seed)
        return [Reflection(f"```\n{' '.join(rng.choices(WORDS, k=30))}\n```") for _ in prompts]

    seconds, spent, hard = Measured(), Ledger(), asked(questions)
    with tempfile.TemporaryDirectory() as directory, clock(seconds, "a prompt phase"):
        config = EvolutionConfig(budget=budget)
        evolve(hard, rollout, reflect, config, seed=0, epoch=1, run_dir=Path(directory), spent=spent)
    return seconds


# -- with the embedded model -----------------------------------------------------------------------------------------


def trainer_of(output: str, questions: int, **changes: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from p2o import P2OConfig, P2OTrainer
    from p2o.pico import model_path, world
    from policy_step import TEMPLATE
    from prompt_phase import chance

    torch.set_num_threads(1)
    trainer = P2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path()),
        reward_funcs=chance,
        args=P2OConfig(
            **{
                "output_dir": output,
                "num_generations": K,
                "max_completion_length": 48,
                "generation_kwargs": {"min_new_tokens": 48},  # the same work whatever is sampled
                "learning_rate": 1e-6,
                "min_hard_questions": 2,
                "reflection_prompt": world.REFLECTION_PROMPT,
                "reflection_max_tokens": 48,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "logging_steps": 1000,
                "bf16": False,
                "gradient_checkpointing": False,
                "use_cpu": True,
                "skip_zero_advantages": False,
                **changes,
            }
        ),
        train_dataset=world.train_dataset(hard=questions, easy=0),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        feedback_func=world.feedback,
    )
    trainer.remove_callback(PrinterCallback)
    # Every rollout is templated: a step pays for both contexts.
    trainer.p2o.templates = [TEMPLATE]
    trainer.p2o.assignment = {q: [0] * trainer.num_generations for q in range(len(trainer.train_dataset))}
    return trainer


def apart(trainer: Any, seconds: Measured) -> None:
    """From now on, seconds of generation are counted by themselves."""
    complete = trainer._complete

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock(seconds, "generation"):
            return complete(*args, **kwargs)

    trainer._complete = timed


def step(questions: int, k: int, steps: int = 3) -> Measured:
    """Seconds of a policy step, the first one left out."""
    from transformers import TrainerCallback

    seconds = Measured()

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                self.began = time.process_time()
                seconds.clear()

    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_of(
            output,
            64,
            num_generations=k,
            per_device_train_batch_size=questions * k,
            max_steps=steps + 1,
        )
        apart(trainer, seconds)
        watch = Clock()
        trainer.add_callback(watch)
        trainer.train()
        return split(time.process_time() - watch.began, seconds, steps)


def split(total: float, seconds: Measured, units: int = 1) -> Measured:
    generation = seconds["generation"]
    return {"in all": total / units, "generation": generation / units, "the rest": (total - generation) / units}


def phase(questions: int, budget: int) -> Measured:
    """Seconds of a prompt phase over so many hard questions, whose reflections come from the model itself."""
    with tempfile.TemporaryDirectory() as output:
        trainer, seconds = trainer_of(output, questions, evolution_budget=str(budget)), Measured()
        apart(trainer, seconds)
        began = time.process_time()
        prompt_phase(trainer)
        return split(time.process_time() - began, seconds)


def prompt_phase(trainer: Any) -> None:
    """A prompt phase for all of the questions: as if each of their rollouts had failed."""
    trainer.p2o.outcomes = {question: Outcome(0, K) for question in range(len(trainer.train_dataset))}
    trainer.p2o.begin_next_epoch(near_hard=trainer.args.near_hard)
    trainer._prompt_phase()


# -- processes -------------------------------------------------------------------------------------------------------


def worker(output: Path) -> None:
    """One of several processes: a few policy steps and a prompt phase, of the same size in all."""
    from policy_step import Clock

    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    trainer = trainer_of(
        str(output),
        48,
        per_device_train_batch_size=64 // processes,
        max_steps=4,
        ddp_backend="gloo",
        evolution_budget="400",
        prompt_phase_batch_size=16,
    )
    watch = Clock()
    trainer.add_callback(watch)
    trainer.train()
    began = time.perf_counter()
    prompt_phase(trainer)
    seconds = {"a policy step": statistics.median(watch.seconds[1:]), "a prompt phase": time.perf_counter() - began}
    if rank == 0:
        (output / "seconds.json").write_text(json.dumps(seconds))


def processes(count: int) -> Measured:
    with tempfile.TemporaryDirectory() as output:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        subprocess.run(
            [*launcher, __file__, "--worker", output],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seconds: Measured = json.loads((Path(output) / "seconds.json").read_text())
        return seconds


# -- the table -------------------------------------------------------------------------------------------------------

Series = tuple[str, str, list[int], Callable[[int], Measured]]
SERIES: dict[str, list[Series]] = {
    "logic": [("logic", "hard questions", [1250, 2500, 5000, 10000], logic)],
    "evolution": [
        ("evolution, 8,000 rollouts", "hard questions", [1250, 2500, 5000, 10000], lambda n: evolution(n, 8000)),
        ("evolution, 1,000 hard questions", "rollouts", [4000, 8000, 16000, 32000], lambda n: evolution(1000, n)),
    ],
    "step": [
        ("policy step, 4 questions", "K", [4, 8, 16, 32], lambda n: step(4, n)),
        ("policy step, K = 8", "questions", [2, 4, 8, 16], lambda n: step(n, 8)),
    ],
    "phase": [
        ("prompt phase, 400 rollouts", "hard questions", [48, 96, 192, 384], lambda n: phase(n, 400)),
        ("prompt phase, 64 hard questions", "rollouts", [200, 400, 800, 1600], lambda n: phase(64, n)),
    ],
    "processes": [("processes", "processes", [1, 2], processes)],
}


def slope(sizes: Iterable[int], seconds: Iterable[float]) -> float:
    logarithms = ([math.log(x) for x in values] for values in (sizes, seconds))
    return statistics.linear_regression(*logarithms).slope


def measure(series: Series, turns: int, console: Console) -> dict[str, Any]:
    title, unit, sizes, run = series
    found: dict[int, list[Measured]] = {size: [] for size in sizes}
    for _ in range(turns):
        for size in sizes:
            found[size].append(run(size))
    kind = "seconds" if unit == "processes" else "CPU seconds"
    table = Table(title=f"{title}: {kind} by {unit}, median of {turns}")
    last = ["of one"] if unit == "processes" else ["slope", "to linear"]
    for heading in ("", *map(str, sizes), *last):
        table.add_column(heading, justify="right" if heading else "left")
    rows = []
    for name in found[sizes[0]][0]:
        seconds = [statistics.median(turn[name] for turn in found[size]) for size in sizes]
        growth = seconds[-1] / seconds[0]
        if unit == "processes":
            row: dict[str, float] = {"of one": growth}
        else:
            row = {"slope": slope(sizes, seconds), "to linear": growth / (sizes[-1] / sizes[0])}
        table.add_row(name, *(f"{s:.3g}" for s in seconds), *(f"{value:.2f}" for value in row.values()))
        rows.append({"what": name, "seconds": seconds, **row})
    console.print(table)
    return {"series": title, "unit": unit, "sizes": sizes, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    console = Console(width=120)
    results = [measure(series, arguments.turns, console) for part in arguments.parts for series in SERIES[part]]
    if arguments.json:
        options = {"parts": arguments.parts, "turns": arguments.turns}
        arguments.json.write_text(json.dumps({"options": options, "series": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
