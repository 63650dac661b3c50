"""What `torchrun script.py …` does on one machine, with processes forked from one that has imported TRL and torch: for
each by itself that takes ten seconds of a processor, longer than most of these runs."""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from pathlib import Path
from subprocess import CompletedProcess

IMPORTED = ["p2o.trainer", "p2o.pico.world"]


def torchrun(script, *words, processes, environment, directory=None, seconds=600):
    """Runs the script with these words in as many processes; one that fails ends the others, as `torchrun` has it.

    Returns the exit code of the first that failed, 0 where none did, and what each printed, after one another.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with socket.socket() as free, tempfile.TemporaryDirectory() as logs:
        free.bind(("127.0.0.1", 0))
        shared = {**environment, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        ranks = []
        for rank in range(processes):
            variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = str(Path(logs) / str(rank))
            ranks.append(
                context.Process(target=_rank, args=(str(script), words, variables, log, directory or os.getcwd()))
            )
            ranks[-1].start()
        code = _wait(ranks, time.monotonic() + seconds)
        said = "".join((Path(logs) / str(rank)).read_text(errors="replace") for rank in range(processes))
    return CompletedProcess([str(script), *words], code, stderr=said)


def _wait(ranks, until):
    try:
        while any(rank.is_alive() for rank in ranks):
            failed = [rank.exitcode for rank in ranks if rank.exitcode]
            if failed:
                return failed[0]
            if time.monotonic() > until:
                raise TimeoutError("the processes did not end")
            time.sleep(0.2)
        return next((rank.exitcode for rank in ranks if rank.exitcode), 0)
    finally:
        for rank in ranks:
            rank.terminate()
        for rank in ranks:
            rank.join(30)
            rank.kill()
            rank.join()


def _rank(script, words, variables, log, directory):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
