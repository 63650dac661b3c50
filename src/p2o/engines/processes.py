"""Several processes: the first one runs evolution, all of them generate.

Evolution runs in the first process only, with its journal and its reflection endpoint. Whatever needs the model is
broadcast to the others as a task, and every process takes its part; so there is one course of evolution.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor
from trl.distributed import DistributedBackend

from p2o.engines.memory import Halving
from p2o.ranks import FOREVER
from p2o.seeding import derive_seed, random_stream

Item = TypeVar("Item")
Result = TypeVar("Result")

FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Tasks:
    """What the first process has all of them do, one task after another; the others [`serve`] meanwhile.

    They wait without a limit of time, since a reflection may take longer than `ddp_timeout`: the group's messages go
    over sockets of the host, which are closed when the first process ends.

    Args:
        group: of all processes; None where there is only one.
    """

    group: Any = None

    @classmethod
    @contextmanager
    def of(cls, accelerator: Accelerator) -> Iterator["Tasks"]:
        """All processes enter it together."""
        if accelerator.num_processes == 1:
            yield cls()
            return
        group = torch.distributed.new_group(backend="gloo", timeout=FOREVER)
        try:
            yield cls(group)
        finally:
            torch.distributed.destroy_process_group(group)

    def tell(self, task: str, *arguments: Any) -> None:
        """Says what all processes do next."""
        if self.group is not None:
            torch.distributed.broadcast_object_list([(task, arguments)], src=0, group=self.group)

    def run(self, task: str, do: Callable[..., Result], *arguments: Any) -> Result:
        """`do(*arguments)`, while the others do their part of it."""
        self.tell(task, *arguments)
        try:
            return do(*arguments)
        except BaseException as error:
            error.within_task = True  # type: ignore[attr-defined]
            raise

    @contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """Inside, what ends the first process between two tasks ends the others, too, with a message.

        Within a task they are not listening: there they fail themselves, or wait for the first one's end.
        """
        try:
            yield
        except BaseException as error:
            within = any(getattr(e, "within_task", False) for e in (error, error.__cause__, error.__context__))
            if self.group is not None and not within:
                self.tell(FAILED, type(error).__name__, str(error), isinstance(error, KeyboardInterrupt))
                error.in_all_processes = True  # type: ignore[attr-defined]
            raise

    def serve(self, tasks: dict[str, Callable[..., Any]]) -> Any:
        """Takes part in what the first process says, until that is `FINISHED`; returns what comes with it.

        Raises:
            RuntimeError, KeyboardInterrupt: as the first process did.
        """
        while True:
            message: list[Any] = [None]
            torch.distributed.broadcast_object_list(message, src=0, group=self.group)
            task, arguments = message[0]
            if task == FINISHED:
                return arguments[0]
            if task == FAILED:
                kind, said, interrupted = arguments
                failure: Any = RuntimeError(f"The first process failed: {kind}: {said}")
                failure = KeyboardInterrupt() if interrupted else failure
                failure.in_all_processes = True
                raise failure
            tasks[task](*arguments)


def run_in_batches(
    accelerator: Accelerator,
    run: Callable[[list[Item], int], list[Result]],
    items: list[Item],
    *,
    batch_size: int,
    seed: int,
    halve: bool = False,
    count: Callable[[str, int], None] | None = None,
) -> list[Result]:
    """`run(batch, seed)` over batches of items, distributed over the processes; returns all results, in order.

    Each batch has its own random seed, so that the results depend on `batch_size` but not on the number of
    processes.

    Args:
        halve: whether a batch that memory does not suffice for is halved. Not where processes gather sharded weights
            within `run`: the others would wait for ever.
        count: `count(event, times)`: takes note, in every process, of how often that was.
    """
    halving = Halving()

    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    done = []
    for start in range(0, len(batches), accelerator.num_processes):
        number = start + accelerator.process_index
        stream = seed if number == 0 else derive_seed(seed, "batch", number)
        # Sharded weights are gathered by all processes or by none: one without work runs a batch of one and drops it.
        batch = batches[number] if number < len(batches) else batches[start][:1]
        with random_stream(stream):
            results = halving.run(run, batch, stream) if halve else run(batch, stream)
        if number < len(batches):
            done.append((number, results))
    (halved,) = all_reduce_sum(accelerator, halving.times)
    if halved and count is not None:
        count("batch_halved_for_memory", int(halved))
    if accelerator.num_processes > 1:
        done = gather_object(done)
    return [result for _, results in sorted(done, key=lambda pair: pair[0]) for result in results]


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether processes hold parts of the weights, which all of them gather whenever one generates."""
    sharding = DistributedBackend(accelerator)
    return bool(accelerator.num_processes > 1 and (sharding.is_zero3 or sharding.is_fsdp))


def judge_or_fail_together(accelerator: Accelerator, judge: Callable[[], Tensor], rows: int, functions: int) -> Tensor:
    """`judge()`, the rewards of all processes' rows; if it raises in one process, all of them raise.

    Args:
        judge: ends by gathering the rewards of this process's rows, (rows, functions).
    """
    failure: Exception | None = None
    rewards = torch.full((rows, functions), torch.nan, device=accelerator.device)
    try:
        rewards = judge()
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        failure = error
        accelerator.gather(rewards)  # takes part in the others' gathering
    if all_reduce_max(accelerator, int(failure is not None)):
        failure = failure or RuntimeError("A reward function failed in another process, whose output says how.")
        failure.in_all_processes = True  # type: ignore[attr-defined]
        raise failure
    return rewards


def failed_together(accelerator: Accelerator, error: Exception) -> bool:
    """Whether all processes raise with this error, so that collective calls are still possible."""
    return accelerator.num_processes == 1 or getattr(error, "in_all_processes", False)


def all_reduce_max(accelerator: Accelerator, count: int) -> int:
    """The largest `count` of any process."""
    if accelerator.num_processes == 1:
        return count
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


def all_reduce_sum(accelerator: Accelerator, *values: float) -> list[float]:
    """The sum of each value over all processes."""
    if accelerator.num_processes == 1:
        return list(values)
    total = accelerator.reduce(torch.tensor(values, device=accelerator.device), reduction="sum")
    return list(total.tolist())


def pad_to_longest(accelerator: Accelerator, items: list[Item], filler: Item, *, shared: bool) -> list[Item]:
    """The items, and repeated first ones behind them: in all as many as the process with most has if `shared`, at least
    one. The `filler` stands where there is no item.

    TRL cuts what comes back from a shared engine as if processes had equally many, and sharded weights are gathered by
    all processes or by none.
    """
    wanted = all_reduce_max(accelerator, len(items)) if shared else max(len(items), 1)
    return items + [items[0] if items else filler] * (wanted - len(items))


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


def local_slice(accelerator: Accelerator, count: int) -> slice:
    """Where this process's rows lie among those of all processes, which have `count` each."""
    return slice(accelerator.process_index * count, (accelerator.process_index + 1) * count)
