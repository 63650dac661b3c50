"""How a vLLM worker on a CPU takes new weights. It runs inside vLLM: in the trainer's process, or in a server's.

A server is started with `--worker-extension-cls p2o.engines.vllm_worker.TakesWeights`.
"""

import logging
from collections.abc import Iterable
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


class TakesWeights:
    """What `--worker-extension-cls` mixes into vLLM's worker."""

    def take_weights_from(self, path: str) -> None:
        """Loads a safetensors file."""
        take_weights(self, load_file(path).items())
