"""`p2o eval`: n answers to every question; avg@n, pass@k, maj@k; comparison of two evaluations."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2o.cli.console import share
from p2o.cli.errors import InputError
from p2o.cli.frozen import charge, run
from p2o.cli.frozen_answers import TRANSCRIPTS, AnswerArguments, answer_all
from p2o.cli.frozen_options import parse
from p2o.cli.options import Parser
from p2o.cli.words import normalized_option
from p2o.evaluation.comparison import compare
from p2o.evaluation.results import by_question, default_ks, summarise
from p2o.evaluation.types import QuestionSet, Sample
from p2o.ledger import Ledger
from p2o.options import check_ranges
from p2o.ranks import Ranks
from p2o.state import write_json
from p2o.templates import POSITIONS

RESULT = "eval.json"


def evaluation(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    return run(_compare if "--compare" in argv else _evaluate, argv)


@dataclass
class EvalArguments(AnswerArguments):
    """Options of `p2o eval`."""

    k: str | None = field(
        default=None,
        metadata={"help": "For pass@k and maj@k, such as 1,4,8; powers of two up to n, and n, when not set."},
    )
    instruction: str | None = field(
        default=None,
        metadata={"help": "An instruction that is put in front of every question, as a template is in training."},
    )
    template_position: str = field(
        default="user",
        metadata={"help": "Where it is put, see the option of `p2o train`: user or system.", "choices": POSITIONS},
    )


def _evaluate(argv: list[str], console: Console, ranks: Ranks) -> int:
    arguments = parse(
        EvalArguments,
        argv,
        prog="p2o eval",
        description="Evaluates a model: n answers to every question. p2o eval --compare A B compares two evaluations.",
    )
    ks = _ks(arguments.k, arguments.n)
    instruction = (arguments.instruction or "").strip()
    found = answer_all(arguments, console, ranks, "eval", instruction, arguments.template_position)
    result = _result(found.settings, found.tasks, found.samples, ks)
    write_json(found.directory / RESULT, result)
    console.print(as_table(result, ks))
    console.print(f"{found.directory / RESULT} · every answer: {found.directory / TRANSCRIPTS}", markup=False)
    return 0


def _result(
    settings: dict[str, Any], tasks: list[QuestionSet], samples: dict[str, list[list[Sample]]], ks: list[int]
) -> dict[str, Any]:
    """The content of `eval.json`."""
    ledger = Ledger()
    for groups in samples.values():
        charge(ledger, "evaluation", (s for group in groups for s in group))
    return {
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


def _asked(settings: dict[str, Any]) -> str:
    """The model, and what it was told in front of every question."""
    told = " ".join(settings.get("instruction", "").split())
    return f"{settings['model']}, told: {told}" if told else str(settings["model"])


def _ks(listed: str | None, n: int) -> list[int]:
    if listed is None:
        return default_ks(n)
    try:
        ks = sorted({int(k) for k in listed.split(",")})
    except ValueError:
        raise InputError(f"--k {listed!r} is not a list of integers such as 1,4,8.") from None
    if not 1 <= ks[0] <= ks[-1] <= n:
        raise InputError(f"--k {listed}: k is from 1 to --n, which is {n}.")
    return ks


def as_table(result: dict[str, Any], ks: list[int]) -> Table:
    n = result["settings"]["n"]
    table = Table(title=Text(f"{_asked(result['settings'])} (± standard error over questions)"))
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
            ", ".join(f"{reason} {count}" for reason, count in task["reasons"].items())
            + (f" ({task['unscored']} unscored)" if task["unscored"] else ""),
        )
    return table


# -- two evaluations ---------------------------------------------------------------------------------------------------


@dataclass
class CompareArguments:
    """Options of `p2o eval --compare`."""

    compare: list[str] = field(metadata={"help": f"The first and the second: {RESULT}, or its directory."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap."})
    resamples: int = field(default=10_000, metadata={"help": "Resamples of the bootstrap."})
    questions: int = field(default=10, metadata={"help": "Maximum number of differing questions to show."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the complete comparison."})


def _compare(argv: list[str], console: Console, ranks: Ranks) -> int:
    parser = Parser(
        CompareArguments,
        prog="p2o eval",
        description="Compares two evaluations of the same questions, the second against the first: paired bootstrap "
        "over questions of the difference of avg@n and, with n = 1, the exact McNemar test.",
    )
    if "--help" in argv or "-h" in argv:
        argv = ["--help"]  # argparse would report --compare first
    try:
        (arguments,) = parser.parse_args_into_dataclasses(
            args=[normalized_option(word) for word in argv], look_for_args_file=False
        )
        check_ranges(arguments, {"resamples": 100, "questions": 0})
        if len(arguments.compare) != 2:
            raise ValueError(f"--compare takes two evaluations, not {len(arguments.compare)}.")
        first, second = (_read(Path(name)) for name in arguments.compare)
        compared = compare(first, second, seed=arguments.seed, resamples=arguments.resamples)
    except ValueError as error:
        raise InputError(str(error)) from None
    console.print(f"first:  {_asked(first['settings'])}\nsecond: {_asked(second['settings'])}", markup=False)
    console.print(_comparison_table(compared, arguments.seed))
    for name, task in compared.items():
        if task["questions"] and arguments.questions:
            console.print(_questions_table(name, task["questions"], arguments.questions))
    if arguments.output:
        try:
            write_json(Path(arguments.output), compared)
        except OSError as error:
            raise InputError(f"Cannot write {arguments.output}: {error.strerror}.") from None
    return 0


def _comparison_table(compared: dict[str, Any], seed: int) -> Table:
    table = Table(title=f"Second against first; 95 % interval by paired bootstrap over questions, seed {seed}")
    for heading in ("task", "first", "second", "difference", "95 % interval", "p (bootstrap)", "p (McNemar, exact)"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, task in compared.items():
        exact = task.get("mcnemar")
        table.add_row(
            f"{name} (without {task['unscored']} unscored)" if task["unscored"] else name,
            share(task["first"]),
            share(task["second"]),
            f"{100 * task['difference']:+.1f}",
            f"{100 * task['low']:+.1f} to {100 * task['high']:+.1f}",
            f"{task['p_value']:.4f}",
            f"{exact['p_value']:.4f} ({exact['gained']} gained, {exact['lost']} lost)" if exact else "–",
        )
    return table


def _questions_table(task: str, questions: list[dict[str, Any]], shown: int) -> Table:
    table = Table(title=f"{task}: {len(questions)} questions differ; the largest differences")
    for heading in ("question", "first", "second", "text"):
        table.add_column(heading, justify="left" if heading == "text" else "right")
    for q in questions[:shown]:
        text = " ".join(q["text"].split())
        text = text if len(text) <= 80 else text[:80] + "…"
        table.add_row(str(q["question"]), share(q["first"]), share(q["second"]), Text(text))
    return table


def _read(path: Path) -> Any:
    path = path / RESULT if path.is_dir() else path
    try:
        result = json.loads(path.read_text())
        result["settings"]["sampling"], result["tasks"]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}. It is written when an evaluation finishes.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a result of `p2o eval`.") from None
    return result
