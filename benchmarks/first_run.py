"""The embedded world, P²O against GRPO with the same number of rollouts in all, several seeds, one after the other.

    python benchmarks/first_run.py --seeds 3 --json docs/first_run.json

Each run is `p2o train` as a user would type it; GRPO goes on until it has spent what P²O spent, prompt phases included.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

TRAIN = [sys.executable, "-c", "import sys; from p2o.cli import main; sys.exit(main())", "train"]


def run(directory: Path, *options: str) -> dict[str, Any]:
    """The summary of a run, which is made unless it is there already."""
    summary = directory / "summary.json"
    if not summary.exists():
        resume = ["--resume"] if (directory / "config.yaml").exists() else []
        subprocess.run([*TRAIN, *resume, "--output_dir", str(directory), *options], check=True)
    return dict(json.loads(summary.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/first_run"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="also write the summaries to this file")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"p2o": [], "grpo": []}
    for seed in range(arguments.seeds):
        p2o = run(arguments.runs / f"p2o-{seed}", "--seed", str(seed))
        # More epochs than it can use: the rollouts end it.
        limit = ["--num_train_epochs", "100", "--max_rollouts", str(p2o["rollouts"]["total"])]
        grpo = run(arguments.runs / f"grpo-{seed}", "--seed", str(seed), "--method", "grpo", *limit)
        results["p2o"].append(p2o)
        results["grpo"].append(grpo)

    table = Table(title="Bare accuracy before → after")
    columns = ("method", "seed", "rollouts", "hard", "easy", "unseen", "minutes", "GB")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, summaries in results.items():
        for summary in summaries:
            table.add_row(
                method,
                str(summary["seed"]),
                str(summary["rollouts"]["total"]),
                *(_change([summary], split) for split in ("hard", "easy", "unseen")),
                f"{summary['wall_seconds'] / 60:.1f}",
                f"{summary['peak_rss_bytes'] / 1e9:.1f}",
            )
        means = [_change(summaries, split) for split in ("hard", "easy", "unseen")]
        table.add_row(method, "mean", "", *means, "", "", style="bold", end_section=True)
    Console(width=110).print(table)
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        for summaries in results.values():
            for summary in summaries:
                summary.pop("templates")
        arguments.json.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n")


def _change(summaries: list[dict[str, Any]], split: str) -> str:
    before, after = (mean(s["bare_accuracy"][split][when] for s in summaries) for when in ("before", "after"))
    return f"{before:.1%} → {after:.1%}"


if __name__ == "__main__":
    main()
