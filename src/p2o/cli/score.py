"""`p2o score FILE.jsonl`: the verdict on every completion of a file, in the file's order."""

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from p2o.cli.errors import InputError
from p2o.cli.words import normalized_option
from p2o.completions import final_text
from p2o.ranks import FINISHED, Ranks
from p2o.tasks.layouts import gold_of, part_of
from p2o.thoughts import MARKED, THOUGHTS, thought_reading
from p2o.verifiers import COLUMNS, REASONS, VERIFIERS, Limits, Pool, Verdict, check_solutions, verify_stream

SHOWN = 5
LINES_AT_ONCE = 256
"""So many consecutive lines are one process's, where several share them."""
GOLDS_AT_ONCE = 10_000
Pair = tuple[str, dict[str, Any]]
"""A completion, and the columns of its gold answer."""


def score(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 2: bad input, 130: interrupted).

    Where a launcher started several processes, they share the lines; the first one checks, writes and prints.
    """
    ranks = Ranks.launched()
    if ranks.is_first:
        try:
            return _score_first(argv, ranks)
        finally:
            ranks.finish()
    while (task := ranks.hear()) != FINISHED:
        _verify_share(task[0], ranks)
    ranks.collect(None)
    return 0


def _score_first(argv: list[str], ranks: Ranks) -> int:
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    arguments = _parser().parse_args([normalized_option(word) for word in argv])
    try:
        return _score(arguments, console, ranks)
    except InputError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="p2o score",
        description="Verifies completions in worker processes with limits, and writes for each line of FILE a line "
        "with reward (null if the completion could not be scored for reasons other than its content), extracted (the "
        f"answer found), reason ({', '.join(REASONS)}) and milliseconds.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="one JSON object a line")
    parser.add_argument("--verifier", choices=VERIFIERS, default="math")
    parser.add_argument(
        "--thoughts",
        choices=THOUGHTS[1:],
        default=None,
        help="thoughts of thinking models: 'marked' ones are no answers (the default, but for 'accuracy'); 'opened': "
        "completions begin inside one, which the chat template opened; 'kept': as any other text",
    )
    parser.add_argument("--completion_column", default="completion", metavar="NAME", help="text or chat")
    parser.add_argument("--solution_column", default="solution", metavar="NAME", help="gold answer (math, exact)")
    parser.add_argument("--entry_column", default="entry", metavar="NAME", help="reasoning-gym entry as JSON (gym)")
    parser.add_argument("--family_column", default="family", metavar="NAME", help="its family, if not in it (gym)")
    # The second name is the one that `p2o train` has.
    limits: list[tuple[str, type, Any, str, str]] = [
        ("timeout", float, Limits.seconds, "SECONDS", "for one completion"),
        ("memory", int, Limits.memory_mb, "MIB", "for one worker"),
        ("workers", int, None, "N", "worker processes (default: one per core)"),
    ]
    for name, kind, default, unit, text in limits:
        parser.add_argument(
            f"--{name}", f"--verifier_{name}", dest=name, type=kind, default=default, metavar=unit, help=text
        )
    parser.add_argument("--output", type=Path, default=None, help="default: FILE.scored.jsonl beside FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def _score(arguments: argparse.Namespace, console: Console, ranks: Ranks) -> int:
    output = arguments.output or arguments.file.with_name(f"{arguments.file.stem}.scored.jsonl")
    if output.exists() and not arguments.overwrite:
        raise InputError(f"{output} already exists: choose another --output, or add --overwrite.")
    if output.exists() and arguments.file.exists() and output.samefile(arguments.file):
        raise InputError(f"The output {output} is the input itself.")
    try:
        pool = _pool(arguments, ranks)
    except ValueError as error:
        raise InputError(str(error)) from None
    tally = _Tally()
    try:
        with console.status("checking"):
            rows = _check(arguments, pool)
        with open(output, "w") as file, console.status("verifying") as status:
            pending: dict[int, Verdict] = {}
            try:
                for index, verdict in _verdicts(arguments, pool, ranks):
                    if isinstance(verdict, str):
                        raise InputError(f"{arguments.file}, line {index + 1}: {verdict}.")
                    pending[index] = verdict
                    # Written in the file's order; a slow completion holds up the following ones.
                    while (done := tally.count) in pending:
                        ready = pending.pop(done)
                        _write(file, done, ready)
                        tally.add(ready)
                    if done % 100 == 0:
                        status.update(f"verifying · {done} of {rows}")
            except KeyboardInterrupt:
                for index, verdict in sorted(pending.items()):
                    _write(file, index, verdict)
                    tally.add(verdict)
                console.print(tally.table())
                console.print(f"Interrupted; {tally.count} of {rows} verdicts are in {escape(str(output))}.")
                return 130
    except OSError as error:
        raise InputError(f"Cannot write {output}: {error.strerror}.") from None
    finally:
        pool.close()
    console.print(tally.table())
    console.print(f"Verdicts: {escape(str(output))}")
    return 0


def _pool(arguments: argparse.Namespace, ranks: Ranks) -> Pool:
    workers = arguments.workers
    if workers is None and ranks.local_count > 1:  # they share the cores
        workers = max((os.cpu_count() or 1) // ranks.local_count, 1)
    return Pool(Limits(arguments.timeout, arguments.memory, workers))


def _verdicts(arguments: argparse.Namespace, pool: Pool, ranks: Ranks) -> Iterator[tuple[int, Verdict | str]]:
    """Index and verdict of each line, or what is wrong with it; of other processes' lines, too."""
    if ranks.count == 1:
        yield from _verified(arguments, _pairs(arguments), pool)
        return
    ranks.tell((arguments,))
    for number, pairs in enumerate(_blocks(arguments)):
        first, process = number * LINES_AT_ONCE, number % ranks.count
        found = _verified(arguments, pairs, pool) if process == 0 else ranks.take(f"verdicts/{number}")
        if isinstance(found, str):
            raise InputError(found)
        yield from ((first + index, verdict) for index, verdict in found)


