"""The command line: `p2o train`, `p2o eval`, `p2o profile`, `p2o rewrite`, `p2o evolve`, `p2o compare`, …"""

import argparse
import sys

from p2o.cli.help import short_help


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `p2o` command; returns the exit code (2: bad input, 130: interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="p2o",
        description="Joint policy and prompt optimization on TRL and GEPA.",
        epilog="`p2o COMMAND --help` explains a command, and `p2o COMMAND --help all` lists every option.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("train", help="train a model; without arguments: the embedded world", add_help=False)
    commands.add_parser("eval", help="avg@n, pass@k, maj@k of a model; two evaluations compared", add_help=False)
    commands.add_parser("profile", help="how hard each question is for a model", add_help=False)
    commands.add_parser("rewrite", help="backward rewrites of questions, to train on", add_help=False)
    commands.add_parser("features", help="what a model does inside, and how training moves it", add_help=False)
    commands.add_parser("evolve", help="the prompt phase alone, for a frozen model", add_help=False)
    commands.add_parser("compare", help="methods × seeds at equal compute", add_help=False)
    commands.add_parser("report", help="one HTML page about one run or several", add_help=False)
    commands.add_parser("score", help="score existing completions with the training verifiers", add_help=False)
    arguments, rest = parser.parse_known_args(argv[:1])
    if arguments.version:
        from p2o import __version__

        print(__version__)
        return 0
    if arguments.command is None:
        parser.print_help()
        return 0 if not argv else 2
    words = [*rest, *argv[1:]]
    if (page := short_help(arguments.command, words)) is not None:
        print(page, end="")
        return 0
    try:
        return _run(arguments.command, words)
    except OSError as error:
        from p2o.files import unwritable

        if (said := unwritable(error)) is None:
            raise
        print(f"Error: {said}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1


def _run(command: str, argv: list[str]) -> int:
    """Imports and runs a command."""
    if command == "eval":
        from p2o.cli.eval import evaluation

        return evaluation(argv)
    if command == "profile":
        from p2o.cli.profile import profile

        return profile(argv)
    if command == "rewrite":
        from p2o.cli.rewrite import rewrite

        return rewrite(argv)
    if command == "features":
        from p2o.cli.features import features

        return features(argv)
    if command == "evolve":
        from p2o.cli.evolve import evolve_alone

        return evolve_alone(argv)
    if command == "compare":
        from p2o.cli.compare import compare

        return compare(argv)
    if command == "score":
        from p2o.cli.score import score

        return score(argv)
    if command == "report":
        from p2o.cli.report import report

        return report(argv)
    from p2o.cli.train import train

    return train(argv)
