"""Bad input of every kind, each with what becomes of it: a verdict or one message, no traceback, and nothing lost.

    python benchmarks/bad_input.py
    python benchmarks/bad_input.py --parts completions checkpoints --json bad_input.json

- completions: hostile ones (`hostile.py`) judged by every verifier: each has a verdict, and none is rewarded.
- data: damaged and malformed files given to `p2o train --check-only`, which reads them, or names file and fault.
- yaml: damaged and malformed configurations: refused by the check, or two steps are trained with it.
- checkpoints: each file of one cut, emptied, zeroed, lost, exchanged for that of an earlier step and for that of
  another run. A run resumed from it ends with the weights that the undamaged one gives, or is refused by a message, and
  then ends with them when the damaged checkpoint is taken away.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from bad_files import configurations, data_files
from hostile import GOLD, hostile_completions
from p2o.cli import main as p2o
from p2o.pico import world
from p2o.verifiers import Limits, Pool, verify

ENTRY = json.dumps({"question": "?", "answer": GOLD, "metadata": {"source_dataset": "gcd"}})
ROWS = {
    **{name: {"solution": GOLD} for name in ("math", "accuracy", "exact")},
    "gym": {"solution": GOLD, "family": "gcd", "entry": ENTRY},
}
READ, TRAINED = "read", "trained with"
REFUSED, SAME = "refused by a message", "the same weights"
Outcome = tuple[str, str]  # what it was, and what became of it


def command(*words: str) -> tuple[int | None, str]:
    """Exit code of `p2o …` and what it printed to standard error; None with the exception where it raised one."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            return p2o(list(words)), said.getvalue()
        except (Exception, SystemExit) as error:
            return None, f"{said.getvalue()}{type(error).__name__}: {error}"


def refused(code: int | None, said: str, name: str) -> str:
    """`REFUSED`, for one message that names the input; else what was wrong with how it ended."""
    if code in (1, 2) and "Traceback" not in said and name in said:
        return REFUSED
    return f"exit code {code}: {said[-300:]}"


def completions(work: Path) -> Iterator[Outcome]:
    """Every hostile completion, by every verifier."""
    pool = Pool(Limits(seconds=0.5, memory_mb=256))
    hostile = hostile_completions()
    for verifier, row in ROWS.items():
        for completion, verdict in zip(
            hostile, verify(hostile, [row] * len(hostile), verifier, pool=pool), strict=True
        ):
            right = verdict.reward or verdict.reason == "crash"
            outcome = f"reward {verdict.reward}, {verdict.reason}" if right else "judged, no reward"
            yield f"{verifier}: {completion[:60]!r}", outcome
    pool.close()


def data(work: Path) -> Iterator[Outcome]:
    """Every damaged data file, by `--check-only`."""
    for kind, name, content in data_files():
        path = work / name
        path.write_bytes(content)
        options = ["--num_generations", "4", "--per_device_train_batch_size", "4", "--prompts_as_chats", "true"]
        code, said = command("train", "--check-only", "--dataset", str(path), "--max_completion_length", "8", *options)
        unchanged = path.read_bytes() == content
        path.unlink()
        outcome = READ if code == 0 else refused(code, said, "train_dataset" if "train_dataset" in said else name)
        yield kind, outcome if unchanged else "the file was changed"


def configs(work: Path) -> Iterator[Outcome]:
    """Every damaged configuration, by `--check-only`; what it has nothing against has to train."""
    good = work / "good.jsonl"
    world.train_dataset(hard=12, easy=4).to_json(good)
    for kind, content in configurations(str(good)):
        path = work / "bad.yaml"
        path.write_bytes(content)
        code, said = command("train", "--check-only", "--config", str(path), "--output_dir", str(work / "run"))
        outcome = "passed" if code == 0 else refused(code, said, "Error: ")
        if (work / "run").exists():
            outcome = "a run was begun"
        elif code == 0:
            words = ["--output_dir", str(work / "run"), "--prompt_phase", "false", "--max_completion_length", "8"]
            words += [] if kind.startswith("max_steps") else ["--max_steps", "2"]
            code, said = command("train", "--config", str(path), *words)
            outcome = TRAINED if code == 0 else f"passed the check, then exit code {code}: {said[-200:]}"
        shutil.rmtree(work / "run", ignore_errors=True)
        yield kind, outcome


# -- checkpoints -------------------------------------------------------------------------------------------------------


