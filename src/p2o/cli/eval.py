"""`p2o eval`: n answers to every question of some tasks; avg@n, pass@k, maj@k; two evaluations compared."""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2o.cli.console import Meter, share
from p2o.cli.errors import InputError
from p2o.cli.frozen import (
    add_options,
    charge,
    load_model,
    load_questions,
    model_settings,
    open_directory,
    parse,
    refuse_long_questions,
    run,
    sampling_of,
)
from p2o.evaluation.comparison import compare
from p2o.evaluation.evaluate import evaluate
from p2o.evaluation.results import by_question, default_ks, question_key, summarise
from p2o.ledger import Ledger
from p2o.state import write_json

RESULT = "eval.json"
TRANSCRIPTS = "transcripts.jsonl"


def evaluation(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    return run(_compare if "--compare" in argv else _evaluate, argv)


def _evaluate(argv: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(
        prog="p2o eval",
        allow_abbrev=False,
        description=__doc__,
        epilog="p2o eval --compare A B, with --help, compares two evaluations question by question.",
    )
    add_options(parser)
    parser.add_argument("--n", type=int, default=8, help="answers to each question (default: %(default)s)")
    parser.add_argument("--k", help="for pass@k and maj@k, such as 1,4,8 (default: powers of two up to n, and n)")
    parser.add_argument("--questions_per_batch", type=int, default=16, help="what a kill loses at most (%(default)s)")
    arguments = parse(parser, argv, [("n", 1), ("questions_per_batch", 1)])
    ks = _ks(arguments.k, arguments.n)
    sampling = sampling_of(arguments)
    if arguments.n > 1 and not sampling.temperature:
        raise InputError("At --temperature 0 all answers to a question are the same: evaluate with --n 1.")
    tasks = load_questions(arguments, console.print)
    settings = {
        **model_settings(arguments),
        "sampling": asdict(sampling),
        "n": arguments.n,
        "seed": arguments.seed,
        "questions_per_batch": arguments.questions_per_batch,
        "verifier": arguments.verifier,
        "reward_func": arguments.reward_func,
        "questions": {task.name: _digest([question_key(row) for row in task.rows]) for task in tasks},
    }
    directory = open_directory(arguments.output_dir, "eval", arguments.model, settings)
    model = load_model(arguments)
    refuse_long_questions(tasks, model, sampling)
    count = sum(len(task.rows) for task in tasks)
    console.print(f"{count} questions × {arguments.n} answers by {arguments.model} · {directory}", markup=False)
    with Meter(console) as meter:
        samples = evaluate(
            tasks,
            model,
            sampling,
            n=arguments.n,
            seed=arguments.seed,
            transcripts=directory / TRANSCRIPTS,
            questions_per_batch=arguments.questions_per_batch,
            on_progress=lambda done, total: meter.update("answers", done, total),
        )
    ledger = Ledger()
    for groups in samples.values():
        charge(ledger, "evaluation", (s for group in groups for s in group))
    result = {
        "settings": settings,
        "tasks": {
            task.name: {
                **summarise(samples[task.name], ks),
                "by_question": by_question(task.rows, samples[task.name]),
            }
            for task in tasks
        },
        "prompt_tokens": ledger.prompt_tokens["evaluation"],
        "completion_tokens": ledger.completion_tokens["evaluation"],
        "cost": sum(s.cost for groups in samples.values() for group in groups for s in group),
    }
    write_json(directory / RESULT, result)
    console.print(as_table(result, ks))
    console.print(f"{directory / RESULT} · every answer: {directory / TRANSCRIPTS}", markup=False)
    return 0


def _ks(listed: str | None, n: int) -> list[int]:
    if listed is None:
        return default_ks(n)
    try:
        ks = sorted({int(k) for k in listed.split(",")})
    except ValueError:
        raise InputError(f"--k {listed!r} is no list of whole numbers such as 1,4,8.") from None
    if not 1 <= ks[0] <= ks[-1] <= n:
        raise InputError(f"--k {listed}: k is from 1 to --n, which is {n}.")
    return ks


def _digest(keys: list[str]) -> str:
    return f"{len(keys)} questions {hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}"


def as_table(result: dict[str, Any], ks: list[int]) -> Table:
    n = result["settings"]["n"]
    table = Table(title=f"{result['settings']['model']} (± standard error over questions)")
    # pass@1 is avg@n wherever rewards are 0 and 1.
    shown = [k for k in ks if k > 1]
    headings = ["task", "questions", f"avg@{n}", *(f"pass@{k}" for k in shown), *(f"maj@{k}" for k in shown)]
    for heading in (*headings, "tokens", "cut off", "answers"):
        table.add_column(heading, justify="left" if heading in ("task", "answers") else "right")
    for name, task in result["tasks"].items():
        error = task["standard_error"]
        length = task["mean_length"]
        table.add_row(
            name,
            str(task["questions"]),
            share(task["avg"]) + ("" if error is None else f" ± {100 * error:.1f}"),
            *(share(task["pass@k"][str(k)]) for k in shown),
            *(share(task["maj@k"][str(k)]) for k in shown),
            "–" if length is None else f"{length:,.0f}",
            share(task["truncated"]),
            ", ".join(f"{reason} {count}" for reason, count in task["reasons"].items()),
        )
    return table


# -- two evaluations ---------------------------------------------------------------------------------------------------


def _compare(argv: list[str], console: Console) -> int:
    parser = argparse.ArgumentParser(
        prog="p2o eval --compare",
        allow_abbrev=False,
        description="Compares two evaluations of the same questions, the second against the first: paired bootstrap "
        "over questions of the difference of avg@n and, with n = 1, the exact McNemar test.",
    )
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), required=True, help=f"{RESULT}, or its directory")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--questions", type=int, default=10, help="how many that flipped to show (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for all of it")
    arguments = parser.parse_args(argv)
    if arguments.resamples < 100 or arguments.questions < 0:
        raise InputError("--resamples must be at least 100, and --questions at least 0.")
    first, second = (_read(Path(name)) for name in arguments.compare)
    try:
        compared = compare(first, second, seed=arguments.seed, resamples=arguments.resamples)
    except ValueError as error:
        raise InputError(str(error)) from None
    table = Table(
        title=f"Second against first; 95 % interval by paired bootstrap over questions, seed {arguments.seed}"
    )
    for heading in ("task", "first", "second", "difference", "95 % interval", "p (bootstrap)", "p (McNemar, exact)"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, task in compared.items():
        exact = task.get("mcnemar")
        table.add_row(
            name,
            share(task["first"]),
            share(task["second"]),
            f"{100 * task['difference']:+.1f}",
            f"{100 * task['low']:+.1f} to {100 * task['high']:+.1f}",
            f"{task['p_value']:.4f}",
            f"{exact['p_value']:.4f} ({exact['gained']} gained, {exact['lost']} lost)" if exact else "–",
        )
    console.print(f"first:  {first['settings']['model']}\nsecond: {second['settings']['model']}", markup=False)
    console.print(table)
    for name, task in compared.items():
        if not task["questions"] or not arguments.questions:
            continue
        flipped = Table(title=f"{name}: {len(task['questions'])} questions differ, most of all these")
        for heading in ("question", "first", "second", "asked"):
            flipped.add_column(heading, justify="left" if heading == "asked" else "right")
        for q in task["questions"][: arguments.questions]:
            text = " ".join(q["text"].split())
            text = text if len(text) <= 80 else text[:80] + "…"
            flipped.add_row(str(q["question"]), share(q["first"]), share(q["second"]), Text(text))
        console.print(flipped)
    if arguments.output:
        try:
            write_json(arguments.output, compared)
        except OSError as error:
            raise InputError(f"Cannot write {arguments.output}: {error.strerror}.") from None
    return 0


def _read(path: Path) -> Any:
    path = path / RESULT if path.is_dir() else path
    try:
        result = json.loads(path.read_text())
        result["settings"]["sampling"], result["tasks"]
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}. An evaluation leaves it when it is finished."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no result of `p2o eval`.") from None
    return result
