"""Budget and split of a prompt phase, and which parents take which minibatches."""

import random
from types import SimpleNamespace

import pytest
from gepa.core.data_loader import ListDataLoader
from hypothesis import given
from hypothesis import strategies as st

from p2o.prompt_phase.budget import PRESET_CANDIDATES, metric_call_budget, split_hard_set
from p2o.prompt_phase.parents import DistinctParents, draw_distinct
from p2o.prompt_phase.types import EvolutionConfig


def test_presets_follow_the_formula():
    # V + 5n + 35N + ((N + 1)//5 + 1)·V with N = max(4·log2 n, 1.5 n), written out for V = 300.
    assert metric_call_budget("light", 300) == 300 + 30 + 35 * 10 + 3 * 300
    assert metric_call_budget("medium", 300) == 300 + 60 + 35 * 18 + 4 * 300
    assert metric_call_budget("heavy", 300) == 300 + 90 + 35 * 27 + 6 * 300
    assert metric_call_budget("heavy_4", 300) == 300 + 360 + 35 * 108 + 22 * 300
    assert metric_call_budget(17, 300) == 17
    assert set(PRESET_CANDIDATES) == {"light", "medium", "heavy", "heavy_4"}
    with pytest.raises(ValueError, match="light, medium, heavy, heavy_4"):
        metric_call_budget("huge", 1)


@given(st.sets(st.integers(0, 2000), min_size=2, max_size=700), st.integers(1, 300), st.integers())
def test_split_is_a_partition_of_the_size_described(questions, max_dev, seed):
    feedback, dev = split_hard_set(list(questions), max_dev=max_dev, rng=random.Random(seed))
    assert sorted(feedback + dev) == sorted(questions)
    assert feedback == sorted(feedback) and feedback
    assert dev == sorted(dev) and dev
    assert len(dev) == (max_dev if len(questions) >= 1.5 * max_dev else len(questions) // 2)


@given(st.dictionaries(st.integers(0, 20), st.integers(1, 9), min_size=1), st.integers(1, 25), st.integers())
def test_parents_are_distinct_and_all_of_a_small_front(weights, count, seed):
    drawn = draw_distinct(weights, count, random.Random(seed))
    assert len(drawn) == len(set(drawn)) == min(count, len(weights))
    assert set(drawn) <= set(weights)


def test_parents_are_drawn_by_weight():
    draws = [draw_distinct({0: 3, 1: 1}, 1, random.Random(i))[0] for i in range(4000)]
    assert abs(draws.count(0) / 4000 - 0.75) < 3 * (0.75 * 0.25 / 4000) ** 0.5


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_parents_take_a_minibatch_each(solved, questions, wanted, size, seed):
    scores = [dict(enumerate(map(float, row))) for row in solved]
    best = {i: max(score[i] for score in scores) for i in range(4)}
    state = SimpleNamespace(
        i=3,
        program_candidates=[{"template": str(i)} for i in range(len(scores))],
        program_full_scores_val_set=[sum(score.values()) for score in scores],
        get_pareto_front_mapping=lambda: {
            i: {program for program, score in enumerate(scores) if score[i] == best[i]} for i in range(4)
        },
    )

    def sample(number=seed):
        config = EvolutionConfig(parents_per_iteration=wanted, feedback_minibatch_size=size)
        trainset = ListDataLoader(list(range(questions)))
        return [
            (task.parent_idx, task.minibatch_ids)
            for task in DistinctParents(config, number, 1).sample_tasks(state, None, None, trainset)
        ]

    tasks = sample()
    assert tasks == sample()
    parents = [parent for parent, _ in tasks]
    assert 1 <= len(parents) <= wanted and len(set(parents)) == len(parents)
    on_front = {program for program, score in enumerate(scores) if any(score[i] == best[i] for i in range(4))}
    assert set(parents) <= on_front
    for _, batch in tasks:
        assert len(set(batch)) == len(batch) == min(size, questions) and set(batch) <= set(range(questions))
