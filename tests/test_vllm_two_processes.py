"""P²O in two processes with colocated engines."""

from pathlib import Path

import pytest
import torch

from either_engine import assert_two_processes_are_told_what_they_asked

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def left_by_a_killed_job():
    """Shared memory under the names that vLLM by itself gives to the parts of an engine over two processes; checks
    that nothing is added to it."""
    names = [SHARED_MEMORY / f"-tp:0-[0-1]-cpushm_{rank}" for rank in range(2)]
    left = [name for name in names if not name.exists()]
    for name in left:
        name.touch()
    before = set(SHARED_MEMORY.glob("*cpushm*"))
    yield
    assert set(SHARED_MEMORY.glob("*cpushm*")) <= before
    for name in left:
        name.unlink()


@pytest.mark.usefixtures("left_by_a_killed_job")
@pytest.mark.parametrize("engines", [2, 1])
def test_two_processes_are_told_what_they_asked(tmp_path, engines):
    """With an engine each, and with half of one."""
    engine = {"use_vllm": True, "vllm_max_model_length": 1024, "vllm_tensor_parallel_size": 2 // engines}
    assert_two_processes_are_told_what_they_asked(tmp_path, engine)
