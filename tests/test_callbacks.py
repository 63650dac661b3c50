"""The events of a run, by the example in docs/callbacks.md."""

import contextlib
import inspect
import re
from collections import Counter
from pathlib import Path

from p2o import P2OCallback
from p2o.callbacks import notify
from p2o.cli.console import Watch
from p2o.cli.run_directory import RunDirectory
from p2o.templates import question_text
from trainers import K, alternate, make, questions

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


class Seen(P2OCallback):
    def __init__(self):
        self.rollouts = []

    def on_evaluation_rollouts(self, args, state, control, rollouts, **kwargs):
        self.rollouts += rollouts


def test_an_evaluation_batch_may_be_larger_than_a_generation_batch(tmp_path):
    """Watchers are told of all of it, although TRL's table has room for a generation batch."""
    seen, data = Seen(), questions(6)
    trainer = make(tmp_path, eval_dataset=data, per_device_eval_batch_size=6 * K, steps_per_generation=1)
    trainer.add_callback(seen)
    trainer.evaluate()
    asked = Counter(question_text(rollout.prompt) for rollout in seen.rollouts)
    assert asked == Counter({question_text(prompt): K for prompt in data["prompt"]})
    # Outside an evaluation, too; what TRL does not support there is another matter.
    with contextlib.suppress(NotImplementedError):
        trainer.predict(data)
