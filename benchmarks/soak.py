"""A long run of the embedded world, watched from outside: memory, open files and the time of a step have to stay flat.

    python benchmarks/soak.py --json soak.json                 # 2,000 steps, half an hour
    python benchmarks/soak.py --steps 240                      # does it work?

It is `p2o train` with a small batch, a reward that is a hash of the completion, so that every prompt phase has hard
questions and finds templates, and a learning rate that leaves the lengths of completions as they are. Of the process
and its children are read, twice a second, the resident memory, the number of open files and the processor time; of its
metrics, what each step took. Compared is the second tenth of the run, when all has been loaded, with the last: by
medians, processor time by its mean, prompt phases and all. A step takes longer on a busy machine; its processor time
hardly depends on that.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from p2o.pico import world

STEPS_OF_AN_EPOCH = 12
QUESTIONS = 4
"""Of a batch."""


@dataclass(frozen=True)
class Sample:
    """What the process and its children hold at a moment.

    Args:
        step: optimizer steps taken by then.
        memory: resident and not of a file, in MiB. Libraries are left out: their share depends on who else uses them.
        files: open ones, with sockets and pipes.
        seconds: of a processor so far.
    """

    step: int
    memory: float
    files: int
    seconds: float


def configuration(directory: Path, steps: int) -> Path:
    rows = directory / "rows.jsonl"
    world.train_dataset(hard=QUESTIONS * STEPS_OF_AN_EPOCH // 2, easy=QUESTIONS * STEPS_OF_AN_EPOCH // 2).to_json(rows)
    settings = {
        **{"model_name_or_path": "pico", "dataset_name": str(rows), "reward_funcs": ["chance:chance"]},
        **{"num_generations": 4, "per_device_train_batch_size": 4 * QUESTIONS, "max_steps": steps},
        **{"max_completion_length": 24, "learning_rate": 1e-6, "min_hard_questions": 2, "evolution_budget": 60},
        **{"parents_per_iteration": 2, "reflection_prompt": world.REFLECTION_PROMPT, "reflection_max_tokens": 48},
        **{"save_strategy": "steps", "save_steps": 50, "save_total_limit": 2, "logging_steps": 1},
        **{"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none", "num_threads": 1},
    }
    path = directory / "soak.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def held(process: psutil.Process) -> tuple[float, int, float]:
    """Memory in MiB, open files and processor seconds of a process and its children."""
    memory, files, seconds = 0.0, 0, 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            info = one.memory_info()
            memory += (info.rss - info.shared) / 2**20
            files += one.num_fds()
            seconds += sum(one.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return memory, files, seconds


def lines(path: Path) -> list[dict[str, Any]]:
    """The metrics so far, without a line that is being written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]


def watch(process: psutil.Popen, metrics: Path) -> list[Sample]:
    """Samples until the run ends."""
    samples, step, seen = [], 0, 0
    while process.poll() is None:
        time.sleep(0.5)
        if metrics.exists():
            with open(metrics, "rb") as file:
                file.seek(seen)
                whole = file.read().rpartition(b"\n")[0]
            seen += len(whole)
            step = max([step, *(int(json.loads(line)["step"]) for line in whole.splitlines() if line)])
        try:
            samples.append(Sample(step, *held(process)))
        except psutil.NoSuchProcess:
            break
    return samples


def growth(pairs: Sequence[tuple[int, float]], steps: int) -> tuple[float, float, float]:
    """Medians of the second tenth of the steps and of the last, and how much the latter is more, as a share."""
    tenth = steps / 10
    early = statistics.median(value for step, value in pairs if tenth <= step < 2 * tenth)
    late = statistics.median(value for step, value in pairs if step >= steps - tenth)
    return early, late, late / early - 1


def mean_growth(samples: Sequence[Sample], steps: int) -> tuple[float, float, float]:
    """Processor seconds of a step, over the second tenth of the steps and over the last, and the growth as a share."""
    found = []
    for start in (0.1, 0.9):
        part = [sample for sample in samples if start * steps <= sample.step <= (start + 0.1) * steps]
        found.append((part[-1].seconds - part[0].seconds) / (part[-1].step - part[0].step))
    return found[0], found[1], found[1] / found[0] - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=0.05, help="growth of memory and files that is no fault")
    parser.add_argument("--json", help="also write the figures and all samples to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / "run"
        config = configuration(Path(work), arguments.steps)
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "p2o", "train", "--config", str(config), "--output_dir", str(run)]
        with open(Path(work) / "log", "w") as log:
            process = psutil.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log)
            samples = watch(process, run / "metrics.jsonl")
        if process.wait() != 0:
            raise SystemExit((Path(work) / "log").read_text()[-4000:])
        metrics = lines(run / "metrics.jsonl")
        phases = len(list((run / "templates").glob("epoch-*.json")))
    took = [(int(line["step"]), float(line["step_time"])) for line in metrics if "step_time" in line]
    figures = {
        "memory, MiB": growth([(sample.step, sample.memory) for sample in samples], arguments.steps),
        "open files": growth([(sample.step, float(sample.files)) for sample in samples], arguments.steps),
        "seconds of a step": growth(took, arguments.steps),
        "processor seconds of a step": mean_growth(samples, arguments.steps),
    }
    said = [f"{arguments.steps:,} steps and {phases} prompt phases."]
    said += [
        f"{name}: {early:.3g}, at the end {late:.3g} ({more:+.1%})." for name, (early, late, more) in figures.items()
    ]
    print(*said, sep="\n")
    if arguments.json:
        kept = [asdict(sample) for sample in samples[:: max(1, len(samples) // 200)]]
        content = {"said": said, "growth": figures, "samples": kept}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    if max(figures["memory, MiB"][2], figures["open files"][2]) > arguments.limit:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
