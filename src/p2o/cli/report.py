"""`p2o report RUN…`: one self-contained HTML page about one run or several side by side."""

import argparse
from pathlib import Path

from rich.console import Console

from p2o.reports.features_data import CONTEXTS, DYNAMICS, has_features, load_features
from p2o.reports.page import write_report
from p2o.reports.run_data import load_run


def report(argv: list[str]) -> int:
    """Runs the command; returns its exit code (2: bad input)."""
    parser = argparse.ArgumentParser(prog="p2o report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument(
        "--features",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIRECTORY",
        help="directories of `p2o features apply` or `p2o features`: how training moved features, and what those are",
    )
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the only run, else here)")
    arguments = parser.parse_args(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    missing = [str(path) for path in arguments.runs if not path.is_dir()]
    if missing:
        errors.print(f"Error: no such run directory: {', '.join(missing)}.")
        return 2
    empty = [str(path) for path in arguments.features if not has_features(path)]
    if empty:
        errors.print(
            f"Error: neither {DYNAMICS} nor {CONTEXTS} in {', '.join(empty)}: name with --features what `p2o features "
            "apply` or `p2o features` wrote."
        )
        return 2
    output = arguments.output or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "report.html"
    try:
        features = [load_features(path) for path in arguments.features]
        write_report([load_run(path) for path in arguments.runs], output, features)
    except OSError as error:
        errors.print(f"Error: cannot write {output}: {error.strerror}.")
        return 2
    Console(highlight=False, markup=False).print(f"Report: {output}")
    return 0
