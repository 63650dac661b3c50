"""Peak memory of a training run of P²O against one of TRL's GRPO with the same settings; ratios from one run.

    python benchmarks/memory.py --json memory.json

Every run is a process of its own; kinds take turns, a figure is the median over turns. On a GPU it is the most that
PyTorch had allocated, on a CPU the most that was resident, less what was after everything was imported. Two epochs, and
where a row says who reflects, a prompt phase between them, with rollouts under its templates in the second; `bare` runs
have neither. Half of the groups collapse. They stay in the update but in one row, since leaving them out, the default,
hides what P²O adds. A frozen reference is in a file, and in memory while it reflects, in bf16 where training is; an
adapter needs none. An endpoint takes less than the policy.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.pico import world
from policy_step import TEMPLATE, model

K = 4
# P²O's options, None for GRPO, and whether an adapter is trained; the unit is GRPO with or without one.
KINDS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "GRPO": (None, False),
    "P²O, bare": ({"prompt_phase": False}, False),
    "P²O, bare, leaving collapsed groups out": ({"prompt_phase": False, "skip_zero_advantages": True}, False),
    "P²O, the policy reflects": ({"reflection_model": "policy"}, False),
    "P²O, a frozen reference reflects": ({"reflection_model": "reference"}, False),
    "GRPO, LoRA": (None, True),
    "P²O, LoRA, the reference reflects": ({"reflection_model": "reference"}, True),
}


def megabytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Instructs(P2OCallback):
    """Whatever a prompt phase finds, the next epoch's hard questions have an instruction."""

    def on_prompt_phase_end(self, args: Any, state: Any, control: Any, p2o: Any, **kwargs: Any) -> None:
        p2o.templates, p2o.assignment = [TEMPLATE], {question: [0] * K for question in p2o.hard_set}


def reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Of every second group half is right; the others fail, and so are hard."""
    return [float(i % 2 == 0 and (i // K) % 2 == 0) for i in range(len(completions))]


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """This process's peak beyond what its imports took, in MiB, and what shows that the run was what it should be."""
    torch.set_num_threads(1)
    base = megabytes()
    p2o, adapter = KINDS[arguments.measure]
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "output_dir": output,
            "num_generations": K,
            "per_device_train_batch_size": arguments.rollouts,
            "max_completion_length": arguments.tokens,
            "generation_kwargs": {"min_new_tokens": arguments.tokens},
            "num_train_epochs": 2,
            "learning_rate": 1e-6,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": arguments.bf16,
            "gradient_checkpointing": False,
            "use_cpu": not torch.cuda.is_available(),
        }
        shared = {
            "model": model(arguments),
            "reward_funcs": reward,
            "callbacks": [Instructs()],
            "train_dataset": world.train_dataset(hard=2 * arguments.rollouts // K, easy=0),
            "peft_config": LoraConfig(r=16, target_modules="all-linear") if adapter else None,
        }
        found = {}
        if p2o is None:
            trainer = GRPOTrainer(args=GRPOConfig(**settings), **shared)
            trainer.train()
        else:
            settings |= {
                "skip_zero_advantages": False,
                "reflection_max_tokens": arguments.tokens,
                "prompt_phase_batch_size": arguments.rollouts,
                "evolution_budget": 3 * arguments.rollouts,
                "min_hard_questions": 2,
                **p2o,
            }
            trainer = P2OTrainer(args=P2OConfig(**settings), **shared)
            trainer.train()
            found = {"templated": len(trainer.p2o.assignment), "spent": trainer.p2o.ledger.total_rollouts}
        weights = sum(p.numel() * (2 if arguments.bf16 else p.element_size()) for p in trainer.model.parameters())
    return {"megabytes": megabytes() - base, "base": base, "weights": weights / 2**20, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=16, help="of a step")
    parser.add_argument("--tokens", type=int, default=48, help="of a completion and of a reflection")
    parser.add_argument("--model", help="in place of a random one, such as smollm2-135m")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=KINDS, help="one run, in this process; prints its figures as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    shape = [f"--{name}={getattr(arguments, name)}" for name in ("rollouts", "tokens", "hidden_size", "layers")]
    shape += [f"--model={arguments.model}"] * bool(arguments.model)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.turns):
        for kind, measured in runs.items():
            command = [sys.executable, __file__, *shape, *["--bf16"] * arguments.bf16, "--measure", kind]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    title = "Peak memory, MiB" if torch.cuda.is_available() else "Peak resident memory beyond imports, MiB"
    table = Table(title=f"{title}, and in units of GRPO's")
    for heading in ("run", "MiB", "from", "to", "ratio", "weights, MiB", "templated questions"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for kind, measured in runs.items():
        values = [run["megabytes"] for run in measured]
        unit = statistics.median(run["megabytes"] for run in runs["GRPO, LoRA" if KINDS[kind][1] else "GRPO"])
        median = statistics.median(values)
        rows.append({"run": kind, "megabytes": values, "ratio": median / unit, "runs": measured})
        figures = (f"{median:.0f}", f"{min(values):.0f}", f"{max(values):.0f}", f"{median / unit:.2f}")
        table.add_row(kind, *figures, f"{measured[0]['weights']:.0f}", str(measured[0].get("templated", "")))
    Console(width=110).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name not in ("json", "measure")}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        arguments.json.write_text(json.dumps({"device": device, "options": options, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
