"""What `torchrun script.py …` does on one machine, with processes that are forked: see benchmarks/forked.py."""

import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from subprocess import CompletedProcess

import forked


def torchrun(script, *words, processes, environment, directory=None, seconds=600):
    """Runs the script with these words in as many processes; one that fails ends the others, as `torchrun` has it.

    Returns the exit code of the first that failed, 0 where none did, and what each printed, after one another.
    """
    arguments = (str(script), words, str(directory or os.getcwd()))
    with tempfile.TemporaryDirectory() as logs:
        ranks = forked.start(_rank, *arguments, logs=Path(logs), processes=processes, environment=environment)
        code = _wait(ranks, time.monotonic() + seconds)
        return CompletedProcess([str(script), *words], code, stderr=forked.printed(Path(logs)))


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


def _rank(script, words, directory):
    os.chdir(directory)
    sys.argv = [script, *words]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
