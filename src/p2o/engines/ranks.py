"""Several processes of one command, such as `torchrun -m p2o eval`: the first one runs it, all of them generate.

They talk through the launcher's key-value store and form no process group, so that an engine in each of them may form
groups of its own, and no wait of theirs runs into the time-out of a collective call: the first process may score, or
wait for a reflection, as long as it takes.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, rendezvous

from p2o.completions import Call, Completion, GenerationError
from p2o.engines.frozen import FrozenModel

FOREVER = timedelta(days=365)
LAST_WORDS = timedelta(seconds=60)
FINISHED = ("finished",)


@dataclass
class Ranks:
    """The processes that a launcher started for one command.

    Args:
        index: of this one; the first is 0.
        count: of all.
        store: None where there is only one.
    """

    index: int = 0
    count: int = 1
    store: Store | None = None
    _told: int = field(default=0, repr=False)
    _models: int = field(default=0, repr=False)

    @classmethod
    def launched(cls) -> "Ranks":
        """Those of the environment that torchrun, accelerate and others set; one without a launcher."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
            return cls()
        store, index, count = next(rendezvous("env://", timeout=FOREVER))
        store.set_timeout(FOREVER)
        return cls(index, count, PrefixStore(f"p2o/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store))

    @property
    def is_first(self) -> bool:
        return self.index == 0

    # -- talk ----------------------------------------------------------------------------------------------------------

    def tell(self, task: tuple[Any, ...]) -> None:
        """The first process says what all do next."""
        if self.store is not None:
            self.store.set(f"task/{self._told}", pickle.dumps(task))  # type: ignore[arg-type]
        self._told += 1

    def hear(self) -> tuple[Any, ...]:
        """What the first process says next."""
        assert self.store is not None
        task: tuple[Any, ...] = pickle.loads(self.store.get(f"task/{self._told}"))
        self._told += 1
        return task

    def collect(self, mine: Any) -> list[Any]:
        """What all processes have done of the last task, in their order, in the first one; nothing in the others."""
        return self.collect_as(f"done/{self._told}", mine)

    def collect_as(self, name: str, mine: Any) -> list[Any]:
        """As `collect`, of work without a task: all processes know its name."""
        if self.store is None:
            return [mine]
        if not self.is_first:
            self.store.set(f"{name}/{self.index}", pickle.dumps(mine))  # type: ignore[arg-type]
            return []
        everyones = [mine]
        for index in range(1, self.count):
            everyones.append(pickle.loads(self.store.get(f"{name}/{index}")))
            self.store.delete_key(f"{name}/{index}")
        self.store.delete_key(f"task/{self._told - 1}")
        return everyones

    def finish(self) -> None:
        """Lets the others go. The first process waits for them a little: it may hold the store."""
        if self.store is None:
            return
        with suppress(RuntimeError):  # they may be gone, and the store with them
            self.tell(FINISHED)
            self.store.set_timeout(LAST_WORDS)
            self.collect(None)

    # -- work ----------------------------------------------------------------------------------------------------------

    def load(self, load: Callable[[Any], FrozenModel], arguments: Any) -> FrozenModel:
        """A model that all processes load, and complete prompts with together.

        Raises:
            Exception: the first that `load(arguments)` raised in any of them.
        """
        if self.store is None:
            return load(arguments)
        self.tell(("load", arguments))
        model = self._load(load, arguments, [])
        number, self._models = self._models, self._models + 1

        def complete_calls(calls: Sequence[Call]) -> list[list[Completion]]:
            self.tell(("complete", number, calls))
            return self._complete(model, calls)

        def complete(prompts: Any, *, sampling: Any, seed: int) -> list[Completion]:
            return complete_calls([Call(prompts, sampling, seed)])[0]

        return replace(model, complete=complete, complete_calls=complete_calls, calls_at_once=self.count)

    def serve(self, load: Callable[[Any], FrozenModel]) -> None:
        """Takes part in what the first process says, until it has finished."""
        models: list[FrozenModel] = []
        while (task := self.hear()) != FINISHED:
            if task[0] == "load":
                self._load(load, task[1], models)
            else:
                self._complete(models[task[1]], task[2])
        with suppress(RuntimeError):
            self.collect(None)

    def _load(self, load: Callable[[Any], FrozenModel], arguments: Any, models: list[FrozenModel]) -> FrozenModel:
        error: Exception | None = None
        model = None
        try:
            model = load(arguments)
            models.append(model)
        except Exception as raised:
            error = type(raised)(str(raised))  # without what cannot be pickled
        if failed := [e for e in self.collect(error) if e is not None]:
            raise failed[0]
        return model  # type: ignore[return-value]

    def _complete(self, model: FrozenModel, calls: Sequence[Call]) -> list[list[Completion]]:
        """The completions of all calls, in the first process."""
        found: list[tuple[int, int, list[Completion]]] = []
        error = None
        try:
            for number, first, prompts in parts_of(calls, model.generated_at_once, self.count)[self.index]:
                call = calls[number]
                completions = model.complete(prompts, sampling=call.sampling, seed=call.seed, first=first)  # type: ignore[call-arg]
                found.append((number, first, completions))
        except Exception as raised:
            if self.is_first and not isinstance(raised, GenerationError):
                raise
            error = f"process {self.index}: {type(raised).__name__}: {raised}"
        everyones = self.collect((found, error))
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


def take_own_devices(each: int = 1) -> None:
    """Shows this process the GPUs that are its own: `each` of those that its machine's processes share.

    To be called before anything has used a GPU. Without several processes, all GPUs are its own.

    Raises:
        ValueError: fewer GPUs than all of them need.
    """
    processes, index = (int(os.environ.get(n, default)) for n, default in (("LOCAL_WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
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
