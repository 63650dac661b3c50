"""A policy step of P²O against one of TRL's GRPO with tools, on rollouts with the same calls; ratios from one run.

    OMP_NUM_THREADS=1 python benchmarks/tools_step.py

The shipped model with tools answers questions under an instruction to call the calculator, which for GRPO, and for P²O
without templates, is part of the question, and for P²O with templates is the template. All sample from the same tokens
and the same stream, so that the calls of a first step are the same ones; all are counted. Trainers take turns of a few
steps from the same weights, at a learning rate that hardly changes them; the first step of a turn is left out. A figure
is the median over steps, in seconds of the processor.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OConfig, P2OTrainer
from p2o.models import model_path
from p2o.pico.tools import world
from p2o.templates import Template, apply_template
from policy_step import Clock

INSTRUCTION = "Call the calculator. Do not skip a step."
KINDS = ("GRPO", "P²O, bare", "P²O, templated")


class Counting:
    """Tools that count their calls."""

    def __init__(self) -> None:
        self.calls = 0

    def calculate(self, expression: str) -> str:
        self.calls += 1
        return world.calculate(expression)

    def estimate(self, expression: str) -> str:
        self.calls += 1
        return world.estimate(expression)

    calculate.__doc__, estimate.__doc__ = world.calculate.__doc__, world.estimate.__doc__


def steps(arguments: argparse.Namespace, kind: str, seed: int) -> tuple[list[tuple[float, float, float, float]], int]:
    """Seconds of the steps behind the first, see `policy_step.Clock`; and the calls of all steps."""
    clock, counting = Clock(), Counting()
    rows = world.train_dataset(hard=arguments.rollouts, easy=0)
    if kind != "P²O, templated":
        told = [apply_template(prompt, INSTRUCTION) for prompt in rows["prompt"]]
        rows = rows.remove_columns("prompt").add_column("prompt", told)
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "output_dir": output,
            "num_generations": 8,
            "per_device_train_batch_size": arguments.rollouts,
            "max_completion_length": 112,
            "max_steps": arguments.steps + 1,
            "learning_rate": 1e-7,
            "seed": seed,
            "save_strategy": "no",
            "logging_steps": 1000,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
        }
        shared = {
            "model": model_path("pico-tools"),
            "reward_funcs": alternating,
            "train_dataset": rows,
            "callbacks": [clock],
            "tools": [counting.calculate, counting.estimate],
        }
        if kind == "GRPO":
            trainer = GRPOTrainer(args=GRPOConfig(**settings), **shared)
        else:
            trainer = P2OTrainer(args=P2OConfig(prompt_phase=False, **settings), **shared)
            if kind == "P²O, templated":
                trainer.p2o.templates = [Template(INSTRUCTION, 1.0)]
                trainer.p2o.assignment = {question: [0] * 8 for question in range(len(trainer.train_dataset))}
        clock.watch(trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds[1:], counting.calls


def alternating(completions: list[Any], **columns: Any) -> list[float]:
    """Half of every group is right, whatever was answered, so that no group collapses."""
    return [float(i % 2) for i in range(len(completions))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64, help="of a step")
    parser.add_argument("--steps", type=int, default=3, help="of a turn, beside the first")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in KINDS}
    calls = dict.fromkeys(KINDS, 0)
    for turn in range(arguments.turns):
        for kind in KINDS:
            taken, called = steps(arguments, kind, turn)
            seconds[kind] += taken
            calls[kind] += called
    rows = []
    table = Table(title="Processor seconds of a policy step with tools, and in units of GRPO's")
    columns = ("trainer", "calls", "seconds", "ratio", "generation", "ratio", "rest", "ratio")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "trainer" else "right")
    _, unit, generation_unit, _ = (statistics.median(column) for column in zip(*seconds["GRPO"], strict=True))
    for kind, values in seconds.items():
        _, cpu, generation, _ = (statistics.median(column) for column in zip(*values, strict=True))
        rest, rest_unit = cpu - generation, unit - generation_unit
        figures = [cpu, cpu / unit, generation, generation / generation_unit, rest, rest / rest_unit]
        rows.append({"trainer": kind, "calls": calls[kind], "cpu_seconds": cpu, "cpu_ratio": cpu / unit})
        table.add_row(kind, str(calls[kind]), *(f"{figure:.2f}" for figure in figures))
    Console(width=120).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
