"""Two processes, really started: they agree with each other, and with one process wherever that can be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "processes.py"


def launch(out, processes, check=True, **changes):
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), json.dumps(changes)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if not check:
        return done
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("changes", [{}, {"reused_rollouts_per_group": 1, "steps_per_generation": 2}])
def test_the_prompt_phase_does_not_depend_on_the_number_of_processes(tmp_path, changes):
    (one,) = launch(tmp_path / "one", 1, **changes)
    first, second = launch(tmp_path / "two", 2, **changes)
    mine, theirs = first.pop("policy_tokens"), second.pop("policy_tokens")
    assert first == second, "both have the same weights, templates, assignment and ledger"
    assert one["templates"], "something was evolved"
    for name in ("hard_set", "templates", "assignment", "kept"):
        assert first[name] == one[name], name
    assert first["ledger"]["rollouts"] == one["ledger"]["rollouts"]
    for tokens in ("prompt_tokens", "completion_tokens"):
        for purpose in ("evolution_feedback", "evolution_dev", "reflection"):
            assert first["ledger"][tokens][purpose] == one["ledger"][tokens][purpose] > 0
    # Policy rollouts differ, since TRL seeds each process by itself; all of them are counted.
    assert first["ledger"]["completion_tokens"]["policy"] == mine + theirs


def test_a_resumed_run_of_two_processes_ends_the_same(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 4}
    straight = launch(tmp_path, 2, **settings)
    last = max(int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("checkpoint-*"))
    resumed = launch(tmp_path, 2, **settings, resume=last - 3)
    for was, now in zip(straight, resumed, strict=True):
        assert {**was, "policy_tokens": 0} == {**now, "policy_tokens": 0}


@pytest.mark.parametrize("phase", ["policy", "prompt"])
def test_a_process_that_raises_ends_the_job_with_its_message(tmp_path, phase):
    done = launch(tmp_path, 2, check=False, fail=phase)
    assert done.returncode != 0
    assert f"RuntimeError: the {phase} phase is too much for rank 1" in done.stderr
