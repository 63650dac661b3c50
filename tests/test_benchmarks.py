"""Benchmarks that nothing else runs still run: with tiny numbers, for what they print and not for the figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = {
    "policy_step": "--rollouts 16 --tokens 4 --hidden_size 64 --layers 1 --steps 2 --turns 1",
    "prompt_phase": "--questions 8 --budget 24 --parents 2 --tokens 4 --turns 1 --batches 1 8",
    "tools_step": "--rollouts 16 --steps 1 --turns 1",
    "prefix_caching": "--count_only",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_and_writes_its_figures(name, tmp_path):
    written = tmp_path / "figures.json"
    command = [sys.executable, BENCHMARKS / f"{name}.py", *TINY[name].split(), "--json", written]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip()
    assert json.loads(written.read_text())


@pytest.mark.slow
def test_what_the_benchmark_of_costs_measures_goes_through(monkeypatch):
    """A policy step and a prompt phase, in small; its series take the better part of an hour."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cost

    for measured in (cost.step(questions=2, k=2, steps=2), cost.phase(16, 24)):
        assert measured["in all"] > measured["generation"] > 0
