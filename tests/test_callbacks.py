"""The events of a run, by the example in docs/callbacks.md."""

import inspect
import re
from pathlib import Path

from p2o import P2OCallback
from p2o.callbacks import notify
from p2o.cli.console import Watch
from p2o.cli.run_directory import RunDirectory
from trainers import alternate, questions

PAGE = Path(__file__).parent.parent / "docs" / "callbacks.md"
EVENTS = [name for name in vars(P2OCallback) if name.startswith("on_")]


def test_the_example_of_the_page_sees_both_phases(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    watch = names["watch"]
    trainer, _ = alternate(tmp_path, data=questions(24), evolution_budget=150, callbacks=[watch])
    ((epoch, rollouts, templates),) = watch.phases
    assert epoch == 1 and templates == len(trainer.p2o.templates) > 0
    spent = trainer.p2o.ledger.rollouts
    assert rollouts == spent["evolution_dev"] + spent["evolution_feedback"]
    assert len(watch.rewards["templated"]) > 0
    assert sum(map(len, watch.rewards.values())) == spent["policy"]


def test_the_page_names_all_events_and_what_they_get():
    rows = dict(re.findall(r"^\| `(on_\w+)` \|(.*)$", PAGE.read_text(), re.MULTILINE))
    assert list(rows) == EVENTS
    for event, row in rows.items():
        given = inspect.signature(getattr(P2OCallback, event)).parameters
        own = set(given) - {"self", "args", "state", "control", "p2o", "kwargs"}
        assert own and all(f"`{name}`" in row for name in own)


def test_our_own_callbacks_have_no_event_of_their_own():
    for callback in (Watch, RunDirectory):
        assert issubclass(callback, P2OCallback)
        ours = [name for name in vars(callback) if name.startswith("on_")]
        assert all(hasattr(P2OCallback, name) for name in ours)


def test_a_callback_without_the_event_is_passed_over():
    notify([object(), P2OCallback()], "on_rollouts", None, None, None, p2o=None, rollouts=[])
