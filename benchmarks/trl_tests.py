"""TRL's own tests of `GRPOTrainer`, run with it and, the two names swapped, with `P2OTrainer`.

    python benchmarks/trl_tests.py path/to/trl
    python benchmarks/trl_tests.py path/to/trl --modes grpo,forced -k loss_types

Needs a checkout of TRL, whose tests are not in its distributions (`git clone https://github.com/huggingface/trl`). Of
it only `tests/` is used, in a copy; the TRL under test is the installed one. Hub models and sets have stand-ins
(`trl_stand_ins.py`). The modes:

- grpo: the tests as they are.
- p2o: `GRPOConfig` and `GRPOTrainer` are `P2OConfig` and `P2OTrainer`, with their defaults.
- forced: likewise, with a prompt phase that happens in these short trainings as well, and templated rollouts after it
  (`trl_forced.py`).

Prints how many tests passed, and each that GRPO passes and P²O does not, with what failed and the reason where it is
known. Exit code 1: there is such a test without a known reason. 2: pytest could not run.
"""

import argparse
import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_plugin import ENVIRONMENTS, IMAGES, TEXT, TOOLS
from trl_stand_ins import ORGANIZATION, make_stand_ins, renumber

HERE = Path(__file__).parent
TESTS = "tests/test_grpo_trainer.py"
NAMES = {
    "grpo": ("trl", "GRPOConfig", "GRPOTrainer"),
    "p2o": ("p2o", "P2OConfig", "P2OTrainer"),
    "forced": ("trl_forced", "ForcedConfig", "ForcedTrainer"),
}

_STREAM = "a streamed training set is refused: P²O comes back to hard questions by row"
_STREAMS = {
    "test_train_with_iterable_dataset": _STREAM,
    "test_iterable_dataset_forces_num_workers_zero": _STREAM,
    "test_iterable_dataset_requires_dispatch_batches_false": f"{_STREAM}, which it says in place of TRL's reason",
}
_OWN_GENERATE = "its stand-in for `generate` answers so many prompts, and a prompt phase asks for other numbers of them"
_FORCED = dict.fromkeys(
    (
        "test_train_with_mask_truncated_completions",
        "test_train_with_tools",
        "test_train_with_tools_multimodal_response",
        "test_train_with_malformed_tool_calls",
    ),
    _OWN_GENERATE,
)
KNOWN: dict[str, dict[str, str]] = {"p2o": _STREAMS, "forced": _STREAMS | _FORCED}
"""By mode and by the name of a test, without its class and parameters: why P²O does not pass it."""


@dataclass
class Outcome:
    """What became of one test.

    Args:
        test: such as `TestGRPOTrainer::test_train[x]`.
        kind: text, tools and environments, or images.
        outcome: "passed", "failed" or "skipped".
        why: one line on a failure or a skip.
        counts: what `trl_forced.py` counted meanwhile.
    """

    test: str
    kind: str
    outcome: str
    why: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def function(self) -> str:
        """Its name without class and parameters."""
        return self.test.rpartition("::")[2].partition("[")[0]

    def reason(self, mode: str) -> str | None:
        """Why P²O is known not to pass it; None where nobody knows."""
        return KNOWN.get(mode, {}).get(self.function)


Outcomes = dict[str, Outcome]


def swap_names(text: str, mode: str) -> str:
    """The test file with the two names imported from where the mode has them.

    Raises:
        ValueError: it does not import them from `trl` at its top.
    """
    module, config, trainer = NAMES[mode]
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        imported = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        if isinstance(node, ast.ImportFrom) and node.module == "trl" and {"GRPOConfig", "GRPOTrainer"} <= imported:
            others = sorted(imported - {"GRPOConfig", "GRPOTrainer"})
            swapped = f"from {module} import {config} as GRPOConfig, {trainer} as GRPOTrainer\n"
            swapped += f"from trl import {', '.join(others)}\n" if others else ""
            lines[node.lineno - 1 : node.end_lineno] = [swapped]
            return "".join(lines)
    raise ValueError(f"{TESTS} does not import GRPOConfig and GRPOTrainer from trl.")


