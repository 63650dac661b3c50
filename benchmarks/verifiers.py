"""The verifier pool against plain math-verify on one thread, on the same completions; ratios from one run.

    python benchmarks/verifiers.py --json verifiers.json

Plain and pool take turns, and a figure is the median over them. Then one completion in a hundred is hostile: what is
printed beside it is what that costs: every one of them its limit and a new process.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from math_verify import parse, verify
from rich.console import Console
from rich.table import Table

from p2o.verifiers import VerifierPool
from p2o.verifiers.worker import ANSWER, GOLD

HOSTILE = r"\boxed{9^{9^{9^{9}}}}"


def ordinary(count: int) -> tuple[list[str], list[str]]:
    """Completions of a few hundred words with a box at the end, and their solutions; half of them wrong."""
    rng = random.Random(0)
    completions, solutions = [], []
    for _ in range(count):
        n, wrong = rng.randrange(2, 999), rng.random() < 0.5
        answer, solution = rng.choice(
            [
                (f"{n + wrong}", f"{n}"),
                (f"\\frac{{{n + wrong}}}{{7}}", f"\\frac{{{n}}}{{7}}"),
                (f"{n + wrong}x", f"{n}x"),
            ]
        )
        work = " ".join(
            f"Then {rng.randrange(99)} and {rng.randrange(99)} make {rng.randrange(999)}." for _ in range(40)
        )
        completions.append(f"{work} So the answer is \\boxed{{{answer}}}.")
        solutions.append(solution)
    return completions, solutions


def plain(completions: list[str], solutions: list[str]) -> list[float]:
    """math-verify as its documentation has it, in this thread."""
    rewards = []
    for completion, solution in zip(completions, solutions, strict=True):
        gold = parse(f"\\boxed{{{solution}}}", GOLD, parsing_timeout=None)
        answer = parse(completion, ANSWER, extraction_mode="first_match", parsing_timeout=None)
        rewards.append(float(verify(gold, answer, timeout_seconds=None)))
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds for one completion")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    completions, solutions = ordinary(arguments.completions)
    attacked = [HOSTILE if i % 100 == 50 else c for i, c in enumerate(completions)]
    pool = VerifierPool(arguments.workers, timeout=arguments.timeout)
    pool.verify(completions[:10], solutions[:10])  # starts the processes
    plain(completions[:10], solutions[:10])
    seconds: dict[str, list[float]] = {"plain, one thread": [], "pool": [], "pool, 1 % hostile": []}
    for _ in range(arguments.turns):
        began = time.perf_counter()
        expected = plain(completions, solutions)
        seconds["plain, one thread"].append(time.perf_counter() - began)
        for name, batch in (("pool", completions), ("pool, 1 % hostile", attacked)):
            began = time.perf_counter()
            rewards = [verdict.reward for verdict in pool.verify(batch, solutions)]
            seconds[name].append(time.perf_counter() - began)
            if rewards != [0.0 if c is HOSTILE else r for c, r in zip(batch, expected, strict=True)]:
                raise SystemExit(f"{name} disagrees with plain math-verify.")
    pool.close()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table("", "seconds", "completions per second", "speed / plain")
    for name, value in median.items():
        speed = arguments.completions / value
        table.add_row(name, f"{value:.2f}", f"{speed:.0f}", f"{median['plain, one thread'] / value:.2f}")
    Console(width=100).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"options": options, "seconds": median}, indent=1) + "\n")


if __name__ == "__main__":
    main()
