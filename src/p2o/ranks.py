"""Several processes of one command, such as `torchrun -m p2o eval`: the first one runs it, all of them work for it.

They talk through the launcher's key-value store and form no process group. So an engine in each of them may form groups
of its own, and no wait runs into the time-out of a collective call: the first process may score, or wait for a
reflection, as long as it takes.
"""

import os
import pickle
import random
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from p2o.completions import GenerationError

if TYPE_CHECKING:
    from torch.distributed import Store

FOREVER = timedelta(days=365)
LAST_WORDS = timedelta(seconds=60)
FINISHED = ("finished",)
LISTENING = range(20_000, 32_000)
"""Ports for those who listen: systems give outgoing connections higher ones."""


def free_port() -> int:
    """A port at which nobody listens yet, for a process that will in some seconds.

    What the system itself calls free may be an outgoing connection's by then. Drawn from the system's randomness, since
    two runs with one seed may begin at once.
    """
    for port in random.SystemRandom().sample(LISTENING, len(LISTENING)):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise OSError(f"No port from {LISTENING.start} to {LISTENING.stop - 1} is free.")


@dataclass
class Ranks:
    """The processes that a launcher started for one command.

    Args:
        index: of this one; the first is 0.
        count: of all.
        store: None where there is only one.
        local_index, local_count: of this one among those of its machine, and how many these are.
        started: the others, where this one has started them.
    """

    index: int = 0
    count: int = 1
    store: "Store | None" = None
    local_index: int = 0
    local_count: int = 1
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    _told: int = field(default=0, repr=False)

    @classmethod
    def launched(cls) -> "Ranks":
        """Those of the environment that torchrun, accelerate and others set; one without a launcher."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
            return cls()
        from torch.distributed import PrefixStore, rendezvous  # only here: torch takes seconds

        store, index, count = next(rendezvous("env://", timeout=FOREVER))
        store.set_timeout(FOREVER)
        own = PrefixStore(f"ranks/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        local_index, local_count = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return cls(index, count, own, local_index, local_count)

    def start(self, count: int, command: list[str]) -> None:
        """Makes this process, so far the only one, the first of `count` on this machine, and starts the others."""
        from torch.distributed import PrefixStore, TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, timeout=FOREVER, wait_for_workers=False)
        self.count, self.store, self.local_count = count, PrefixStore("ranks/0", store), count
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        where |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        for index in range(1, count):
            environment = {**os.environ, **where, "RANK": str(index), "LOCAL_RANK": str(index)}
            self.started.append(subprocess.Popen(command, env=environment))

    @property
    def is_first(self) -> bool:
        return self.index == 0

    # -- talk ----------------------------------------------------------------------------------------------------------

    def tell(self, task: tuple[Any, ...]) -> None:
        """The first process says what all do next."""
        if self.store is not None:
            self.give(f"task/{self._told}", task)
        self._told += 1

    def hear(self) -> tuple[Any, ...]:
        """What the first process says next; `FINISHED` where it, or who holds the store, is gone."""
        from torch.distributed import DistNetworkError

        assert self.store is not None
        try:
            task: tuple[Any, ...] = pickle.loads(self.store.get(f"task/{self._told}"))
        except DistNetworkError:
            return FINISHED
        self._told += 1
        return task

    def collect(self, mine: Any) -> list[Any]:
        """What all processes have done of the last task, in their order, in the first one; nothing in the others."""
        name = f"done/{self._told}"
        if not self.is_first:
            self.give(f"{name}/{self.index}", mine)
            return []
        everyones = [mine, *(self.take(f"{name}/{index}") for index in range(1, self.count))]
        if self.store is not None:
            self.store.delete_key(f"task/{self._told - 1}")
        return everyones

    def give(self, name: str, value: Any) -> None:
        """Leaves something for another process to take."""
        assert self.store is not None
        self.store.set(name, pickle.dumps(value))  # type: ignore[arg-type]

    def take(self, name: str) -> Any:
        """What another process gives under this name; waits for it.

        Raises:
            GenerationError: a process that this one has started is gone.
        """
        assert self.store is not None
        while self.started and not self.store.check([name]):
            for index, process in enumerate(self.started, 1):
                if process.poll() is not None:
                    raise GenerationError(f"Process {index} of {self.count} ended with exit code {process.returncode}.")
            time.sleep(0.01)
        value = pickle.loads(self.store.get(name))
        self.store.delete_key(name)
        return value

    def finish(self) -> None:
        """Lets the others go. Where the first process holds the store, it waits for them a little."""
        if self.store is None:
            return
        with suppress(RuntimeError):  # they may be gone, and the store with them
            self.tell(FINISHED)
            for process in self.started:
                try:
                    process.wait(LAST_WORDS.total_seconds())
                except subprocess.TimeoutExpired:
                    process.kill()
            if self.started:
                return
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self.store.set_timeout(LAST_WORDS)
                self.collect(None)
