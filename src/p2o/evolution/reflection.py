"""Reflection models: text in, text out, in batches; and where the frozen one waits meanwhile."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.distributed import DistributedBackend

from p2o.evolution.prompt_phase import Reflection
from p2o.generation import Sampling, sample_tokens


class TransformersReflection:
    """A `transformers` causal language model that reflects; a [`p2o.evolution.prompt_phase.ReflectionFn`].

    Args:
        max_new_tokens: longest reflection.
        temperature: of sampling; 0 is greedy.
        batch_size: prompts generated at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        batch_size: int = 32,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature, self.batch_size = max_new_tokens, temperature, batch_size

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        """Answers in the order of the prompts; the process-wide generators are as before afterwards."""
        encoded = self.tokenizer([self._as_chat(p) for p in prompts], add_special_tokens=False)["input_ids"]
        answers = sample_tokens(
            self.model,
            self.tokenizer,
            encoded,
            Sampling(self.max_new_tokens, self.temperature),
            batch_size=self.batch_size,
            seed=seed,
        )
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [
            Reflection(text, len(prompt), len(answer))
            for text, prompt, answer in zip(texts, encoded, answers, strict=True)
        ]

    def _as_chat(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt
        chat = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


class Reference:
    """A model as it is now, kept for later, whatever becomes of its weights.

    They lie in a file without a name, which the processes of a machine share: it takes memory only while the model is
    in use, and is gone when the last of them ends, however that ends.

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
        for name, weight in model.named_parameters():
            with sharding.gather_params([weight]):
                if writes:
                    weights[name] = weight.detach().to("cpu", dtype, copy=True).contiguous()
            places[id(weight)] = torch.nn.Parameter(self._nothing(dtype or weight.dtype), requires_grad=False)
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

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Any]:
        """The model, on this device."""
        weights = load_file(f"/dev/fd/{self._file.fileno()}")  # mapped, not read
        parameters = dict(self._model.named_parameters())
        try:
            for name, parameter in parameters.items():
                parameter.data = weights[name]
            yield self._model.to(device)
        finally:
            for parameter in parameters.values():
                parameter.data = self._nothing(parameter.dtype)
            self._model.to("cpu")

    @staticmethod
    def _nothing(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(0, dtype=dtype)
