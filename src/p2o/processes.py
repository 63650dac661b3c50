"""Several processes: the first one leads the prompt phase, all of them generate.

Evolution runs in the first process only, with its journal and its reflection endpoint. Whatever needs the model is
announced to the others, and every process takes its part; so there is one course of evolution, and none to diverge.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import Tensor

from p2o.seeding import derive_seed, random_stream

Item = TypeVar("Item")
Result = TypeVar("Result")

FINISHED = "finished"


def lead(accelerator: Accelerator, task: str, *arguments: Any) -> None:
    """Tells the other processes, which [`follow`], what all do next."""
    if accelerator.num_processes > 1:
        broadcast_object_list([(task, arguments)])


def follow(tasks: dict[str, Callable[..., Any]]) -> Any:
    """Takes part in what the first process leads, until it announces `FINISHED`; returns what it announces then."""
    while True:
        message: list[Any] = [None]
        broadcast_object_list(message)
        task, arguments = message[0]
        if task == FINISHED:
            return arguments[0]
        tasks[task](*arguments)


def spread(
    accelerator: Accelerator,
    run: Callable[[list[Item], int], list[Result]],
    items: list[Item],
    *,
    batch_size: int,
    seed: int,
) -> list[Result]:
    """`run(batch, seed)` over batches of the items, the processes taking turns; all results, in order, everywhere.

    Each batch has a stream of its own, so that the results depend on `batch_size` but not on how many processes there
    are.
    """
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    done = []
    for start in range(0, len(batches), accelerator.num_processes):
        number = start + accelerator.process_index
        stream = seed if number == 0 else derive_seed(seed, "batch", number)
        # Sharded weights are gathered by all processes or by none: one without work does a little for nothing.
        batch = batches[number] if number < len(batches) else batches[start][:1]
        with random_stream(stream):
            results = run(batch, stream)
        if number < len(batches):
            done.append((number, results))
    if accelerator.num_processes > 1:
        done = gather_object(done)
    return [result for _, results in sorted(done, key=lambda pair: pair[0]) for result in results]


def most(accelerator: Accelerator, count: int) -> int:
    """The largest `count` of any process."""
    if accelerator.num_processes == 1:
        return count
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


def batches_of_all(accelerator: Accelerator, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The batches of all processes, in order, whatever their widths, on this process's device."""
    if accelerator.num_processes == 1:
        return [batch]
    batches: list[dict[str, Tensor]] = gather_object([send_to_device(batch, "cpu")])
    return [send_to_device(other, accelerator.device) for other in batches]


def share(accelerator: Accelerator, count: int) -> list[int]:
    """Which of `count` items are this process's: equally many for each, the last one repeated to make it so."""
    each = -(-count // accelerator.num_processes)
    first = accelerator.process_index * each
    return [min(index, count - 1) for index in range(first, first + each)]
