"""Two short runs of the embedded world: one after the other on all cores, against both at once on one thread each.

    python benchmarks/two_at_once.py

`p2o compare` starts as many single-threaded runs as there are cores, because of what this prints on two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(directory: Path, seed: int, threads: int, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "p2o", "train", "--output_dir", str(directory), "--seed", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--num_threads", str(threads), *options], env=environment, **quiet)  # type: ignore[call-overload, no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    options = ["--max_steps", str(arguments.steps), "--evaluate_before_and_after", "false"]
    cores = os.cpu_count() or 1
    seconds = {}
    with tempfile.TemporaryDirectory() as output:
        for at_once in (False, True):
            began = time.monotonic()
            running = []
            for seed in range(cores):
                threads = 1 if at_once else cores
                running.append(start(Path(output) / f"{at_once}-{seed}", seed, threads, options))
                if not at_once:
                    running[-1].wait()
            if any(process.wait() for process in running):
                raise SystemExit("A run failed.")
            seconds[at_once] = time.monotonic() - began
    print(f"{cores} runs one after the other, {cores} threads each: {seconds[False]:.0f} s")
    print(f"{cores} runs at once, one thread each: {seconds[True]:.0f} s ({seconds[True] / seconds[False]:.2f})")


if __name__ == "__main__":
    main()
