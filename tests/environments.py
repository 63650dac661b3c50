"""Environments for tests, about the multiplications that the small tool model knows, and trainers with them."""

import random
from collections import Counter

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from tool_model import QUESTIONS
from trainers import options

EMPTY = [{"role": "user", "content": ""}]


def desk(log=None, watch=None):
    """A class of environments that ask for a product, have a calculator, and reward its right use.

    Args:
        log: takes what is called, in order.
        watch: takes how many instances there have been, and are.
    """
    log = [] if log is None else log
    watch = Counter() if watch is None else watch

    class Desk:
        def __init__(self):
            log.append(("made",))
            watch["made"] += 1
            watch["alive"] += 1
            watch["most"] = max(watch["most"], watch["alive"])

        def __del__(self):
            watch["alive"] -= 1

        def reset(self, a, b, **row):
            self.asked, self.found = (a, b), []
            log.append(("reset", a, b, *sorted(row)))
            return f"{a}*{b}?"

        def multiply(self, a: int, b: int) -> int:
            """Multiplies two numbers.

            Args:
                a: the first one.
                b: the second one.

            Returns:
                Their product.
            """
            log.append(("multiply", a, b))
            self.found.append((a, b))
            return a * b

        def get_reward(self) -> float:
            log.append(("get_reward", *self.asked))
            return float(self.asked in self.found)

    return Desk


def lottery():
    """A class of environments that make up their questions."""

    class Lottery(desk()):
        def reset(self, **row):
            return super().reset(*random.choice(QUESTIONS))

    return Lottery


def data(count=16, instruction="", **columns):
    """Rows whose question the environment asks; those of one environment where there are no further columns."""
    before = [{"role": "user", "content": f"{instruction}\n\n" if instruction else ""}]
    a, b = zip(*QUESTIONS[::3][:count], strict=True)
    rows = {"prompt": [before] * len(a), "a": a, "b": b, "solution": [str(x * y) for x, y in zip(a, b, strict=True)]}
    return Dataset.from_dict(rows | columns)


def make(tmp_path, folder, environments, trainer=P2OTrainer, config=P2OConfig, reward=None, train=None, **changes):
    more = {
        name: changes.pop(name)
        for name in ("reflect", "feedback_func", "tools", "rollout_func", "eval_dataset")
        if name in changes
    }
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=config(**options(tmp_path, **{"max_completion_length": 120, **changes})),
        train_dataset=data() if train is None else train or None,
        processing_class=AutoTokenizer.from_pretrained(folder),
        environment_factory=environments,
        **more,
    )
