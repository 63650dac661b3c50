"""A frozen model that several processes load, each its own copy, and complete prompts with together."""

import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from p2o.completions import Call, Completion, GenerationError
from p2o.engines.frozen import FrozenModel
from p2o.ranks import FINISHED, Ranks

Load = Callable[[Any], FrozenModel]
"""`load(arguments)`: a model of this process, on its own devices."""


def load_together(ranks: Ranks, load: Load, arguments: Any) -> FrozenModel:
    """A model that all processes load, and complete prompts with together.

    Raises:
        Exception: the first that `load(arguments)` raised in any of them.
    """
    if ranks.count == 1:
        return load(arguments)
    ranks.tell(("load", arguments))
    model = _load(ranks, load, arguments)

    def complete_calls(calls: Sequence[Call]) -> list[list[Completion]]:
        ranks.tell(("complete", arguments, calls))
        return _complete(ranks, model, calls)

    def complete(prompts: Any, *, sampling: Any, seed: int) -> list[Completion]:
        return complete_calls([Call(prompts, sampling, seed)])[0]

    return replace(model, complete=complete, complete_calls=complete_calls, calls_at_once=ranks.count)


def serve(ranks: Ranks, load: Load) -> None:
    """Loads and completes in the other processes what the first one says, until it has finished."""
    models: list[tuple[Any, FrozenModel]] = []
    while (task := ranks.hear()) != FINISHED:
        kind, arguments, *calls = task
        if kind == "load":
            models.append((arguments, _load(ranks, load, arguments)))
        else:
            _complete(ranks, next(model for known, model in models if known == arguments), *calls)
    with suppress(RuntimeError):
        ranks.collect(None)


def _load(ranks: Ranks, load: Load, arguments: Any) -> FrozenModel:
    error: Exception | None = None
    model = None
    try:
        model = load(arguments)
    except Exception as raised:
        error = _portable(raised)
    if failed := [e for e in ranks.collect(error) if e is not None]:
        raise failed[0]
    if model is None:  # not the first process, which has said why
        raise error  # type: ignore[misc]
    return model


def _portable(error: Exception) -> Exception:
    """The error, as another process can have it."""
    try:
        copied: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copied


def _complete(ranks: Ranks, model: FrozenModel, calls: Sequence[Call]) -> list[list[Completion]]:
    """The completions of all calls, in the first process."""
    found: list[tuple[int, int, list[Completion]]] = []
    error = None
    try:
        for number, first, prompts in parts_of(calls, model.generated_at_once, ranks.count)[ranks.index]:
            call = calls[number]
            completions = model.complete(prompts, sampling=call.sampling, seed=call.seed, first=first)  # type: ignore[call-arg]
            found.append((number, first, completions))
    except Exception as raised:
        if ranks.is_first and not isinstance(raised, GenerationError):
            raise
        error = f"process {ranks.index}: {type(raised).__name__}: {raised}"
    everyones = ranks.collect((found, error))
    if errors := [error for _, error in everyones if error]:
        raise GenerationError(errors[0])
    results: list[list[Completion]] = [[] for _ in calls]
    for parts, _ in everyones:
        for number, _, completions in parts:
            results[number] += completions
    return results


def parts_of(calls: Sequence[Call], at_once: int, processes: int) -> list[list[tuple[int, int, list[Any]]]]:
    """What each process does: (number of the call, place of the first prompt in it, prompts).

    Batches of `at_once` prompts stay whole, and what one process does of a call is consecutive; so the batches are the
    same whatever the number of processes.
    """
    batches = [(n, start) for n, call in enumerate(calls) for start in range(0, len(call.prompts), at_once)]
    shares: list[list[tuple[int, int, list[Any]]]] = []
    for process in range(processes):
        share: dict[int, tuple[int, list[Any]]] = {}
        for number, start in batches[process * len(batches) // processes : (process + 1) * len(batches) // processes]:
            share.setdefault(number, (start, []))[1].extend(calls[number].prompts[start : start + at_once])
        shares.append([(number, first, prompts) for number, (first, prompts) in share.items()])
    return shares


def take_own_devices(ranks: Ranks, each: int = 1) -> None:
    """Shows this process the GPUs that are its own: `each` of those that its machine's processes share.

    To be called before anything has used a GPU. Without several processes, all GPUs are its own.

    Raises:
        ValueError: fewer GPUs than all of them need.
    """
    processes, index = ranks.local_count, ranks.local_index
    there = torch.cuda.device_count()
    if processes == 1 or not there or _OWN in os.environ:
        return
    if there < processes * each:
        raise ValueError(f"{processes} processes need {processes * each} GPUs, {each} each; there are {there}.")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(number) for number in range(there)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[index * each : (index + 1) * each])
    os.environ[_OWN] = "1"


_OWN = "P2O_OWN_DEVICES"
