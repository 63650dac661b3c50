"""Sampling from the trainer's vLLM with other settings than rollouts have, and with other weights than the policy's."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module, ModuleDict
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import use_adapter

from p2o.completions import Sampling
from p2o.engines.image_inputs import beside
from p2o.engines.processes import pad_to_longest
from p2o.engines.vllm import send_weights, tensor_parallel_stream

# The engine keeps other weights until the policy's are needed: `LastLoadedStep` then says that they have to be sent.


def load_policy(generation: VLLMGeneration) -> None:
    """Gives the engine the policy's weights as they are now."""
    send_weights(generation)
    generation.has_other_weights = False


def load_model(generation: VLLMGeneration, model: Any) -> None:
    """Gives the engine the weights of another model of the policy's kind, as TRL would the policy's."""
    policy, generation.model = generation.model, model
    generation.has_other_weights = True
    try:
        send_weights(generation)
    finally:
        generation.model = policy


def load_weights(generation: VLLMGeneration, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Gives the engine these weights, by their names in the policy and in its order."""
    generation.has_other_weights = True
    generation._iter_named_params = lambda: iter(weights)
    try:
        send_weights(generation)
    finally:
        del generation._iter_named_params


def load_base(generation: VLLMGeneration, adapter: str | None) -> None:
    """Gives the engine the base of a PEFT policy, with this one of its adapters merged or with none."""
    policy = generation.model
    generation.has_other_weights = True
    if adapter is not None:
        with use_adapter(policy, adapter), whole_modules_of(policy, adapter):
            send_weights(generation)
        return
    # TRL merges the active adapter, and leaves out what belongs to it.
    policy.merge_adapter = policy.unmerge_adapter = lambda: None
    try:
        with whole_modules_of(policy, None):
            send_weights(generation)
    finally:
        del policy.merge_adapter, policy.unmerge_adapter


@contextmanager
def whole_modules_of(policy: Any, adapter: str | None) -> Iterator[None]:
    """Inside, TRL finds this adapter's modules where it looks for those that are trained whole (`modules_to_save`).

    Args:
        policy: a PEFT model. Its modules in whole are the adapter `default`'s for TRL, whichever is active.
        adapter: None for the modules as they were before training.
    """
    from peft.utils import ModulesToSaveWrapper

    wrappers = [module for module in policy.modules() if isinstance(module, ModulesToSaveWrapper)]
    before = [(wrapper.original_module, wrapper.modules_to_save) for wrapper in wrappers]
    for wrapper, (original, copies) in zip(wrappers, before, strict=True):
        trained = copies["default"]
        wanted = original if adapter is None else copies[adapter]
        # TRL leaves out what is named original, and torch names what stands in two places once.
        wrapper.original_module = trained if adapter is None else original
        wrapper.modules_to_save = ModuleDict({"default": _in_types_of(trained, wanted)})
    try:
        yield
    finally:
        for wrapper, (original, copies) in zip(wrappers, before, strict=True):
            wrapper.original_module, wrapper.modules_to_save = original, copies


def _in_types_of(trained: Module, wanted: Module) -> Module:
    """The module in the dtypes of the trained one, which are those that a server was told to expect."""
    dtypes = [parameter.dtype for parameter in trained.parameters()]
    if [parameter.dtype for parameter in wanted.parameters()] == dtypes:
        return wanted
    converted = copy.deepcopy(wanted)
    for parameter, dtype in zip(converted.parameters(), dtypes, strict=True):
        parameter.data = parameter.data.to(dtype)
    return converted


@contextmanager
def settings(generation: VLLMGeneration, sampling: Sampling) -> Iterator[None]:
    """Inside, the engine samples like this, and nothing of the settings of rollouts applies."""
    changed: dict[str, Any] = {
        "max_completion_length": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "structured_outputs_regex": None,
        "generation_kwargs": {},
    }
    before = {name: getattr(generation, name) for name in changed}
    vars(generation).update(changed)
    try:
        yield
    finally:
        vars(generation).update(before)


def sample(
    generation: VLLMGeneration, prompts: list[list[int]], sampling: Sampling, images: Any = None
) -> list[list[int]]:
    """Tokens sampled after each prompt's, with the one that ended them. All processes take part, each with its own.

    Args:
        images: of each prompt, a list or None; None for no images at all.
    """
    equal = pad_to_longest(generation.accelerator, prompts, prompts[0], shared=True)
    with settings(generation, sampling), tensor_parallel_stream(generation):
        _, completions, *_ = generation.generate(prompts=equal, images=beside(equal, images), num_generations=1)
    return [list(ids) for ids in completions[: len(prompts)]]
