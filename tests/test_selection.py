"""Which templates are selected: margins, noise and luck."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from land import Land, run
from p2o.prompt_phase.selection import Trial, select, within_noise
from p2o.prompt_phase.types import EvolutionConfig, Rollout
from p2o.templates import Template, select_templates


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 4)), st.integers(0, 4)), max_size=6),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.1, 0.3]),
)
def test_selection_asks_for_a_margin(candidates, bare, margin):
    """Whoever is selected is better in its trial; and the set covers what those who are could cover."""
    templates = [Template("", 0.0, frozenset({0, 1, 2, 3, 4}))]
    templates += [Template(f"z{i}", 1.0, frozenset(solves), i + 1) for i, (solves, _) in enumerate(candidates)]
    rates = {"": bare / 4, **{f"z{i}": rate / 4 for i, (_, rate) in enumerate(candidates)}}
    tried = []

    def try_again(texts):
        tried.extend(texts)
        return {text: Trial({0: rates[text]}, reward=rates[text]) for text in texts}

    selected, trials = select(templates, margin, try_again)
    better = [t for t in templates[1:] if rates[t.text] > rates[""] + margin]
    assert [t.text for t in selected] == [t.text for t in select_templates(better)]
    assert all(t.score == rates[t.text] for t in selected)
    assert len(tried) == len(set(tried)) and set(trials) == set(tried)
    assert select(templates, None, try_again) == (select_templates(templates), {})


def test_what_cannot_be_tried_is_not_selected():
    budget = iter([True, False])

    def try_again(texts):
        return {text: Trial({0: float(text == "a")}, 0.5) for text in texts} if next(budget) else None

    a, b, c = (Template(text, 1.0, frozenset(solves)) for text, solves in (("a", "12"), ("b", "34"), ("c", "345")))
    assert [t.text for t in select([a, b, c], 0.0, try_again)[0]] == ["a"], "c failed, b could not be tried"
    assert select([a], 0.0, lambda texts: None) == ([], {})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=10), st.integers(0, 40))
def test_noise_agrees_with_the_definition(pairs, compared):
    """Every assignment of signs to the questions that differ is as likely as any other."""
    empty = {i: float(bare) for i, (bare, _) in enumerate(pairs)}
    solved = {i: float(templated) for i, (_, templated) in enumerate(pairs)}
    signs = [templated - bare for bare, templated in pairs if templated != bare]
    draws = list(itertools.product((-1, 1), repeat=len(signs)))
    chance = sum(sum(draw) >= sum(signs) for draw in draws) / len(draws)
    assert within_noise(empty, [solved], compared) == (chance * max(compared, 1) >= 0.05)


def test_one_lucky_question_is_noise():
    empty = dict.fromkeys(range(24), 0.0)
    assert within_noise(empty, [empty | {3: 1.0}], compared=2)
    assert not within_noise(empty, [empty | {3: 1.0}, dict.fromkeys(range(24), 1.0)], compared=2)


LUCK = EvolutionConfig(budget=200, parents_per_iteration=4, selection_margin=0.2, selection_rollouts=3)


class Lucky(Land):
    """Nothing helps: a question is solved in one rollout of ten, whatever it is asked under, and with Q in most."""

    def rollout(self, requests, *, seed):
        self._count("rollouts", len(requests), seed)
        rng = random.Random(seed)
        solved = [rng.random() < (0.9 if "Q" in template else 0.1) for _, template in requests]
        return [Rollout("said", float(right), right, "Hm.", 10, 5) for right in solved]


def test_luck_is_no_law(tmp_path):
    by_the_paper = run(Lucky(), tmp_path / "a")
    assert by_the_paper.selected == select_templates([c.as_template() for c in by_the_paper.candidates])
    assert by_the_paper.selected and by_the_paper.within_noise and by_the_paper.trials == {}
    land = Lucky()
    asked = run(land, tmp_path / "b", LUCK)
    assert asked.candidates == by_the_paper.candidates and asked.selected == []
    # Every template that would have been selected was tried, beside none, and all of it is counted.
    assert 0 in asked.trials and {t.candidate for t in by_the_paper.selected} <= set(asked.trials)
    again = len(asked.trials) * len(asked.dev_ids) * 3
    assert asked.metric_calls == by_the_paper.metric_calls + again
    assert asked.metric_calls == sum(size for kind, size, _ in land.calls if kind == "rollouts")
    assert asked.spent.completion_tokens["evolution_dev"] - by_the_paper.spent.completion_tokens["evolution_dev"] == (
        5 * again
    )


def test_what_helps_passes_the_margin(tmp_path):
    found = run(Lucky(("Use Q.", "Hm.")), tmp_path, LUCK)
    (template,) = found.selected
    assert template.text == "Use Q." and not found.within_noise
    assert template.score == found.trials[template.candidate].reward > 0.7


@pytest.mark.parametrize("back", [1, 2])
def test_interrupted_trials_end_as_if_they_had_not_been(tmp_path, back):
    whole = Lucky()
    straight = run(whole, tmp_path / "a", LUCK)
    when = len(whole.calls) - back
    with pytest.raises(RuntimeError, match="killed"):
        run(Lucky(fail_at=when), tmp_path / "b", LUCK)
    resumed = Lucky()
    assert run(resumed, tmp_path / "b", LUCK) == straight
    assert resumed.calls == whole.calls[when:]


def test_trials_stay_within_what_a_run_has_left(tmp_path):
    found = run(Lucky(), tmp_path, replace(LUCK, max_metric_calls=100))
    assert found.selected == [] and found.trials == {} and found.spent.total_rollouts <= 100
    assert found.events["templates_not_tried_again"] > 0