def _verify_share(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Verifies the lines that are another process's than the first one's, which takes the verdicts."""
    pool = _pool(arguments, ranks)
    try:
        for number, pairs in enumerate(_blocks(arguments)):
            if number % ranks.count == ranks.index:
                try:
                    found: Any = list(_verified(arguments, pairs, pool))
                except (InputError, OSError) as error:
                    found = str(error)
                ranks.give(f"verdicts/{number}", found)
    finally:
        pool.close()


def _verified(arguments: argparse.Namespace, pairs: Iterable[Pair], pool: Pool) -> Iterator[tuple[int, Verdict | str]]:
    reading = thought_reading(arguments.thoughts) if arguments.thoughts else MARKED
    return verify_stream(pairs, arguments.verifier, pool=pool, reading=reading)


def _blocks(arguments: argparse.Namespace) -> Iterator[list[Pair]]:
    pairs = _pairs(arguments)
    while block := list(islice(pairs, LINES_AT_ONCE)):
        yield block


def _write(file: Any, index: int, verdict: Verdict) -> None:
    record = {
        "line": index + 1,
        "reward": verdict.reward,
        "extracted": verdict.extracted,
        "reason": verdict.reason,
        "milliseconds": verdict.milliseconds,
    }
    file.write(json.dumps(record) + "\n")


@dataclass
class _Tally:
    """Counts of the verdicts so far.

    Args:
        reasons: completions by reason.
        unscored: completions without a reward, by reason.
        total: sum of the rewards.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)
    total: float = 0.0

    @property
    def count(self) -> int:
        return self.reasons.total()

    def add(self, verdict: Verdict) -> None:
        self.reasons[verdict.reason] += 1
        self.unscored[verdict.reason] += verdict.reward is None
        self.total += verdict.reward or 0.0

    def table(self) -> Table:
        scored = self.count - self.unscored.total()
        left_out = f", {self.unscored.total()} unscored" if self.unscored.total() else ""
        mean = self.total / scored if scored else math.nan
        table = Table(title=f"{self.count} completions{left_out}, mean reward {mean:.3f}")
        table.add_column("reason")
        for heading in ("completions", "share", "unscored"):
            table.add_column(heading, justify="right")
        for reason in REASONS:
            share = 100 * self.reasons[reason] / max(self.count, 1)
            table.add_row(reason, str(self.reasons[reason]), f"{share:.1f} %", str(self.unscored[reason]))
        return table