def run_tests(workplace: Path, checkout: Path, mode: str, selection: str | None) -> Outcomes:
    """Runs the tests in a copy of their own.

    Args:
        workplace: a directory with the stand-ins.
        selection: pytest's -k.

    Raises:
        SystemExit: pytest could not run them.
    """
    (workplace / "tests").mkdir()
    for path in (checkout / "tests").glob("*.py"):
        if not path.name.startswith("test_"):
            shutil.copy(path, workplace / "tests")
    text = (checkout / TESTS).read_text()
    (workplace / TESTS).write_text(swap_names(renumber(text), mode))
    record = workplace / "record.jsonl"
    command = [sys.executable, "-m", "pytest", TESTS, "-p", "trl_plugin", "-p", "no:cacheprovider", "-v", "--tb=short"]
    command += ["--rootdir", ".", "--basetemp", "made", *(["-k", selection] if selection else [])]
    done = subprocess.run(command, cwd=workplace, env=environment(workplace))
    if done.returncode not in (0, 1, 5):  # 5: nothing was selected
        raise SystemExit(f"pytest could not run the tests with {mode}: exit code {done.returncode}.")
    return read(record)


def environment(workplace: Path) -> dict[str, str]:
    """Offline, with caches of its own, one thread, and our modules."""
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HOME": str(workplace / "cache")}
    own |= {"HF_HUB_OFFLINE": "1", "TRL_TESTS_RECORD": str(workplace / "record.jsonl"), "COLUMNS": "200"}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    return {**quiet, **os.environ, **own}


def read(record: Path) -> Outcomes:
    """The outcome of each test: a failure after it has passed, in its clearing up, is one."""
    outcomes: Outcomes = {}
    for line in record.read_text().splitlines() if record.is_file() else []:
        outcome = Outcome(**json.loads(line))
        if outcome.test not in outcomes or outcome.outcome == "failed":
            outcomes[outcome.test] = outcome
    return outcomes


# -- what is printed ---------------------------------------------------------------------------------------------------


def differences(grpo: Outcomes, ours: Outcomes) -> list[Outcome]:
    """Our outcomes of the tests that GRPO passes and we do not."""
    return [
        ours.get(test, Outcome(test, theirs.kind, "failed", "it was not run"))
        for test, theirs in grpo.items()
        if theirs.outcome == "passed" and (test not in ours or ours[test].outcome != "passed")
    ]


def print_counts(console: Console, results: Mapping[str, Outcomes]) -> None:
    table = Table(title="TRL's tests of GRPOTrainer")
    for column in ("mode", "tests of", "passed", "failed", "skipped", "minutes"):
        table.add_column(column, justify="left" if column in ("mode", "tests of") else "right")
    for mode, outcomes in results.items():
        for kind in (TEXT, TOOLS, ENVIRONMENTS, IMAGES):
            of_kind = [outcome for outcome in outcomes.values() if outcome.kind == kind]
            counts = [sum(o.outcome == name for o in of_kind) for name in ("passed", "failed", "skipped")]
            minutes = sum(outcome.seconds for outcome in of_kind) / 60
            table.add_row(mode, kind, *map(str, counts), f"{minutes:.1f}")
    console.print(table)


def print_forced(console: Console, outcomes: Outcomes) -> None:
    """Whether forcing the prompt phase did."""
    trained = [o for o in outcomes.values() if o.counts.get("trainings")]
    phases = [o for o in trained if o.counts.get("prompt phases")]
    templated = [o for o in phases if o.counts.get("templated rollouts")]
    console.print(
        f"forced: {len(trained)} tests train, of which {passed(trained)} passed; with a prompt phase {len(phases)}, of "
        f"which {passed(phases)} passed; with templated rollouts after it {len(templated)}, of which "
        f"{passed(templated)} passed."
    )
    for outcome in trained:
        if outcome not in templated:
            console.print(f"  without templated rollouts: {escape(outcome.test)}", highlight=False)


