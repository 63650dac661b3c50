"""How many pairs of gold answer and completion plain math-verify, TRL and the verifier `math` judge right, by kind.

    python benchmarks/answers.py
    python benchmarks/answers.py pairs.jsonl more.jsonl --show

Each line of a file is an object with `solution`, `completion` and `want` (1 or 0, as a mathematician says); `kind`, or
`source` without one, groups them. A gold answer that cannot be read pays nobody. Plain math-verify parses both texts
as they come, with its defaults, as its README shows.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import math_verify
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from trl.rewards import accuracy_reward

from p2o.verifiers import Limits, Pool, Verdict, verify_stream

OWN = Path(__file__).parents[1] / "tests" / "answers.jsonl"
Pair = dict[str, Any]


def read(paths: list[Path]) -> list[Pair]:
    pairs = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            pair = json.loads(line)
            missing = [name for name in ("solution", "completion", "want") if name not in pair]
            if missing:
                raise SystemExit(f"{path}, line {number}: it has no {missing[0]!r}.")
            pairs.append(pair)
    return pairs


def plain(pairs: list[Pair]) -> list[bool]:
    return [
        math_verify.verify(math_verify.parse(pair["solution"]), math_verify.parse(pair["completion"])) for pair in pairs
    ]


def trl(pairs: list[Pair]) -> list[bool]:
    completions = [[{"role": "assistant", "content": pair["completion"]}] for pair in pairs]
    return [reward == 1 for reward in accuracy_reward(completions, [pair["solution"] for pair in pairs])]


def ours(pairs: list[Pair]) -> list[bool]:
    paid = [False] * len(pairs)
    pool = Pool(Limits(seconds=30))
    for index, verdict in verify_stream(((p["completion"], {"solution": p["solution"]}) for p in pairs), pool=pool):
        paid[index] = isinstance(verdict, Verdict) and verdict.reward == 1
    pool.close()
    return paid


JUDGES: dict[str, Callable[[list[Pair]], list[bool]]] = {"math-verify": plain, "TRL": trl, "math": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[OWN], metavar="FILE.jsonl", help="default: our own")
    parser.add_argument("--show", action="store_true", help="list the pairs that `math` judges otherwise than wanted")
    parser.add_argument("--markdown", action="store_true", help="print the table as the documentation has it")
    arguments = parser.parse_args()
    pairs = read(arguments.files)
    paid = {name: judge(pairs) for name, judge in JUDGES.items()}
    kinds = list(dict.fromkeys(kind(pair) for pair in pairs))
    rows = [counts(name, [i for i, pair in enumerate(pairs) if kind(pair) == name], pairs, paid) for name in kinds]
    rows.append(counts("all", list(range(len(pairs))), pairs, paid))
    headings = ["kind", "pairs", *(f"{name}: right" for name in paid), *(f"{name}: wrongly paid" for name in paid)]
    if arguments.markdown:
        print("| " + " | ".join(headings) + " |\n|---|" + "---:|" * (len(headings) - 1))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        table = Table(title=f"{len(pairs)} pairs")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "kind" else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        Console(width=130).print(table)
    if arguments.show:
        for index, pair in enumerate(pairs):
            if paid["math"][index] != bool(pair["want"]):
                print(f"want {pair['want']}: {pair['solution']!r} || {pair['completion']!r}")


def kind(pair: Pair) -> str:
    return str(pair.get("kind") or pair.get("source") or "")


def counts(name: str, indices: list[int], pairs: list[Pair], paid: dict[str, list[bool]]) -> list[str]:
    right, wrongly = Counter[str](), Counter[str]()
    for judge, verdicts in paid.items():
        for index in indices:
            right[judge] += verdicts[index] == bool(pairs[index]["want"])
            wrongly[judge] += verdicts[index] and not pairs[index]["want"]
    return [name, str(len(indices)), *(str(right[judge]) for judge in paid), *(str(wrongly[judge]) for judge in paid)]


if __name__ == "__main__":
    main()
