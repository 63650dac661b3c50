"""Ctrl-C and SIGTERM during a run."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class Interrupt(TrainerCallback):
    """Stops a run on Ctrl-C or SIGTERM.

    In a policy step, the step is finished and saved first; elsewhere, or on the second signal, the run stops
    immediately. Elsewhere everything is saved already: an evolution has its journal, an evaluation changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def handled(self, finish_step_first: Callable[[], bool]) -> Iterator[None]:
        def handler(number: int, frame: Any) -> None:
            again, self.asked = self.asked, True
            if again or not finish_step_first():
                raise KeyboardInterrupt
            print("\nFinishing this step and saving. Press Ctrl-C again to stop immediately.", file=sys.stderr)

        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)