def _check(arguments: argparse.Namespace, pool: Pool) -> int:
    """Reads the whole file once, and every different gold answer; returns the number of rows.

    Raises:
        InputError: lines that cannot be scored, by number.
    """
    problems: list[tuple[int, str]] = []
    first_line: dict[str, int] = {}
    rows = 0
    for number, row in _lines(arguments.file):
        rows = number
        problem = row if isinstance(row, str) else _problem(row, arguments)
        if problem:
            problems.append((number, problem))
        elif not isinstance(row, str) and arguments.verifier == "math":
            first_line.setdefault(str(_gold(row, arguments.solution_column)), number)
    golds = list(first_line)
    for start in range(0, len(golds), GOLDS_AT_ONCE):
        for index in check_solutions(golds[start : start + GOLDS_AT_ONCE], pool=pool):
            gold = golds[start + index]
            shown = gold if len(gold) <= 60 else gold[:60] + "…"
            message = f"math-verify cannot parse {arguments.solution_column!r}: {shown!r}"
            problems.append((first_line[gold], message))
    if problems:
        problems.sort()
        shown = "".join(f"\n  line {number}: {problem}" for number, problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{arguments.file} cannot be scored; nothing was scored.{shown}{more}")
    if not rows:
        raise InputError(f"{arguments.file} is empty.")
    return rows


def _problem(row: dict[str, Any], arguments: argparse.Namespace) -> str | None:
    gold = {"solution": arguments.solution_column, "entry": arguments.entry_column}
    for name in (arguments.completion_column, *(gold[column] for column in COLUMNS[arguments.verifier])):
        if part_of(row, name) is None:
            return f"no {name!r} (the line has {', '.join(map(repr, row)) or 'nothing'})"
    if _text(part_of(row, arguments.completion_column)) is None:
        return f"{arguments.completion_column!r} is neither text nor a chat that ends with text"
    if arguments.verifier != "gym" and not isinstance(_gold(row, arguments.solution_column), str):
        return f"{arguments.solution_column!r} is neither text nor a number"
    if arguments.verifier == "gym":
        try:
            entry = part_of(row, arguments.entry_column)
            entry = json.loads(entry) if isinstance(entry, str) else entry
            if not (part_of(row, arguments.family_column) or entry["metadata"]["source_dataset"]):
                raise KeyError(arguments.family_column)
        except (ValueError, KeyError, TypeError) as error:
            return f"{arguments.entry_column!r} is not a reasoning-gym entry ({type(error).__name__}: {error})"
    return None


def _gold(row: dict[str, Any], column: str) -> Any:
    """The gold answer, unwrapped as in training."""
    return gold_of(part_of(row, column))[0]


def _text(completion: Any) -> str | None:
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        return final_text(completion) if isinstance(completion[-1].get("content"), str) else None
    return completion if isinstance(completion, str) else None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers from 1, each with the row or an error message."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    yield number, row if isinstance(row, dict) else "it is not a JSON object"
                except (ValueError, RecursionError) as error:
                    yield number, f"it is not valid JSON in UTF-8 ({error})"
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None


def _pairs(arguments: argparse.Namespace) -> Iterator[Pair]:
    for number, row in _lines(arguments.file):
        if isinstance(row, str):
            raise InputError(f"{arguments.file}, line {number}: {row}.")
        gold = {
            "solution": _gold(row, arguments.solution_column),
            "entry": part_of(row, arguments.entry_column),
            "family": part_of(row, arguments.family_column),
        }
        yield _text(part_of(row, arguments.completion_column)) or "", gold
