"""P²O in two processes with colocated engines."""

import pytest
import torch

from either_engine import assert_two_processes_are_told_what_they_asked

pytest.importorskip("vllm", reason="vLLM is not installed; README says how to install its CPU build")
if torch.cuda.is_available():
    pytest.skip("these tests are about the CPU build of vLLM", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engines", [2, 1])
def test_two_processes_are_told_what_they_asked(tmp_path, engines):
    """With an engine each, and with half of one."""
    engine = {"use_vllm": True, "vllm_max_model_length": 1024, "vllm_tensor_parallel_size": 2 // engines}
    assert_two_processes_are_told_what_they_asked(tmp_path, engine)
