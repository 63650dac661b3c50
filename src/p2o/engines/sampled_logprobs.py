"""Log-probabilities of the tokens that `transformers` samples, recorded while it samples, as vLLM returns them.

`generate` can return the logits of all steps, one per vocabulary entry and token. Here two numbers per token are kept:
the model is fed each token one step after it was sampled, when the previous logits are still available.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from p2o.engines.processes import all_reduce_max


class SampledLogprobs:
    """Records, in a `with` block, the log-probabilities that `model.generate` samples with; [`of`] returns them.

    They include the temperature but no other sampling option (top-k, penalties, forbidden tokens), like the
    log-probabilities that TRL computes for its loss.

    Args:
        model: a causal language model or a `PeftModel` around one, unwrapped.
        temperature: of sampling, greater than 0.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        # An adapter's own `generate` calls the model inside.
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._temperature = temperature
        self._logits: Float[Tensor, "batch vocabulary"] | None = None
        self._tokens: list[Int[Tensor, " batch"]] = []
        self._logps: list[Float[Tensor, " batch"]] = []

    def __enter__(self) -> "SampledLogprobs":
        self._hook = self._model.register_forward_hook(self._forward, with_kwargs=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hook.remove()

    def _forward(self, module: Any, args: Any, inputs: dict[str, Any], output: Any) -> None:
        ids = inputs.get("input_ids")
        if self._logits is not None and ids is not None:
            self._score(self._logits, ids[:, -1])
        # A copy, since a view would keep the logits of the whole prompt.
        self._logits = output.logits[:, -1].to(torch.float32, copy=True).div_(self._temperature)

    def _score(self, logits: Float[Tensor, "batch vocabulary"], tokens: Int[Tensor, " batch"]) -> None:
        self._tokens.append(tokens)
        self._logps.append(logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))

    def of(self, completions: list[list[int]]) -> list[list[float]] | None:
        """log π(y_t|context, y_<t) of every token of these completions, one for each row that was generated.

        None if they differ from what was recorded, one token per step: prompts fed in pieces, several beams, drafts of
        an assistant model.
        """
        if self._logits is None:
            return None
        # The last token of the longest completions is not fed to the model again.
        step = len(self._tokens)
        last = [ids[step] if len(ids) > step else 0 for ids in completions]
        if len(last) != len(self._logits):
            return None
        self._score(self._logits, torch.tensor(last, device=self._logits.device))
        tokens, logps = torch.stack(self._tokens, 1).tolist(), torch.stack(self._logps, 1).tolist()
        if any(row[: len(ids)] != ids for row, ids in zip(tokens, completions, strict=True)):
            return None
        return [row[: len(ids)] for row, ids in zip(logps, completions, strict=True)]

    def of_all_processes(self, completions: list[list[int]], accelerator: Accelerator) -> list[list[float]] | None:
        """The same, but for all processes or for none: the forward pass that replaces them is collective."""
        logprobs = self.of(completions)
        return None if all_reduce_max(accelerator, int(logprobs is None)) else logprobs


def recorded(
    accelerator: Accelerator, model: Any, temperature: float, complete: Callable[[], tuple[list[list[int]], Any]]
) -> tuple[list[list[int]], list[list[float]] | None]:
    """Completions, and the log-probabilities that the model has sampled them with; None where these are not known."""
    with SampledLogprobs(accelerator.unwrap_model(model), temperature) as logprobs:
        ids, _ = complete()
    return ids, logprobs.of_all_processes(ids, accelerator)
