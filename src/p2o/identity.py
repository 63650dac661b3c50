"""Digests of what a run is made of: its data, its tokenizer, its model. Each takes one pass over it."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from p2o.continuation import Facts, plain, settings
from p2o.engines.processes import is_sharded
from p2o.images import image_columns, stored_images

LENGTH = 16  # hexadecimal digits of a digest
# Of a model's configuration: names, places, versions, and what training aligns with the tokenizer.
PASSING = (
    "_name_or_path name_or_path base_model_name_or_path transformers_version peft_version revision torch_dtype dtype "
    "use_cache inference_mode bos_token_id eos_token_id pad_token_id"
).split()
CHUNK = 2**20  # words of weights that are summed at once


def digest(values: Iterable[Any]) -> str:
    """Of a sequence of values, each as JSON, or as its `repr` where JSON has no form for it."""
    found = hashlib.sha256()
    for value in values:
        found.update(json.dumps(value, sort_keys=True, default=repr).encode() + b"\n")
    return found.hexdigest()[:LENGTH]


def rows_digest(dataset: Any, columns: Iterable[str]) -> str | None:
    """Of these columns of a dataset, of images the bytes or the path; None where it has none of them."""
    names = sorted(set(columns) & set(dataset.column_names))
    if not names:
        return None
    chosen = dataset.select_columns(names)
    images = image_columns(chosen)
    rows = (list(row.values()) for row in (chosen.remove_columns(images) if images else chosen))
    return digest(chain([names], rows, stored_images(chosen)))


def tokenizer_digest(tokenizer: Any) -> str:
    """Of what turns prompts into tokens and tokens into texts: vocabulary, special tokens, chat template."""
    chat_template = tokenizer.chat_template  # a processor has its own
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return digest([sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, chat_template])


def architecture_digest(config: dict[str, Any], adapters: dict[str, dict[str, Any]]) -> str:
    """Of the configurations of a model and its adapters, but for names, places, versions and what training aligns."""
    parts = [config, *(adapters[name] for name in sorted(adapters))]
    return digest([plain({n: v for n, v in part.items() if n not in PASSING}) for part in parts])


def weights_digest(model: torch.nn.Module, *, frozen_only: bool = False) -> str:
    """Of the bits of a model's parameters, as far as this process has them.

    Sums of words, each times an odd number that depends on its place, modulo 2^64: any one changed word shows. They are
    computed where the weights are and do not depend on the order of summation.

    Args:
        frozen_only: leaves out parameters that are trained: those of an adapter, beside the model under it.
    """
    found = []
    for name, parameter in model.named_parameters():
        if not (frozen_only and parameter.requires_grad):
            weight = _own_part(parameter)
            found.append([name, str(weight.dtype), list(weight.shape), _bits_sum(weight)])
    return digest(sorted(found))


def is_whole(model: torch.nn.Module) -> bool:
    """Whether this process has all of each parameter, on some device."""
    parts = ("ds_id", "_local_tensor")
    return not any(p.is_meta or any(hasattr(p, name) for name in parts) for p in model.parameters())


def policy_digest(model: torch.nn.Module, accelerator: Accelerator) -> str:
    """[`weights_digest`] of a model in training; where its weights are sharded, of all processes' parts of them.

    All processes call it. Sharded over another number of processes, the same weights have another digest.
    """
    if not is_sharded(accelerator):
        return weights_digest(model)
    return digest(gather_object([weights_digest(model)]))


def of_first_process(accelerator: Accelerator, value: Any) -> Any:
    """The first process's value, in every process."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def _own_part(parameter: Any) -> Tensor:
    """What this process holds of a parameter that DeepSpeed (`ds_tensor`) or torch (`_local_tensor`) may have split."""
    weight = getattr(parameter, "ds_tensor", parameter)
    weight = weight.to_local() if hasattr(weight, "to_local") else weight
    return weight.detach()


def _bits_sum(weight: Tensor) -> int:
    content = weight.contiguous().view(-1).view(torch.uint8)
    whole = content[: content.numel() // 8 * 8].view(torch.int64)
    # The rest as words of a byte each.
    parts = [*whole.split(CHUNK), content[whole.numel() * 8 :].to(torch.int64)]
    longest = max(words.numel() for words in parts)
    odd = 2 * torch.arange(longest, device=weight.device, dtype=torch.int64) + 1
    total = 0
    for number, words in enumerate(parts):
        total += int((words * odd[: words.numel()]).sum()) * (2 * number + 1)
    return total % 2**64


@dataclass(frozen=True)
class RunIdentity:
    """What a run is made of beside its options. Hashed when it is first asked for, before training, by all processes.

    Args:
        args: the configuration of the trainer.
        model: the model at present; until training begins the one that it starts from.
        dataset: the training set.
        reward_weights, max_prompt_length: in force.
        feedback: the function.
        reflector: name of who reflects; None where nobody does.
    """

    args: Any
    accelerator: Accelerator
    model: Callable[[], Any]
    dataset: Any
    tokenizer: Any
    reward_functions: list[str]
    reward_weights: Tensor
    max_prompt_length: int | None
    feedback: Callable[..., str]
    reflector: str | None

    def fingerprint(self) -> dict[str, Any]:
        """Options with influence and facts, by name, as JSON has them; see [`p2o.continuation`]."""
        args = self.args
        facts = Facts(
            rollouts_per_update=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            reward_functions=self.reward_functions,
            reward_weights_in_force=self.reward_weights.tolist(),
            max_prompt_length_in_force=self.max_prompt_length,
            feedback_function=getattr(self.feedback, "__qualname__", type(self.feedback).__qualname__),
            reflector=self.reflector,
            questions=len(self.dataset),
            processes=self.accelerator.num_processes,
            device=self.accelerator.device.type,
            versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "gepa")),
            start_weights=self._start_weights if self._starts_again else None,
            **self._digests,
        )
        return {**settings(args), **asdict(facts)}

    @property
    def _starts_again(self) -> bool:
        """Whether a resumed run reads the weights that the first session started from, beside the checkpoint's."""
        return bool(self.args.beta) or self.reflector == "reference" or hasattr(self.model(), "peft_config")

    @cached_property
    def _start_weights(self) -> str | None:
        """None where processes have parts of the weights, which depend on how many processes there are."""
        model = self.model()
        mine = weights_digest(model, frozen_only=hasattr(model, "peft_config")) if is_whole(model) else None
        found: str | None = of_first_process(self.accelerator, mine)
        return found

    @cached_property
    def _digests(self) -> dict[str, Any]:
        model, gold, columns = self.model(), self.args.solution_column, self.dataset.column_names
        adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
        return {
            "prompts": rows_digest(self.dataset, ["prompt"]),
            "gold_answers": rows_digest(self.dataset, [gold]),
            "other_columns": rows_digest(self.dataset, {*columns} - {"prompt", gold}),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "architecture": architecture_digest(model.config.to_dict(), adapters),
        }
