"""The recipes for GPUs, rehearsed without one: everything real but the transformer's size and what it would generate.

    python benchmarks/rehearsal.py                                     # both recipes, one process: some minutes each
    python benchmarks/rehearsal.py --recipes paper-self-deepscaler --processes 2
    python benchmarks/rehearsal.py --small                             # seconds: does it work?

`p2o train` runs with the recipe's own numbers of questions, rollouts, parents and lengths. The model has Qwen3's
architecture with one narrow layer and the embedded world's tokenizer; rollouts and reflections are made up, each with a
length drawn up to the recipe's limit; passes of the policy see the first tokens of a completion only. All the rest is
what a run on GPUs has: TRL, verifiers in their processes, mining, masks, GEPA, journal, checkpoints, report.

A few batches of bare rollouts (`--full`), the outcomes of the epoch's other questions made up, a whole prompt phase
that is killed and resumed, as many batches of the next epoch. An epoch's seconds are those of one of these, where a
third of the questions is templated, times the batches, and the prompt phase's.

Seconds inside P²O's code by purpose are without what it calls in TRL, transformers and the engine, and with what it
waits for in verifiers' processes; beside those of the clock stand the processor's, which other work on the machine does
not distort. One process carries the batch of all the recipe's GPUs, but each of these has verifiers of its own, whose
seconds are divided by their number. Goals: processor's seconds of 1 % of the hours that docs/scaling.md computes; 4 GiB
of a process's memory, 200 MB of journal, 5 MB of report, and 2 s of a browser's main thread to draw it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rehearsal_worker
from random_model import save_random_model
from rehearsal_worker import THEIRS, problem

ROOT = Path(__file__).parent.parent
RECIPES = ("paper-self-deepscaler", "single-24gb-lora")
ONCE = ("reading and checking the data", "resuming", "report")
SEGMENTS = ("bare batch", "templated batch", "prompt phase")
GOALS = {"own_share": 0.01, "memory": 4 * 2**30, "journal": 200e6, "report": 5e6, "open_cpu": 2.0}


@dataclass(frozen=True)
class Plan:
    """How one recipe is rehearsed.

    Args:
        written_for: GPUs of the recipe, whose batch the processes share.
        batches: of an epoch.
        options: on the command line beside the recipe.
        kill_after: rollouts of the prompt phase.
    """

    recipe: str
    processes: int
    written_for: int
    batches: int
    options: dict[str, Any]
    kill_after: int
    arguments: argparse.Namespace


def planned(recipe: str, arguments: argparse.Namespace) -> Plan:
    """The recipe's own batch on however many processes."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    written_for = 8 if recipe.startswith("paper") else 1
    options: dict[str, Any] = {
        name: settings[name] * written_for // arguments.processes
        for name in ("steps_per_generation", "gradient_accumulation_steps")
    }
    options |= {"use_cpu": True, "reflection_func": "rehearsal_worker:propose"}
    questions = settings.get("dataset_size", 5000)
    if arguments.small:
        questions = 48
        options |= {"steps_per_generation": 24, "gradient_accumulation_steps": 12, "max_completion_length": 256}
        options |= {"dataset_size": questions, "evolution_budget": 120, "min_hard_questions": 2, "save_steps": 4}
    per_batch = options["steps_per_generation"] * settings["per_device_train_batch_size"] * arguments.processes
    batches = questions * settings["num_generations"] // per_batch
    updates = options["steps_per_generation"] // options["gradient_accumulation_steps"]
    options["max_steps"] = 2 * arguments.full * updates
    kill_after = (60 if arguments.small else 600) // arguments.processes
    return Plan(recipe, arguments.processes, written_for, batches, options, kill_after, arguments)


def make_model(directory: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 32}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 40_960}
    save_random_model(directory, **shape)


def make_data(directory: Path) -> None:
    from datasets import Dataset

    from p2o.tasks import NAMED_SETS

    (named,) = (n for n in NAMED_SETS if n.name == "deepscaler-5k")
    directory.mkdir()
    Dataset.from_list([problem(i) for i in range(named.rows)]).to_parquet(directory / f"{named.split}.parquet")


def run(plan: Plan, directory: Path, *, resume: bool) -> float:
    """Runs `p2o train` until it is killed or ends; returns the seconds it took.

    Raises:
        SystemExit: it ended otherwise.
    """
    kill_after = None if resume else plan.kill_after
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "P2O_REHEARSAL": str(directory),
        "P2O_REHEARSAL_PLAN": json.dumps(
            {"full": plan.arguments.full, "seen": plan.arguments.seen, "kill_after": kill_after}
        ),
    }
    options = {"model_name_or_path": directory / "tiny", "dataset_path": directory / "data", **plan.options}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable]
    if plan.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(plan.processes)]
        words += ["--ddp_backend", "gloo"]
    command += [rehearsal_worker.__file__, "--output_dir", str(directory / "run")]
    command += ["--resume"] if resume else ["--config", str(ROOT / "recipes" / f"{plan.recipe}.yaml"), *words]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    wanted = "ended" if resume else "killed"
    if not list(directory.glob(f"measured-{wanted}-*.json")):
        raise SystemExit(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}\nThe run should have {wanted}.")
    return time.perf_counter() - began