def letters(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward that differs within a group whatever the model can do."""
    return [float(len(set(completion[-1]["content"]))) for completion in completions]


def small_run(directory: Path, seed: int) -> Path:
    """A finished run of three steps with all its checkpoints."""
    rows = directory.parent / "rows.jsonl"
    if not rows.exists():
        world.train_dataset(hard=12, easy=4).to_json(rows)
    settings = {
        **{"model_name_or_path": "pico", "dataset_name": str(rows), "reward_funcs": ["bad_input:letters"]},
        "seed": seed,
        **{"num_generations": 4, "per_device_train_batch_size": 16, "max_steps": 3, "max_completion_length": 24},
        **{"save_strategy": "steps", "save_steps": 1, "bf16": False, "use_cpu": True, "report_to": "none"},
        **{"num_threads": 1, "reflection_model": "policy", "gradient_checkpointing": False, "learning_rate": 1e-3},
    }
    config = directory.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    code, said = command("train", "--config", str(config), "--output_dir", str(directory))
    if code:
        raise SystemExit(f"The run to be damaged failed: {said}")
    return directory


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def checkpoints(work: Path) -> Iterator[Outcome]:
    """Every file of a run's second checkpoint, damaged in every way."""
    run, other = small_run(work / "run", seed=0), small_run(work / "other", seed=1)
    expected, whole = weights(run), run / "checkpoint-2"
    assert len({(run / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (1, 2, 3)}) == 3
    shutil.rmtree(run / "checkpoint-3")
    unfinished(run)
    damages: dict[str, Callable[[Path, str], bytes | None]] = {
        "cut in half": lambda path, name: path.read_bytes()[: path.stat().st_size // 2],
        "emptied": lambda path, name: b"",
        "zeroed": lambda path, name: bytes(path.stat().st_size),
        "lost": lambda path, name: None,
        "of the step before": lambda path, name: (run / "checkpoint-1" / name).read_bytes(),
        "of another run": lambda path, name: (other / "checkpoint-2" / name).read_bytes(),
    }
    for name in sorted(path.name for path in whole.iterdir()):
        for damage, bytes_of in damages.items():
            content = bytes_of(whole / name, name)
            if content != (whole / name).read_bytes():
                yield f"{name}, {damage}", _resumed(run, work / "copy", name, content, expected)


def unfinished(run: Path) -> None:
    """The run's directory as it was before its end."""
    for left in ("model", "summary.json", "RUN.md", "report.html"):
        path = run / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _resumed(run: Path, copy: Path, name: str, content: bytes | None, expected: str) -> str:
    """What becomes of a copy of the run in whose newest checkpoint a file has this content, or is not there."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    damaged = copy / "checkpoint-2"
    (damaged / name).unlink() if content is None else (damaged / name).write_bytes(content)
    earlier = {path.name: path.read_bytes() for path in (copy / "checkpoint-1").iterdir()}
    code, said = command("train", "--resume", "--output_dir", str(copy))
    if code == 0:
        return SAME if weights(copy) == expected else "other weights, without a word"
    outcome = refused(code, said, "checkpoint-2")
    if outcome != REFUSED:
        return outcome
    if earlier != {path.name: path.read_bytes() for path in (copy / "checkpoint-1").iterdir()}:
        return "an earlier checkpoint was changed"
    shutil.rmtree(damaged)
    code, said = command("train", "--resume", "--output_dir", str(copy))
    return outcome if code == 0 and weights(copy) == expected else f"refused, and then lost: {said[-300:]}"


PARTS: dict[str, tuple[Callable[[Path], Iterator[Outcome]], set[str]]] = {
    "completions": (completions, {"judged, no reward"}),
    "data": (data, {READ, REFUSED}),
    "yaml": (configs, {TRAINED, REFUSED}),
    "checkpoints": (checkpoints, {SAME, REFUSED}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--verbose", action="store_true", help="print every case with what became of it")
    parser.add_argument("--json", help="also write the counts to this file")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    counts: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    for part in arguments.parts:
        cases, good = PARTS[part]
        with tempfile.TemporaryDirectory() as work:
            found = list(cases(Path(work)))
        counts[part] = Counter(outcome if outcome in good else "WRONG" for _, outcome in found)
        wrong += [f"{part}: {case}: {outcome}" for case, outcome in found if outcome not in good]
        if arguments.verbose:
            print(*(f"{part}: {case}: {outcome}" for case, outcome in found), sep="\n")
    said = [
        f"{part}: {sum(outcomes.values()):,} cases, {', '.join(f'{n:,} {name}' for name, n in outcomes.items())}."
        for part, outcomes in counts.items()
    ]
    print(*said, *wrong, sep="\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"said": said, "counts": counts}, indent=1) + "\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
