"""Processes forked from one that has imported TRL and torch: for each by itself that takes ten seconds of a processor,
longer than most small runs."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from p2o.ranks import free_port

IMPORTED = ["p2o.trainer", "p2o.pico.world"]


def start(
    function: Callable[..., None],
    *arguments: Any,
    logs: Path,
    processes: int = 1,
    launched: bool = True,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Calls `function(*arguments)` in as many processes.

    Args:
        logs: the directory to whose files `out-RANK` and `log-RANK` they add what they print and what errors they tell.
        launched: whether their environment says what a launcher tells the processes of a job.
        environment: what else it says; as here when None.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    job = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    job |= {"MASTER_PORT": str(free_port())}
    started = []
    for rank in range(processes):
        own = {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} if launched else {}
        variables = {**(os.environ if environment is None else environment), **own}
        files = (str(logs / f"out-{rank}"), str(logs / f"log-{rank}"))
        started.append(context.Process(target=_run, args=(files, variables, function, arguments)))
        started[-1].start()
    return started


def start_command(*words: str, launched: bool = False, **settings: Any) -> list[Any]:
    """`p2o` with these words; `settings` are those of [`start`]."""
    return start(_command, words, launched=launched, **settings)


def printed(logs: Path) -> str:
    """What the processes printed, one after another."""
    files = sorted(logs.glob("out-*")) + sorted(logs.glob("log-*"))
    return "".join(path.read_text(errors="replace") for path in files)


def _command(words: tuple[str, ...]) -> None:
    from p2o.cli import main

    sys.exit(main(list(words)))


def _run(
    files: tuple[str, str], variables: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    function(*arguments)
