"""Several processes of one command, such as `torchrun -m p2o eval`: the first one runs it, all of them work for it.

They talk through the launcher's key-value store and form no process group. So an engine in each of them may form groups
of its own, and no wait runs into the time-out of a collective call: the first process may score, or wait for a
reflection, as long as it takes.
"""

import os
import pickle
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store

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
    store: "Store | None" = None
    _told: int = field(default=0, repr=False)

    @classmethod
    def launched(cls) -> "Ranks":
        """Those of the environment that torchrun, accelerate and others set; one without a launcher."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
            return cls()
        from torch.distributed import PrefixStore, rendezvous  # only here: torch takes seconds

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
            self.give(f"task/{self._told}", task)
        self._told += 1

    def hear(self) -> tuple[Any, ...]:
        """What the first process says next."""
        assert self.store is not None
        task: tuple[Any, ...] = pickle.loads(self.store.get(f"task/{self._told}"))
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
        """What another process gives under this name; waits for it."""
        assert self.store is not None
        value = pickle.loads(self.store.get(name))
        self.store.delete_key(name)
        return value

    def finish(self) -> None:
        """Lets the others go. Where the first process holds the store, it waits for them a little."""
        if self.store is None:
            return
        with suppress(RuntimeError):  # they may be gone, and the store with them
            self.tell(FINISHED)
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                self.store.set_timeout(LAST_WORDS)
                self.collect(None)