def size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def seconds_to_open(page: Path) -> tuple[float, float] | None:
    """Until a browser has drawn the page, on the clock and of its main thread's CPU, the best of three.

    None without Chromium and playwright.
    """
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        return None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        took = []
        for _ in range(3):
            tab = browser.new_page(offline=True)
            metrics = tab.context.new_cdp_session(tab)
            metrics.send("Performance.enable", {"timeDomain": "threadTicks"})
            began = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            tab.wait_for_selector("html[data-ready=yes]", state="attached")
            tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            clock = time.perf_counter() - began
            cpu = {m["name"]: m["value"] for m in metrics.send("Performance.getMetrics")["metrics"]}
            took.append((clock, cpu["TaskDuration"]))
            tab.close()
        browser.close()
    return min(took)


def gpu_hours(plan: Plan) -> float:
    """What docs/scaling.md computes for the GPUs: an epoch and a prompt phase."""
    from estimates import H100, RTX_4090, Estimate, Setup
    from scaling import parser_of_assumptions

    setup = Setup(plan.recipe, plan.written_for, H100 if plan.written_for > 1 else RTX_4090, plan.written_for)
    e = Estimate(setup, parser_of_assumptions().parse_args([]))
    return e.generation(e.epoch_rollouts, e.batch) + e.learning() + e.evolving() + e.reflecting()


def measured(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(directory.glob("measured-*-*.json"))]


Seconds = dict[str, dict[str, list[float]]]
"""By purpose and segment: of the clock, and of the processors."""


def seconds_by_purpose(records: list[dict[str, Any]]) -> Seconds:
    """Of the first process: a bare batch, a templated one, a prompt phase; both runs' together."""
    found: Seconds = defaultdict(lambda: {segment: [0.0, 0.0] for segment in SEGMENTS})
    for segment in SEGMENTS:
        count = sum(record["batches"].get(segment, 0) for record in records) if segment != "prompt phase" else 1
        for record in records:
            for purpose, spent in record["seconds"].get(segment, {}).items():
                for i in range(2):
                    found[purpose][segment][i] += spent[i] / max(count, 1)
    return found


def of_an_epoch(purposes: Seconds, batches: int) -> dict[str, list[float]]:
    """An epoch of templated batches with its prompt phase, by purpose."""
    return {
        purpose: [batches * by["templated batch"][i] + by["prompt phase"][i] for i in range(2)]
        for purpose, by in purposes.items()
        if purpose not in ONCE
    }


def once(record: dict[str, Any]) -> dict[str, float]:
    """Own seconds on the clock of what happens once a run or once a start, by purpose."""
    spent = [(purpose, s[0]) for by in record["seconds"].values() for purpose, s in by.items()]
    return {name: sum(seconds for purpose, seconds in spent if purpose == name) for name in ONCE}


