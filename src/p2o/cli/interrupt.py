"""Ctrl-C and SIGTERM during a run."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

ONE_REQUEST = 3.0
"""Seconds in which signals to a job of several processes are one request: a terminal signals each of them, and a
launcher passes on what it gets itself."""


class Interrupt(TrainerCallback):
    """Stops a run on Ctrl-C or SIGTERM.

    In a policy step, the step is finished and saved first; elsewhere, or on the second signal, the run stops
    immediately. Elsewhere everything is saved already: an evolution has its journal, an evaluation changes nothing.

    Processes are signalled at different moments: all of them stop at the end of the same step, which is the first one
    that any of them ends after its signal.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.asked = any(gather_object([self.asked]))
        if self.asked:
            self._since = self._since or time.monotonic()
            control.should_save = control.should_training_stop = True

    @contextmanager
    def handled(self, finish_step_first: Callable[[], bool]) -> Iterator[None]:
        def handler(number: int, frame: Any) -> None:
            now = time.monotonic()
            if self.asked and "RANK" in os.environ and now - self._since < ONE_REQUEST:
                return
            again, self.asked, self._since = self.asked, True, self._since or now
            if again or not finish_step_first():
                raise KeyboardInterrupt
            print("\nFinishing this step and saving. Press Ctrl-C again to stop immediately.", file=sys.stderr)

        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)
