import os

# Before torch is imported: two threads on two busy cores run slower than one, and results must not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from small_run import write_config, write_data
from tool_model import make_tool_model

torch.set_num_threads(1)

# Helpers that assert something: a failure there shows its values, too.
pytest.register_assert_rewrite("either_engine", "trainers")

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def no_keys(monkeypatch):
    """No key of an endpoint in the environment."""
    for name in list(os.environ):
        if name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path):
    """A configuration file of a small run on the user's own data, and a function that changes it."""

    write_data(tmp_path)

    def write(**changes):
        return write_config(tmp_path, **changes)

    return write


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory, worker_id):
    """A model that calls a calculator when it is told to."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tool-model"
    with FileLock(f"{folder}.lock"):  # made once, by whichever worker is the first
        if not folder.exists():
            make_tool_model(folder)
    return folder
