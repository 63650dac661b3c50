"""What a vLLM worker on a CPU needs: new weights, and shared memory of its own. It runs inside vLLM: in the trainer's
process, or, for the weights, in a server's.

A server is started with `--worker-extension-cls p2o.engines.vllm_worker.TakesWeights`.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

EXTENSION = "p2o.engines.vllm_worker.TakesWeights"


def take_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Replaces the worker's weights, named as in the model's checkpoint, by those given."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    reports = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    reports.addFilter(_is_news)
    try:
        worker.reload_weights(weights_iterator=weights)
    finally:
        reports.removeFilter(_is_news)
    # A head tied to the embedding is not among the weights, and vLLM keeps the copy that it packed at the start.
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _is_news(record: logging.LogRecord) -> bool:
    # At every transfer vLLM would warn about these two: the first has no weights, the second is handled above.
    return not (isinstance(record.args, tuple) and record.args[:1] in (("RotaryEmbedding",), ("ParallelLMHead",)))


@contextmanager
def shared_memory_named_for(job: str) -> Iterator[None]:
    """Inside, engines that are built over several processes of a CPU name their shared memory after the job.

    Under a launcher vLLM names it the same for every engine of a machine, and it stays when a job is killed: no other
    engine, at once or afterwards, could be built.

    Args:
        job: equal in the job's processes and in no other's, without a slash.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as SharedMemory

    original = SharedMemory.make_group_name
    SharedMemory.make_group_name = staticmethod(lambda communicator: f"{job}-{original(communicator).lstrip('/')}")
    try:
        yield
    finally:
        SharedMemory.make_group_name = staticmethod(original)


def forget_shared_memory(job: str) -> None:
    """Takes the names away, once every process has the memory, so that it goes with the processes, killed or not."""
    for name in Path("/dev/shm").glob(f"{job}-*"):
        name.unlink(missing_ok=True)


class TakesWeights:
    """What `--worker-extension-cls` mixes into vLLM's worker."""

    def take_weights_from(self, path: str) -> None:
        """Loads a safetensors file."""
        take_weights(self, load_file(path).items())