def rehearse(plan: Plan, directory: Path) -> dict[str, Any]:
    """Both runs, and all that is measured about them."""
    make_model(directory / "tiny")
    make_data(directory / "data")
    took = [run(plan, directory, resume=False), run(plan, directory, resume=True)]
    records = measured(directory)
    first = [json.loads((directory / f"measured-{how}-0.json").read_text()) for how in ("killed", "ended")]
    purposes = seconds_by_purpose(first)
    epoch = of_an_epoch(purposes, plan.batches)
    own, own_cpu = (sum(spent[i] for purpose, spent in epoch.items() if purpose not in THEIRS) for i in range(2))
    # Theirs is not known by batch; each rollout takes as long.
    rollouts = json.loads((directory / "run" / "summary.json").read_text())["rollouts"]
    scored = sum(rollouts[kind] for kind in ("policy", "evolution_feedback", "evolution_dev"))
    planned_for = plan.batches * rollouts["policy"] / (2 * plan.arguments.full) + scored - rollouts["policy"]
    verifiers = sum(record["cpu_below"] for record in first) * planned_for / scored
    out = directory / "run"
    checkpoints = sorted(out.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    hours, opened = gpu_hours(plan), seconds_to_open(out / "report.html")
    return {
        "recipe": plan.recipe,
        "processes": plan.processes,
        "batches": plan.batches,
        "purposes": purposes,
        "epoch": epoch,
        "own": own,
        "own_cpu": own_cpu,
        "verifiers_cpu": verifiers,
        "gpu_hours": hours,
        "own_share": (own_cpu + verifiers / plan.written_for) / (hours * 3600),
        "memory": max(record["peak"] for record in records),
        "memory_by_process": [record["peak"] for record in records],
        "verifier_memory": max(record["peak_below"] for record in records),
        "once": once(first[1]),
        "journal": size(out / "evolution"),
        "checkpoint": size(checkpoints[-1]) if checkpoints else 0,
        "state": size(checkpoints[-1] / "p2o_state.json") if checkpoints else 0,
        "hard_sets": size(out / "hard_sets"),
        "report": size(out / "report.html"),
        "open": opened and opened[0],
        "open_cpu": opened and opened[1],
        "resume": first[1]["resumed_after"][0],
        "seconds": took,
        "hard_set": len(json.loads(next((out / "hard_sets").glob("*.json")).read_text())["rows"]),
        "rollouts": rollouts,
    }


def show(found: dict[str, Any]) -> str:
    """Tables for people."""
    from rich.console import Console
    from rich.table import Table

    title = f"{found['recipe']}, {found['processes']} process(es): seconds of the first on the clock (and of its CPU)"
    table = Table(title=title)
    for heading in ("", *SEGMENTS, f"epoch: {found['batches']} templated batches and the prompt phase"):
        table.add_column(heading, justify="right" if heading else "left")
    for purpose in sorted(found["epoch"], key=lambda purpose: (purpose in THEIRS, -found["epoch"][purpose][0])):
        spent = [found["purposes"][purpose][segment] for segment in SEGMENTS]
        cells = [f"{clock:.2f} ({cpu:.2f})" for clock, cpu in spent]
        clock, cpu = found["epoch"][purpose]
        table.add_row(purpose, *cells, f"{clock:.0f} ({cpu:.0f})")
    console = Console(width=130)
    with console.capture() as captured:
        console.print(table)
        for line in lines(found):
            console.print(line, highlight=False)
    return captured.get()


def lines(found: dict[str, Any]) -> list[str]:
    def verdict(name: str) -> str:
        return "goal met" if found[name] is None or found[name] <= GOALS[name] else "GOAL MISSED"

    opened = "no browser here"
    if found["open"] is not None:
        opened = f"drawn in {found['open_cpu']:.1f} s of a browser ({verdict('open_cpu')}; clock {found['open']:.1f})"
    peaks = ", ".join(f"{peak / 2**30:.2f}" for peak in found["memory_by_process"])
    return [
        f"Own code, an epoch with its prompt phase: {found['own_cpu']:.0f} s of the processor and "
        f"{found['verifiers_cpu']:.0f} s of all verifiers' processes, {found['own_share']:.2%} of the "
        f"{found['gpu_hours']:.1f} h computed for the GPUs ({verdict('own_share')}); {found['own']:.0f} s on this "
        "machine's clock.",
        f"Memory: {peaks} GiB at most in each process, killed and resumed, with all imports ({verdict('memory')}); "
        f"{found['verifier_memory'] / 2**30:.2f} in a verifier's.",
        f"Disk: journal {found['journal'] / 1e6:.1f} MB ({verdict('journal')}), checkpoint "
        f"{found['checkpoint'] / 1e6:.1f} MB of which P²O's state {found['state'] / 1e6:.2f}, hard sets "
        f"{found['hard_sets'] / 1e6:.2f} MB, report {found['report'] / 1e6:.1f} MB ({verdict('report')}), {opened}.",
        f"Resumed in the prompt phase: {found['resume']:.0f} s from the start of the process to its first new rollout. "
        f"Once a run: {', '.join(f'{purpose} {seconds:.1f} s' for purpose, seconds in found['once'].items())}. "
        f"{found['hard_set']} hard questions; {found['seconds'][0]:.0f} + {found['seconds'][1]:.0f} s in all.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--processes", type=int, choices=(1, 2, 4, 8), default=1)
    parser.add_argument("--full", type=int, default=1, help="batches before the prompt phase, and behind it")
    parser.add_argument("--seen", type=int, default=32, help="tokens of a completion that a pass sees")
    parser.add_argument("--small", action="store_true", help="tiny numbers in place of the recipe's")
    parser.add_argument("--keep", type=Path, help="a folder for the runs, which are otherwise deleted")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for recipe in arguments.recipes:
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            if arguments.keep:
                directory = arguments.keep.absolute() / recipe
                directory.mkdir(parents=True)
            results.append(rehearse(planned(recipe, arguments), directory))
        print(show(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
