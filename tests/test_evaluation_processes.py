"""An evaluation in several processes says what one process says of the same completions, to the last count."""

import importlib.util
import json
import math
import os
import statistics
from pathlib import Path

import pytest

from torchrun import torchrun

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "evaluating.py"


def evaluated(out, processes, evaluations):
    """What each of the evaluations said, the same in every process but for how many rows each judged."""
    out.mkdir(parents=True, exist_ok=True)
    done = torchrun(SCRIPT, str(out), json.dumps(evaluations), processes=processes, environment=os.environ)
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    for number, first in enumerate(ranks[0]):
        judged = sum(rank[number].pop("judged") for rank in ranks)
        assert all(rank[number] == first for rank in ranks), "all processes say the same"
        first["judged"] = judged
    return ranks[0]


def is_success(reward):
    return float(reward) > 0


def assert_counted_once(said, questions, copies):
    """Every question so many times and no more, and metrics that follow from those completions alone."""
    assert said["judged"] == len(said["rollouts"]) == said["ledger"][0] == sum(questions.values()) * copies
    for name, count in questions.items():
        rollouts = [rollout[1:] for rollout in said["rollouts"] if rollout[0] == name]
        assert len(rollouts) == count * copies
        asked = [question for question, *_ in rollouts]
        assert all(asked.count(question) == copies for question in asked)
        prefix = f"eval_{name}_" if name else "eval_"
        metrics = said["metrics"]
        rewards = [float(reward) for *_, reward in rollouts if reward != "nan"]
        assert metrics[f"{prefix}accuracy"] == sum(map(is_success, rewards)) / len(rewards)
        assert metrics[f"{prefix}reward"] == pytest.approx(statistics.fmean(rewards))
        assert metrics[f"{prefix}rewards/by_text/mean"] == pytest.approx(statistics.fmean(rewards))
        assert metrics[f"{prefix}reward_std"] == pytest.approx(statistics.stdev(rewards))
        short = statistics.fmean(len(text) < 20 for _, text, _ in rollouts)
        assert metrics[f"{prefix}share_of_short"] == pytest.approx(short)
        groups = [[float(r[-1]) for r in rollouts[i : i + copies]] for i in range(0, len(rollouts), copies)]
        same = [len({r for r in g if not math.isnan(r)}) == 1 for g in groups]
        if copies > 1:
            assert metrics[f"{prefix}frac_reward_zero_std"] <= statistics.fmean(same) + 1e-6


def assert_same(one, several):
    assert several["rollouts"] == one["rollouts"], "the very same completions"
    assert several["judged"] == one["judged"] and several["ledger"] == one["ledger"]
    assert several["metrics"].keys() == one["metrics"].keys()
    for name, value in one["metrics"].items():
        assert several["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    exact = ("accuracy", "length", "ratio", "reward", "std", "mean")
    for name, value in one["metrics"].items():
        if name.endswith(exact) and "clip_ratio/" not in name:
            assert several["metrics"][name] == value, name


# A batch of each process is the same size whatever their number: their batches are then the same, and so is what is
# sampled. None of the sets divides by two or three batches of four, and one has fewer rows than there are processes.
SETS = {"seven": 7, "one": 1}
ALIKE = [
    {"questions": SETS, "settings": {"num_generations_eval": 2, "per_device_eval_batch_size": 4}},
    {
        "questions": {"": 5},
        "settings": {"num_generations_eval": 1, "per_device_eval_batch_size": 2, "loss_type": "grpo"},
    },
]
# Here the whole batch has the same size, so copies of a question lie on several processes.
CUT = {"questions": {"": 7}, "settings": {"num_generations_eval": 4}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    def run(processes):
        cut = {**CUT, "settings": {**CUT["settings"], "per_device_eval_batch_size": 12 // processes}}
        return evaluated(tmp_path_factory.mktemp("evaluation"), processes, [*ALIKE, cut])

    return {processes: run(processes) for processes in (1, 2, 3)}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_question_counts_once_for_each_of_its_copies(runs, processes):
    for said, one in zip(runs[processes], [*ALIKE, CUT], strict=True):
        assert_counted_once(said, one["questions"], one["settings"]["num_generations_eval"])


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_say_what_one_says(runs, processes):
    for one, several in zip(runs[1][: len(ALIKE)], runs[processes], strict=False):
        assert_same(one, several)
    assert runs[processes][1]["extra"] == runs[1][1]["extra"]
    assert runs[processes][1]["table"] == [5, 5], "the table of completions has no repeats either"


def test_copies_of_a_question_are_drawn_by_themselves(runs):
    """On whichever processes they are."""
    for said in (runs[2][-1], runs[3][-1]):
        texts = [text for _, _, text, _ in said["rollouts"]]
        # Rows 4-7 are one question; rows of a batch of 12 lie on three or two processes.
        groups = [texts[start : start + 4] for start in range(0, len(texts), 4)]
        assert any(len(set(group)) == 4 for group in groups)
        halves = [texts[start : start + 12] for start in range(0, 24, 12)]
        for processes in (2, 3):
            shares = [halves[0][i : i + 12 // processes] for i in range(0, 12, 12 // processes)]
            assert len({tuple(share) for share in shares}) == processes


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_colocated_engines_say_what_one_says(tmp_path):
    settings = {
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 4,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 512,
        "reflection_max_tokens": 48,
        "vllm_gpu_memory_utilization": 0.1,
        "model_init_kwargs": {"dtype": "float32"},
    }
    evaluations = [{"questions": SETS, "settings": settings}]
    (one,), (two,) = (evaluated(tmp_path / str(n), n, evaluations) for n in (1, 2))
    assert_counted_once(two, SETS, 2)
    assert_same(one, two)
