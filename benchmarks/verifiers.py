"""Verified completions per second against plain single-threaded math-verify, and a batch with 1 % hostile ones.

    python benchmarks/verifiers.py --json verifiers.json

The two take turns over the same ordinary completions, so that what else the machine does is shared between them; the
gold answers repeat as those of a group's rollouts do, and more than half of them are whole numbers. The hostile ones
are towers of powers that never end. The last one is begun when nearly all others are done, so a batch that takes long
by itself is over the limit by as much.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import math_verify
from rich.console import Console
from rich.table import Table

from p2o.verifiers import Limits, Pool, Verdict, verify
from p2o.verifiers.math import COMPLETION, GOLD, gold_text

STUCK = r"\boxed{9^{9^{9^{9}}}}"
FORMS = (
    WHOLE := lambda a, b: f"{a}",
    lambda a, b: rf"\frac{{{a}}}{{{b}}}",
    lambda a, b: rf"{a}\sqrt{{{b}}}",
    lambda a, b: f"({a}, {a + b}]",
    lambda a, b: f"{a / 8}",
    lambda a, b: f"x^2+{a}x-{b}",
)
REASONING = "Let $x = {a}$ and note that $x^2 = {b}$, from which \\(x + 1 = {a} + 1\\) and so on. "


def ordinary(count: int, rollouts: int, rng: random.Random) -> list[tuple[str, str]]:
    """Completions of about 1,500 characters with their gold answers, half of them right."""
    pairs = []
    while len(pairs) < count:
        form = WHOLE if rng.random() < 0.5 else rng.choice(FORMS)
        a, b = rng.randint(2, 400), rng.randint(2, 40)
        for _ in range(rollouts):
            answer = form(a, b) if rng.random() < 0.5 else form(a + rng.randint(1, 9), b)
            reasoning = "".join(REASONING.format(a=rng.randint(1, 99), b=rng.randint(1, 99)) for _ in range(18))
            pairs.append((f"{reasoning}\n\nThe final answer is $\\boxed{{{answer}}}$.", form(a, b)))
    return pairs[:count]


def plain(pairs: list[tuple[str, str]]) -> list[bool]:
    return [
        math_verify.verify(
            math_verify.parse(gold_text(gold), GOLD),
            math_verify.parse(completion, COMPLETION, extraction_mode="first_match"),
        )
        for completion, gold in pairs
    ]


def pooled(pairs: list[tuple[str, str]], pool: Pool) -> list[Verdict]:
    return verify([c for c, _ in pairs], [{"solution": g} for _, g in pairs], pool=pool)


def timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(*arguments), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=800, help="of a batch")
    parser.add_argument("--rollouts", type=int, default=6, help="with the same gold answer")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=Limits.seconds, help="seconds for one completion")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pool = Pool(Limits(seconds=arguments.timeout))
    warm = ordinary(200, arguments.rollouts, random.Random(-1))
    plain(warm), pooled(warm, pool)
    ratios, speeds, pool_speeds, shares = [], [], [], []
    for turn in range(arguments.turns):
        # New ones every turn, since both remember what they have parsed.
        pairs = ordinary(arguments.completions, arguments.rollouts, random.Random(turn))
        expected, alone = timed(plain, pairs)
        verdicts, together = timed(pooled, pairs, pool)
        assert [v.reward == 1 for v in verdicts] == expected
        ratios.append(alone / together)
        speeds.append(len(pairs) / alone)
        pool_speeds.append(len(pairs) / together)
    hostile = max(arguments.completions // 100, 1)
    for turn in range(3):
        rng = random.Random(100 + turn)
        pairs = ordinary(arguments.completions, arguments.rollouts, rng)
        for index in rng.sample(range(len(pairs)), hostile):
            pairs[index] = (STUCK, pairs[index][1])
        verdicts, seconds = timed(pooled, pairs, pool)
        assert sum(v.reason == "time-out" for v in verdicts) == hostile
        shares.append(seconds / arguments.timeout)
    pool.close()
    table = Table(title=f"{arguments.completions} completions, {pool.size} workers, {arguments.turns} turns")
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {
        "plain math-verify, completions per second": speeds,
        "worker processes, completions per second": pool_speeds,
        "worker processes / plain": ratios,
        f"{hostile} hostile among them: seconds / limit of {arguments.timeout:g} s": shares,
    }
    for name, values in rows.items():
        digits = 0 if "per second" in name else 2
        table.add_row(name, *(f"{f(values):.{digits}f}" for f in (statistics.median, min, max)))
    Console(width=110).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(
            json.dumps({"options": options, "workers": pool.size, "turns": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
