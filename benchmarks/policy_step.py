"""A policy step of P²O against one of TRL's GRPO, on rollouts of the same number and lengths; ratios from one run.

    python benchmarks/policy_step.py --json policy_step.json
    python benchmarks/policy_step.py --use_vllm
    python benchmarks/policy_step.py --model pico --feature_dictionary runs/features/pico

Every completion has `--tokens` tokens, whatever is sampled. Rewards are dealt out by place in the group, so that no
group collapses, or every second one does. Trainers take turns; a figure is the median over their steps, the first of
each turn left out. Beside the clock's seconds stand the processor's, which other work on the same machine distorts
less, with those of generation, where templated prompts are longer, and of all the rest. What features cost is read off
within each step.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OConfig, P2OTrainer
from p2o.engines.vllm import generation_backend
from p2o.models import model_path
from p2o.pico import world
from p2o.policy_phase.phase import PolicyPhase
from p2o.templates import Template
from random_model import save_random_model

PHASE: Any = PolicyPhase
GUIDE = PHASE.guide
KINDS = ("GRPO", "P²O, bare", "P²O, templated")
FEATURES = "P²O, features"
TEMPLATE = Template("If only + and - occur, carry the total along. Do not skip a step, and write every line.", 1.0)


class Clock(TrainerCallback):
    """Seconds of each step: the clock's, this process's on all cores, and of these what some parts took."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float, float, float]] = []
        self.parts = {"generation": 0.0, "features": 0.0}

    def watch(self, trainer: Any) -> None:
        trainer._generate_single_turn = self.timed("generation", trainer._generate_single_turn)
        PHASE.guide = self.timed("features", GUIDE)

    def timed(self, part: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = function(*args, **kwargs)
            self.parts[part] += time.process_time() - began
            return result

        return timed

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter(), time.process_time()
        self.parts = dict.fromkeys(self.parts, 0.0)

    def on_step_end(self, args: Any, *rest: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clock, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        self.seconds.append((clock, cpu, self.parts["generation"], self.parts["features"]))


def model(arguments: argparse.Namespace) -> Any:
    """The model that is named, or a randomly initialised one of Qwen3's shape with the embedded world's tokenizer."""
    if arguments.model:
        return model_path(arguments.model)
    # Saved and named, since an engine loads it from there.
    path = Path(tempfile.gettempdir()) / f"p2o-benchmark-{arguments.hidden_size}-{arguments.layers}"
    if not (path / "config.json").exists():
        save_random_model(
            path,
            hidden_size=arguments.hidden_size,
            intermediate_size=3 * arguments.hidden_size,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.hidden_size // 64,
            num_key_value_heads=arguments.hidden_size // 64,
            head_dim=64,
            max_position_embeddings=1024,
            eos_token_id=None,
            pad_token_id=None,
        )
    return str(path)


def dealt(collapsed: bool) -> Any:
    """A reward function: half of every group is right; of every second group all, if `collapsed`."""

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        k = 8
        return [float(i % 2 == 0 or (collapsed and (i // k) % 2 == 0)) for i in range(len(completions))]

    return reward


def start_vllm_once() -> None:
    """All trainers share an engine: each sends it its weights, and starting one takes half a minute."""
    from trl.generation import vllm_generation

    start, started = vllm_generation.LLM, []

    def llm(**settings: Any) -> Any:
        if not started:
            started.append(start(**settings))
        return started[0]

    vllm_generation.LLM = llm


def steps(arguments: argparse.Namespace, kind: str, collapsed: bool) -> list[tuple[float, float, float, float]]:
    clock = Clock()
    fixed = (
        {"min_tokens": arguments.tokens, "ignore_eos": True}
        if arguments.use_vllm
        else {"min_new_tokens": arguments.tokens}
    )
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3} if arguments.use_vllm else {}
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "output_dir": output,
            "num_generations": 8,
            "per_device_train_batch_size": arguments.rollouts,
            "max_completion_length": arguments.tokens,
            "generation_kwargs": fixed,
            "max_steps": arguments.steps,
            "learning_rate": 1e-6,
            "save_strategy": "no",
            "logging_steps": 1000,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": arguments.bf16,
            "gradient_checkpointing": False,
            "use_cpu": not torch.cuda.is_available(),
            **vllm,
        }
        shared = {
            "model": model(arguments),
            "reward_funcs": dealt(collapsed),
            "train_dataset": world.train_dataset(hard=arguments.rollouts, easy=0),
            "callbacks": [clock],
        }
        if kind == "GRPO":
            args = GRPOConfig(**settings)
            with generation_backend(args):  # TRL's own cannot send weights to vLLM on a CPU
                trainer = GRPOTrainer(args=args, **shared)
        else:
            guided = {"feature_dictionary": arguments.feature_dictionary, "feature_token_weight": 0.5}
            own = guided if kind == FEATURES else {}
            trainer = P2OTrainer(args=P2OConfig(prompt_phase=False, **settings, **own), **shared)
            if kind == "P²O, templated":
                trainer.p2o.templates = [TEMPLATE]
                trainer.p2o.assignment = {question: [0] * 8 for question in range(len(trainer.train_dataset))}
        clock.watch(trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64, help="of a step")
    parser.add_argument("--tokens", type=int, default=96, help="of a completion")
    parser.add_argument("--model", help="in place of a random one, such as smollm2-135m")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use_vllm", action="store_true")
    parser.add_argument("--feature_dictionary", help="of --model, by `p2o features`: a step that it guides, too")
    parser.add_argument("--trainers", nargs="*", choices=KINDS, default=KINDS, help="the first is the unit")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.use_vllm:
        start_vllm_once()
    kinds = [*arguments.trainers, *([FEATURES] * bool(arguments.feature_dictionary))]
    seconds: dict[tuple[str, bool], list[tuple[float, float, float, float]]] = {
        (kind, c): [] for c in (False, True) for kind in kinds
    }
    for _ in range(arguments.turns):
        for kind, collapsed in seconds:
            seconds[kind, collapsed] += steps(arguments, kind, collapsed)
    rows = []
    table = Table(title=f"Seconds of a policy step, and in units of one of {kinds[0]}")
    columns = ("groups collapsed", "trainer", "seconds", "ratio", "CPU seconds", "ratio", "generation", "rest", "ratio")
    for heading in columns:
        table.add_column(heading, justify="left" if heading in columns[:2] else "right")
    for (kind, collapsed), values in seconds.items():
        clock, cpu, generation, _ = (statistics.median(column) for column in zip(*values, strict=True))
        units = [statistics.median(column) for column in zip(*seconds[kinds[0], collapsed], strict=True)]
        clock_unit, cpu_unit, generation_unit, _ = units
        row = {
            "seconds": clock,
            "ratio": clock / clock_unit,
            "cpu_seconds": cpu,
            "cpu_ratio": cpu / cpu_unit,
            "cpu_generation": generation,
            "cpu_rest": cpu - generation,
            "cpu_rest_ratio": (cpu - generation) / (cpu_unit - generation_unit),
        }
        share = "half" if collapsed else "none"
        rows.append({"collapsed": share, "trainer": kind, **row})
        table.add_row(share, kind, *(f"{figure:.2f}" for figure in row.values()))
    Console(width=120).print(table)
    for collapsed in (False, True) if arguments.feature_dictionary else ():
        # Within a step, so that other work on the machine does not matter.
        shares = [cpu / (cpu - features) for _, cpu, _, features in seconds[FEATURES, collapsed]]
        found = f"{statistics.median(shares):.3f} times one without ({min(shares):.3f} to {max(shares):.3f})"
        print(f"A step guided by features, {'half' if collapsed else 'none'} of the groups collapsed: {found}")
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        arguments.json.write_text(json.dumps({"device": device, "options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
