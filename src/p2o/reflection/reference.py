"""The frozen reference: a copy of the model as it was, in a file while it is not in use."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from trl.distributed import DistributedBackend


class Reference:
    """A copy of a model as it is now, which later changes of the model's weights do not affect.

    The weights are in an unlinked file, which the processes of a machine share: they take memory only while the copy is
    in use, and disk space until the last of these processes ends, however it ends.

    Args:
        model: unwrapped; what DeepSpeed ZeRO-3 has partitioned is gathered, so all processes make one together.
        directory: where there is room for the weights.
        dtype: of the weights that are kept; None for their own.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self, model: Any, accelerator: Accelerator, directory: Path, *, dtype: torch.dtype | None = None
    ) -> None:
        sharding, writes = DistributedBackend(accelerator), accelerator.is_local_main_process
        weights, places = {}, {}
        self._dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters():
            with sharding.gather_params([weight]):
                if writes:
                    weights[name] = weight.detach().to("cpu", dtype, copy=True).contiguous()
            places[id(weight)] = torch.nn.Parameter(self._empty(dtype or weight.dtype), requires_grad=False)
        self._model = copy.deepcopy(model, places).eval()
        # TRL and accelerate patch `forward` on the instance with closures over the policy, which a copy would share: it
        # would compute with the policy's weights.
        vars(self._model).pop("forward", None)
        machine = accelerator.process_index - accelerator.local_process_index
        path = directory / f".reference-{machine}.safetensors"
        if writes:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                save_file(weights, path)
            except SafetensorError as error:
                raise OSError(
                    f"The frozen copy of the model, which reflects, cannot be written to {directory}: {error}. Make "
                    "room there, or choose another output_dir, reflection_model='policy' or an endpoint."
                ) from error
        accelerator.wait_for_everyone()
        self._file = path.open("rb")
        accelerator.wait_for_everyone()
        if writes:
            path.unlink()

    def weights(self, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights one after the other, on this device, by the names and in the order and type of the model's."""
        kept = load_file(f"/dev/fd/{self._file.fileno()}")  # mapped, not read
        for name, dtype in self._dtypes.items():
            yield name, kept[name].to(device, dtype)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Any]:
        """The copy, on this device."""
        weights = load_file(f"/dev/fd/{self._file.fileno()}")  # mapped, not read
        parameters = dict(self._model.named_parameters())
        try:
            for name, parameter in parameters.items():
                parameter.data = weights[name]
            yield self._model.to(device)
        finally:
            for parameter in parameters.values():
                parameter.data = self._empty(parameter.dtype)
            self._model.to("cpu")

    @staticmethod
    def _empty(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(0, dtype=dtype)
