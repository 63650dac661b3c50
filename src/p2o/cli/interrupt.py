"""Ctrl-C and SIGTERM during a run."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class Interrupt(TrainerCallback):
    """Ctrl-C or SIGTERM: a policy step is finished and saved first; elsewhere, and the second time, it is at once.

    Elsewhere everything is saved already: an evolution has its journal, an evaluation changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def handled(self, politely: Any) -> Iterator[None]:
        def handler(number: int, frame: Any) -> None:
            again, self.asked = self.asked, True
            if again or not politely():
                raise KeyboardInterrupt
            print("\nFinishing this step and saving. Press Ctrl-C again to stop immediately.", file=sys.stderr)

        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)
