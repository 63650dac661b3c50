"""Short runs of the embedded world: alone, beside a busy loop, and as many at once as there are cores.

With OpenMP threads that wait quietly (`OMP_WAIT_POLICY=PASSIVE`, which `import p2o` sets) and with threads that spin.

    python benchmarks/two_at_once.py

`p2o compare` starts as many single-threaded runs as there are cores, because of what this prints on two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def start(directory: Path, threads: int, policy: str, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "p2o", "train", "--output_dir", str(directory), "--seed", directory.name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--num_threads", str(threads), *options], env=environment, **quiet)  # type: ignore[call-overload, no-any-return]


def seconds(runs: int, threads: int, policy: str, options: list[str]) -> float:
    """Wall-clock time until so many runs, all started at once, are done."""
    with tempfile.TemporaryDirectory() as output:
        began = time.monotonic()
        running = [start(Path(output) / str(seed), threads, policy, options) for seed in range(runs)]
        if any([process.wait() for process in running]):
            raise SystemExit("A run failed.")
        return time.monotonic() - began


@contextmanager
def busy_loop() -> Iterator[None]:
    """Somebody else on one core."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    options = ["--max_steps", str(arguments.steps), "--evaluate_before_and_after", "false"]
    cores = os.cpu_count() or 1
    print(f"{arguments.steps} steps, {cores} cores. Seconds of wall-clock time:")
    print(f"{'OMP_WAIT_POLICY':16}{'threads':>8}{'alone':>8}{'beside a busy loop':>20}{f'{cores} runs at once':>16}")
    for policy in ("PASSIVE", "ACTIVE"):
        for threads in sorted({1, cores}):
            alone = seconds(1, threads, policy, options)
            with busy_loop():
                beside = seconds(1, threads, policy, options)
            at_once = seconds(cores, threads, policy, options)
            print(f"{policy:16}{threads:8}{alone:8.0f}{beside:20.0f}{at_once:16.0f}", flush=True)


if __name__ == "__main__":
    main()
