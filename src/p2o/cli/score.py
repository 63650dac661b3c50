"""`p2o score`: rewards of completions at hand, by the verifiers of training."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from p2o.verifiers import VerifierPool

BATCH = 1000


class RowError(Exception):
    """A row that cannot be scored, by its line."""


def score(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 2: bad input, 130: interrupted, with what was finished)."""
    parser = argparse.ArgumentParser(prog="p2o score", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="JSON Lines with completions (text or chat) and solutions")
    parser.add_argument("--output", type=Path, help="default: FILE with .scored.jsonl in place of its ending")
    parser.add_argument("--verifier", choices=("math", "exact"), default="math")
    parser.add_argument("--completion_column", default="completion")
    parser.add_argument("--solution_column", default="solution")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for one completion")
    parser.add_argument("--memory", type=float, default=1.0, help="GiB for one process, beyond its libraries")
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores by default")
    arguments = parser.parse_args(argv)
    output = arguments.output or arguments.file.with_suffix(".scored.jsonl")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if output.exists():
            raise RowError(f"{output} exists already; name another --output or remove it.")
        columns = (arguments.completion_column, arguments.solution_column)
        total = sum(1 for _ in rows(arguments.file, *columns))
    except (RowError, OSError) as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}")
        return 2

    counts: Counter[str] = Counter()
    rewards: list[float] = []
    pool = VerifierPool(arguments.workers, timeout=arguments.timeout, memory=int(arguments.memory * 2**30))
    code = 0
    try:
        with output.open("x") as file, Progress(console=errors, transient=True) as progress:
            task = progress.add_task("verifying", total=total)
            pairs = rows(arguments.file, *columns)
            while batch := list(islice(pairs, BATCH)):
                completions, solutions = zip(*batch, strict=True)
                verdicts = pool.verify(completions, solutions, arguments.verifier)
                file.writelines(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)
                file.flush()
                counts.update(verdict.reason for verdict in verdicts)
                rewards += [verdict.reward for verdict in verdicts if verdict.reward is not None]
                progress.advance(task, len(batch))
    except KeyboardInterrupt:
        code = 130
    finally:
        pool.close()
    table = Table("reason", "completions")
    for reason, count in counts.most_common():
        table.add_row(reason, str(count))
    told = Console(highlight=False, soft_wrap=True)
    told.print(table)
    mean = f"mean reward {sum(rewards) / len(rewards):.3f} · " if rewards else ""
    told.print(f"{sum(counts.values())} of {total} completions · {mean}{escape(str(output))}")
    return code


def rows(file: Path, completion_column: str, solution_column: str) -> Iterator[tuple[str, str]]:
    """Completion and solution of each line.

    Raises:
        RowError: not JSON, no such field, or a field of another type; names the line, counted from 1.
    """
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RowError(f"{file}, line {number}: not valid JSON ({error}).") from None
            fields = []
            for column in (completion_column, solution_column):
                if not isinstance(row, dict) or column not in row:
                    raise RowError(
                        f"{file}, line {number}: no field `{column}`; --completion_column and "
                        "--solution_column name others."
                    )
                text = _text(row[column])
                if text is None:
                    raise RowError(f"{file}, line {number}, field `{column}`: neither text nor a chat.")
                fields.append(text)
            yield fields[0], fields[1]


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) else None
