"""Several processes, one of which is late, fails or is interrupted by itself: all go on or end together."""

import json
import os
from pathlib import Path

import pytest

import p2o
from test_processes import alike, launch
from torchrun import torchrun

pytestmark = pytest.mark.slow
P2O = Path(p2o.__file__).parent / "__main__.py"


def test_a_reflection_may_take_longer_than_the_others_wait_in_a_collective(tmp_path):
    first, second = launch(tmp_path, 2, slow=25, ddp_timeout=20, evolution_budget="30", num_train_epochs=1.25)
    assert alike(first) == alike(second)
    assert first["ledger"]["rollouts"]["evolution_dev"], "there was a prompt phase"


@pytest.mark.parametrize("fail", ["feedback", "journal"])
def test_what_ends_the_first_process_ends_the_others_with_a_message(tmp_path, fail):
    if fail == "journal":
        tmp_path.mkdir(exist_ok=True)
        (tmp_path / "evolution").write_text("no directory")
    settings = {"save_strategy": "steps", "save_steps": 50}
    done = launch(tmp_path, 2, check=False, fail=fail, **settings)
    assert done.returncode != 0
    told = {"feedback": "the feedback is too much for the first process", "journal": "evolution"}[fail]
    assert "The first process failed: " in done.stderr and done.stderr.count(told) >= 2, "each process says it"
    (tmp_path / "evolution").is_file() and (tmp_path / "evolution").unlink()
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    first, second = launch(tmp_path, 2, resume=int(checkpoint.name.rsplit("-", 1)[1]), **settings)
    assert alike(first) == alike(second) and first["templates"]


REWARD = """
import os, signal
from p2o.pico import world

def interrupting(completions, trainer_state, **columns):
    step, rank = trainer_state.global_step, os.environ["RANK"]
    if step == 2 and rank in os.environ["INTERRUPTED"].split():
        for _ in range(int(os.environ["SIGNALS"])):
            os.kill(os.getpid(), signal.SIGINT)
    return world.accuracy_reward(completions=completions, **columns)
"""


@pytest.mark.parametrize(("ranks", "signals"), [("1", 1), ("0 1", 2)])
def test_an_interrupted_job_ends_at_one_step_and_goes_on(tmp_path, config, ranks, signals):
    """Signalled in one process only, and twice in each, by the terminal and by the launcher."""
    (tmp_path / "own.py").write_text(REWARD)
    settings = {"max_steps": 4, "dataset_test_split": None, "save_strategy": "no", "prompt_phase": False}
    path, out = config(**settings, reward_funcs=["own:interrupting"]), tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "INTERRUPTED": ranks, "SIGNALS": str(signals)}
    command = ["train", "--config", path, "--ddp_backend", "gloo", "--output_dir", str(out)]
    done = torchrun(P2O, *command, processes=2, environment=environment, directory=tmp_path)
    assert done.returncode == 130, done.stderr[-3000:]
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert done.stderr.count("Interrupted; nothing is lost.") == 1, "one process speaks"
    again = ["train", "--resume", "--output_dir", str(out)]
    done = torchrun(P2O, *again, processes=2, environment=environment, directory=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "summary.json").read_text())["steps"] == 4