def passed(outcomes: list[Outcome]) -> int:
    return sum(outcome.outcome == "passed" for outcome in outcomes)


def print_skipped(console: Console, outcomes: Outcomes) -> None:
    reasons: dict[str, int] = {}
    for outcome in outcomes.values():
        if outcome.outcome == "skipped":
            reasons[outcome.why] = reasons.get(outcome.why, 0) + 1
    for reason, count in sorted(reasons.items()):
        console.print(f"  skipped, {count}: {escape(reason)}", highlight=False)


def compare(console: Console, results: Mapping[str, Outcomes]) -> int:
    """Prints where P²O differs from GRPO; returns how many differences have no known reason."""
    unknown = 0
    for mode, ours in results.items():
        if mode == "grpo":
            continue
        different = differences(results["grpo"], ours)
        console.rule(f"{mode}: {len(different)} tests that GRPO passes and P²O does not")
        for outcome in different:
            reason = outcome.reason(mode)
            unknown += reason is None
            console.print(f"[bold]{escape(outcome.test)}[/bold]\n  {escape(outcome.why)}", highlight=False)
            console.print(f"  known: {escape(reason)}" if reason else "  [red]not known[/red]", highlight=False)
        needless = {o.function for o in ours.values() if o.outcome == "passed"} & KNOWN.get(mode, {}).keys()
        for function in sorted(needless - {outcome.function for outcome in different}):
            console.print(f"[yellow]on the list of known differences, but it passes: {function}[/yellow]")
        fewer = sum(o.outcome == "failed" and ours.get(t, o).outcome == "passed" for t, o in results["grpo"].items())
        console.print(f"{fewer} tests fail with GRPO and pass with P²O.")
    return unknown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="of TRL's repository")
    parser.add_argument("--modes", default="grpo,p2o,forced", help="what is compared with grpo")
    parser.add_argument("-k", dest="selection", metavar="EXPR", help="which tests, as pytest takes it")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="modes that run at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every outcome")
    options = parser.parse_args(arguments)
    modes = list(dict.fromkeys(["grpo", *options.modes.split(",")]))
    if unknown_modes := set(modes) - NAMES.keys():
        parser.error(f"unknown modes: {', '.join(sorted(unknown_modes))}; there are {', '.join(NAMES)}")
    if not (options.checkout / TESTS).is_file():
        parser.error(f"{options.checkout} is no checkout of TRL: it has no {TESTS}")
    with workplaces(options.checkout, modes) as places, ThreadPoolExecutor(options.jobs) as pool:
        started = {m: pool.submit(run_tests, places[m], options.checkout, m, options.selection) for m in modes}
        results = {mode: run.result() for mode, run in started.items()}
    if options.json:
        written = {mode: [vars(outcome) for outcome in outcomes.values()] for mode, outcomes in results.items()}
        options.json.write_text(json.dumps(written, indent=1))
    return report(Console(width=160), results)


def report(console: Console, results: Mapping[str, Outcomes]) -> int:
    """Prints all; returns the exit code."""
    print_counts(console, results)
    print_skipped(console, results["grpo"])
    for outcome in results["grpo"].values():
        if outcome.outcome == "failed":
            console.print(f"  fails with GRPO: {escape(outcome.test)}: {escape(outcome.why)}", highlight=False)
    if "forced" in results:
        print_forced(console, results["forced"])
    return int(compare(console, results) > 0)


@contextlib.contextmanager
def workplaces(checkout: Path, modes: list[str]) -> Iterator[dict[str, Path]]:
    """A directory for each, in which the stand-ins are."""
    with tempfile.TemporaryDirectory() as directory:
        make_stand_ins(Path(directory), (checkout / TESTS).read_text())
        places = {mode: Path(directory) / mode for mode in modes}
        for place in places.values():
            place.mkdir()
            (place / ORGANIZATION).symlink_to(Path(directory) / ORGANIZATION)
        yield places


if __name__ == "__main__":
    raise SystemExit(main())
