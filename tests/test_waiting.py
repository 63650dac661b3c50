"""OpenMP threads wait quietly: the environment says so before torch is loaded, in every command and every worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2o.verifiers import Limits, Pool, verify

# Tells, when torch is about to be imported, what OpenMP will read.
WATCH = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch sees", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
"""


def what_torch_sees(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code], capture_output=True, text=True, env={**kept, **environment}, check=True
    )
    return done.stdout.rpartition("torch sees ")[2].strip()


def command(*words):
    return f"sys.argv = ['p2o', *{words!r}]; runpy.run_module('p2o', run_name='__main__')"


@pytest.mark.parametrize(
    "code",
    [
        "import p2o; p2o.P2OTrainer",
        "import p2o.templates, p2o.engines.frozen",
        *(command(name, "nothing") for name in ("train", "eval", "evolve", "compare")),
    ],
)
def test_threads_wait_quietly_from_the_first(code):
    assert what_torch_sees(code) == "PASSIVE"


def test_the_users_own_policy_stays():
    assert what_torch_sees("import p2o.config", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_verifiers_wait_quietly_too(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    pool = Pool(Limits(workers=1))
    try:
        verify([r"\\boxed{1}"], [{"solution": "1"}], "exact", pool=pool)
        environments = [path.read_bytes().split(b"\0") for path in children()]
        assert environments and all(b"OMP_WAIT_POLICY=PASSIVE" in found for found in environments)
    finally:
        pool.close()


def children():
    for stat in Path("/proc").glob("[0-9]*/stat"):
        parent = stat.read_text().rpartition(")")[2].split()[1]
        if int(parent) == os.getpid():
            yield stat.parent / "environ"
