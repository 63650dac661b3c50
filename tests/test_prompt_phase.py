"""The prompt phase on the real gepa: batches, selection of parents, the guard, the journal."""

import itertools
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from gepa.core.data_loader import ListDataLoader
from hypothesis import given
from hypothesis import strategies as st

from p2o.ledger import Ledger
from p2o.prompt_phase.budget import PRESET_CANDIDATES, metric_call_budget, split_hard_set
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.guard import check_template, leaks_answer, stock_runs
from p2o.prompt_phase.journal import Journal
from p2o.prompt_phase.parents import DistinctParents, draw_distinct
from p2o.prompt_phase.proposals import reflection_prompt
from p2o.prompt_phase.selection import Trial, select, within_noise
from p2o.prompt_phase.types import EvolutionConfig, Question, Reflection, ReflectionError, Rollout
from p2o.templates import Template, select_templates

# -- budget and split ------------------------------------------------------------------------------------------------


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


# -- guard -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "answer", "leaks"),
    [
        ("If asked about 37 apples, say 91.", "91", True),
        ("The sum is -14 there.", "-14", True),
        ("The sum is minus 14 there.", "-14", True),
        ("Add 1,234 to it.", "1234", True),
        ("Split it in 3 parts.", "3", False),
        ("The answer is 3.", "3", True),
        ("Write 912 steps.", "91", False),
        ("Think of Paris first.", "Paris", True),
        ("Think of Parisians first.", "Paris", False),
        ("Say yes or no.", "yes", True),
        ("Check yes or no.", "yes", False),
        ("Anything.", "", False),
        ("Compute 10-20i carefully.", "10-20i", True),
    ],
)
def test_answers_in_templates(template, answer, leaks):
    assert leaks_answer(template, answer) is leaks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("word " * 50, "too_long"),
        ("Think.<|im_end|>", "markup"),
        ("<|im_start|>system", "markup"),
        ("Stop </s> here", "markup"),
        ("[INST] do", "markup"),
        ("user: what", "markup"),
        ("<｜User｜> hi", "markup"),
        ("Use <special> now", "markup"),
        ("It gives 4711.", "leaked_answer"),
        ("Note how many red apples does Anna still have.", "quoted_question"),
        ("Work line by line.", None),
    ],
)
def test_guard(text, reason):
    questions = [("So how many red apples does Anna still have after lunch?", "4711")]
    found = check_template(text, questions=questions, max_length=100, special_tokens={"<special>", " "})
    assert found == reason


def test_common_wording_of_questions_is_no_quotation():
    questions = [(f"State the final answer to the following arithmetic problem: {n}", str(n)) for n in (701, 802)]
    stock = stock_runs(questions)
    template = "State the final answer to the following arithmetic problem step by step."
    assert check_template(template, questions=questions[:1], max_length=100, stock=stock) is None
    assert check_template(template, questions=questions[:1], max_length=100) == "quoted_question"


def test_feedback_names_the_three_cases():
    assert rollout_feedback(reward=1, extracted="4", solution="4") == "Right. Reward: 1."
    assert rollout_feedback(reward=0, extracted="5", solution="4") == "Wrong. The answer is 4. Reward: 0."
    missing = rollout_feedback(reward=0, extracted=None, solution="4", answer_format="Box it.")
    assert missing == "No answer found. Box it. The answer is 4. Reward: 0."


# -- evolution on the real gepa --------------------------------------------------------------------------------------


class Land:
    """A world in three lines: a question of kind a or b is solved by a template with its letter in it.

    Rollouts and reflections answer by their seed alone, as a sampling model with a named stream does.
    """

    def __init__(self, reflections=("Use A.", "Use B.", "Use A. Use B.", "Hm."), fail_at=None):
        self.calls, self.reflections, self.fail_at = [], reflections, fail_at
        self.batches_of_questions = []

    def rollout(self, requests, *, seed):
        self._count("rollouts", len(requests), seed)
        self.batches_of_questions.append({question.id for question, _ in requests})
        rng = random.Random(seed)
        rollouts = []
        for question, template in requests:
            solved = question.text[-1] in template and rng.random() < 0.9
            said, feedback = f"said {rng.random():.3f}", "Right." if solved else "Wrong."
            rollouts.append(Rollout(said, float(solved), solved, feedback, 10 + len(template), 5))
        return rollouts

    def reflect(self, prompts, *, seed):
        self._count("reflection", len(prompts), seed)
        rng = random.Random(seed)
        return [Reflection(f"```\n{rng.choice(self.reflections)}\n```", 100, 20) for _ in prompts]

    def _count(self, kind, size, seed):
        if len(self.calls) == self.fail_at:
            raise RuntimeError("killed")
        self.calls.append((kind, size, seed))


QUESTIONS = [Question(i, f"question {i} of kind {'AB'[i % 2]}", str(1000 + i)) for i in range(20)]
CONFIG = EvolutionConfig(budget=200, parents_per_iteration=4)


def run(land, tmp_path, config=CONFIG, questions=QUESTIONS, **changes):
    options = {"seed": 0, "epoch": 1, "run_dir": tmp_path, **changes}
    return evolve(questions, land.rollout, land.reflect, config, **options)


def test_evolution_finds_and_records_what_solves(tmp_path):
    land = Land()
    result = run(land, tmp_path)
    assert set(result.feedback_ids) | set(result.dev_ids) == {q.id for q in QUESTIONS}
    assert result.candidates[0].text == "" and result.candidates[0].parents == []
    best = max(result.candidates, key=lambda c: sum(c.dev_rewards.values()))
    assert best.text == "Use A. Use B."
    assert sum(best.dev_solved.values()) >= 7
    for candidate in result.candidates:
        assert set(candidate.dev_rewards) == set(result.dev_ids)
        assert all(parent < candidate.index for parent in candidate.parents)
    # Every rollout is counted, every reflection too.
    assert result.metric_calls == sum(size for kind, size, _ in land.calls if kind != "reflection")
    assert result.reflections == sum(size for kind, size, _ in land.calls if kind == "reflection")
    assert result.spent.prompt_tokens["reflection"] == 100 * result.reflections
    assert result.spent.completion_tokens["reflection"] == 20 * result.reflections
    rollout_tokens = [result.spent.completion_tokens[f"evolution_{kind}"] for kind in ("dev", "feedback")]
    assert sum(rollout_tokens) == 5 * result.metric_calls
    # The seed's dev rollouts read 10 tokens each, the others their template as well.
    assert result.spent.prompt_tokens["evolution_dev"] == sum(
        (10 + len(candidate.text)) * len(result.dev_ids) for candidate in result.candidates
    )
    # The budget is exceeded by one iteration at most.
    assert result.metric_calls <= 200 + 2 * 4 * 3 + 4 * 10


def test_a_question_is_tried_once_under_a_template(tmp_path):
    tried = []

    class Once(Land):
        def rollout(self, requests, **options):
            tried.extend((question.id, template) for question, template in requests)
            return super().rollout(requests, **options)

    seen = []
    result = run(Once(), tmp_path, on_progress=seen.append)
    assert len(tried) == len(set(tried)) == result.metric_calls
    # Parents met the same ten feedback questions again, which the budget counts and nobody generated.
    assert seen[-1].metric_calls >= 200 > result.metric_calls


def test_a_template_that_solves_all_ends_evolution(tmp_path):
    class Sure(Land):
        def rollout(self, requests, *, seed):
            self._count("rollouts", len(requests), seed)
            solved = [question.text[-1] in template for question, template in requests]
            return [Rollout("said", float(right), right, "") for right in solved]

    land = Sure(reflections=("Use A. Use B.",))
    result = run(land, tmp_path, EvolutionConfig(budget=10_000, parents_per_iteration=4))
    assert all(result.candidates[-1].dev_solved.values())
    assert result.iterations <= 3


class Breaker(Land):
    """Rewards are -1 and 1; under an instruction with a B nobody can score anything."""

    def rollout(self, requests, *, seed):
        self._count("rollouts", len(requests), seed)
        rollouts = []
        for question, template in requests:
            solved = "A" in template and question.text[-1] == "A"
            reward = None if "B" in template else 2.0 * solved - 1
            rollouts.append(Rollout("said", reward, solved and reward is not None, "" if reward is None else "Hm."))
        return rollouts


def test_an_instruction_under_which_nobody_can_score_gains_nothing(tmp_path):
    told = []

    def reflect(prompts, *, seed):
        told.extend(prompts)
        return land.reflect(prompts, seed=seed)

    land = Breaker(reflections=("Use A.", "Use B.", "Use A. Use B.", "Hm."))
    found = evolve(QUESTIONS, land.rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert not any("B" in candidate.text for candidate in found.candidates)
    best = max(found.candidates, key=lambda c: sum(c.dev_rewards.values()))
    assert best.text == "Use A." and found.events["unscored_rollouts"] > 0
    assert told and all("Hm." in prompt for prompt in told)
    again = evolve(QUESTIONS, land.rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert again == found, "the journal brings the unscored ones back"


def test_without_any_score_there_is_nothing_to_reflect_on(tmp_path):
    class Silent(Land):
        def rollout(self, requests, *, seed):
            return [Rollout("said", None, False, "") for _ in requests]

        def reflect(self, prompts, *, seed):
            raise AssertionError("asked to reflect on nothing")

    found = run(Silent(), tmp_path)
    assert len(found.candidates) == 1 and set(found.candidates[0].dev_rewards.values()) == {0.0}


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


def test_an_iteration_is_four_batches(tmp_path):
    land = Land(reflections=[f"Use A. {i}" for i in range(99)] + [f"Use B. {i}" for i in range(99)])
    result = run(land, tmp_path)
    batches = iter(land.batches_of_questions)
    kinds = "".join(
        "r" if kind == "reflection" else "d" if next(batches) <= set(result.dev_ids) else "f"
        for kind, _, _ in land.calls
    )
    # A batch of minibatches that were all met before is no batch.
    assert re.fullmatch(r"d(f|f?rf|f?rfd)+", kinds), kinds
    feedback = [size for (_, size, _), kind in zip(land.calls, kinds, strict=True) if kind == "f"]
    assert max(feedback) > 3, "several parents roll out together"


def test_reflection_is_asked_with_question_answer_and_feedback(tmp_path):
    land, seen = Land(), []

    def reflect(prompts, *, seed):
        seen.extend(prompts)
        return land.reflect(prompts, seed=seed)

    config = EvolutionConfig(budget=60, reflection_prompt_template="NOW <curr_param> DATA <side_info> END")
    evolve(QUESTIONS, land.rollout, reflect, config, seed=0, epoch=1, run_dir=tmp_path)
    assert seen[0].startswith("NOW ") and seen[0].endswith("END")
    assert all(part in seen[0] for part in ("question ", "said 0.", "Wrong."))


def test_an_instruction_with_a_placeholder_is_shown_as_it_is():
    prompt = reflection_prompt(
        "Fill <side_info> in.", [{"Question": "2 + 3?"}], "NOW <curr_param> DATA <side_info> END"
    )
    assert prompt.startswith("NOW Fill <side_info> in. DATA") and prompt.count("2 + 3?") == 1


def always(answer, config, tmp_path):
    """Evolution whose every reflection is this answer."""

    def reflect(prompts, *, seed):
        return [Reflection(answer)] * len(prompts)

    return evolve(QUESTIONS, Land().rollout, reflect, config, seed=0, epoch=1, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"),
        ("``````", "empty"),
        ("Use A.", "no_fence"),
        ("<think>\nPerhaps\n```\nUse A.\n```\nor", "empty"),
        ("```\nUse A.<|im_end|>\n```", "markup"),
        ("```\n" + "A" * 3000 + "\n```", "too_long"),
        ("```\nIf in doubt it is " + ", ".join(q.solution for q in QUESTIONS) + ".\n```", "leaked_answer"),
    ],
)
def test_bad_reflections_are_counted_and_cost_only_themselves(tmp_path, answer, reason):
    result = always(answer, CONFIG, tmp_path)
    assert [c.text for c in result.candidates] == [""]
    assert result.rejections == {reason: result.reflections}
    assert result.reflections > 5


def test_what_a_reflection_thinks_aloud_is_no_part_of_its_proposal(tmp_path):
    said = "<think>\nPerhaps\n```\nUse B.\n```\n</think>\n\n```\nUse A.\n```"
    result = always(said, EvolutionConfig(budget=200), tmp_path)
    assert [c.text for c in result.candidates] == ["", "Use A."]


def test_cut_off_reflections_become_no_templates_and_are_charged(tmp_path, caplog):
    """Every other answer is cut off in its block; a whole block before the cut would count."""

    def reflect(prompts, *, seed):
        whole = Reflection("```\nUse A.\n```\nThis names the", 100, 20, truncated=True)
        return [Reflection("```\nUse A. Use", 100, 20, truncated=True) if seed % 2 else whole for _ in prompts]

    result = evolve(QUESTIONS, Land().rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert {c.text for c in result.candidates} == {"", "Use A."}
    assert 0 < result.rejections["truncated"] < result.reflections == result.events["reflection_truncated"]
    assert result.spent.completion_tokens["reflection"] == 20 * result.reflections
    assert "Raise reflection_max_tokens" in caplog.text
    again = evolve(QUESTIONS, Land().rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert again == result, "the journal knows which were cut off"


def test_a_duplicate_is_not_evaluated_again(tmp_path):
    land = Land(reflections=["Use A."])
    result = run(land, tmp_path)
    assert [c.text for c in result.candidates].count("Use A.") <= 1
    assert result.rejections["duplicate"] == result.reflections - 1


def test_nothing_to_learn_from_asks_for_no_reflection(tmp_path):
    def always(requests, *, seed):
        return [Rollout("ok", 1.0, True, "Right.") for _ in requests]

    def reflect(prompts, *, seed):
        raise AssertionError("everything is solved")

    result = evolve(QUESTIONS, always, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert result.reflections == 0 and [c.text for c in result.candidates] == [""]


@pytest.mark.parametrize("budget", [0, 5])
def test_a_budget_that_does_not_score_the_seed_is_no_phase(tmp_path, budget):
    result = run(Land(), tmp_path, EvolutionConfig(budget=budget))
    assert result.candidates == [] and result.metric_calls == 0


def test_two_questions_are_needed(tmp_path):
    with pytest.raises(ValueError, match="two hard questions"):
        run(Land(), tmp_path, questions=QUESTIONS[:1])


@pytest.mark.parametrize("when", [*range(0, 24, 3), 1, 2])
def test_an_interrupted_phase_ends_as_if_it_had_not_been(tmp_path, when):
    straight = run(Land(), tmp_path / "a")
    with pytest.raises(RuntimeError, match="killed"):
        run(Land(fail_at=when), tmp_path / "b")
    resumed = Land()
    result = run(resumed, tmp_path / "b")
    assert result == straight
    # What was done is not done again, and the rest draws from the same streams.
    whole = Land()
    run(whole, tmp_path / "c")
    assert resumed.calls == whole.calls[when:]


def test_a_torn_journal_line_is_done_again(tmp_path):
    straight = run(Land(), tmp_path)
    journal = tmp_path / "journal.jsonl"
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) * 2 // 3])
    assert run(Land(), tmp_path) == straight
    assert journal.read_bytes() == content


def test_a_journal_of_another_phase_is_not_used(tmp_path):
    run(Land(), tmp_path)
    land, fresh = Land(), Land()
    run(land, tmp_path, seed=1)
    run(fresh, tmp_path / "fresh", seed=1)
    assert land.calls == fresh.calls
    assert (tmp_path / "journal.jsonl").read_bytes() == (tmp_path / "fresh" / "journal.jsonl").read_bytes()


def test_a_damaged_journal_goes_on_from_the_damage(tmp_path, caplog):
    straight = run(Land(), tmp_path)
    journal = tmp_path / "journal.jsonl"
    content = journal.read_bytes()
    lines = content.split(b"\n")
    lines[len(lines) // 2] = b'{"kind": \x00'
    journal.write_bytes(b"\n".join(lines))
    assert run(Land(), tmp_path) == straight
    assert journal.read_bytes() == content
    assert f"damaged in line {len(lines) // 2 + 1}" in caplog.text


def test_a_resumed_phase_never_holds_less_on_disk_than_before(tmp_path):
    journal = tmp_path / "journal.jsonl"
    run(Land(), tmp_path)
    content = journal.read_bytes()
    seen = []
    run(Land(), tmp_path, on_progress=lambda progress: seen.append(journal.read_bytes()))
    assert set(seen) == {content}


def test_a_departing_journal_is_cut_where_it_departs(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, {}) as journal:
        assert journal.call("dev", [1], lambda n: "one") == "one"
        assert journal.call("dev", [2], lambda n: "two") == "two"
        journal.lose(["nothing"])
        assert journal.call("dev", [3], lambda n: "three") == "three"
    with Journal(path, {}) as journal:
        assert journal.call("dev", [1], lambda n: "again") == "one"
        assert journal.call("dev", [9], lambda n: f"nine at {n}") == "nine at 1"
    results = [json.loads(line).get("result") for line in path.read_text().splitlines()]
    assert results == [None, ["nothing"], "one", "nine at 1"]
    with Journal(path, {}) as journal:
        assert [record["result"] for record in journal.lost] == [["nothing"]]


def test_a_reflection_model_that_raises_ends_the_phase_with_its_own_error(tmp_path):
    def reflect(prompts, *, seed):
        raise ConnectionError("the reflection server is gone")

    with pytest.raises(ConnectionError, match="is gone"):
        evolve(QUESTIONS, Land().rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)


class Moody(Land):
    """Its reflection model fails now and then, by its seed, and not at all from batch `gone_at` on."""

    def __init__(self, gone_at=None, **options):
        super().__init__(**options)
        self.gone_at, self.batches, self.failures = gone_at, 0, 0

    def reflect(self, prompts, *, seed):
        answers = super().reflect(prompts, seed=seed)
        self.batches += 1
        if self.batches - 1 == self.gone_at:
            raise ReflectionError("the server is gone", [Reflection("", 7, 0, 0.5, "gone")] * len(prompts))
        failed = [random.Random(seed + i).random() < 0.3 for i in range(len(prompts))]
        self.failures += sum(failed)
        return [Reflection("", 1, 0, 0.25, "no luck") if f else a for f, a in zip(failed, answers, strict=True)]


@pytest.mark.parametrize("gone_at", [0, 3])
def test_when_nobody_reflects_any_more_the_phase_ends_with_what_it_has(tmp_path, caplog, gone_at):
    land, spent = Moody(gone_at), Ledger()
    result = run(land, tmp_path, spent=spent)
    assert result.ended_early == "the server is gone"
    assert "before epoch 1 ends early" in caplog.text and "the server is gone" in caplog.text
    whole = run(Moody(), tmp_path / "whole")
    assert result.candidates == whole.candidates[: len(result.candidates)]
    assert len(result.candidates) >= 1 and result.metric_calls < whole.metric_calls
    assert land.calls[-1][0] == "reflection", "no rollout is wasted after it"
    asked = [size for kind, size, _ in land.calls if kind == "reflection"]
    failed = land.failures + asked[-1]
    assert result.rejections["failed"] == result.events["reflection_failed"] == failed
    assert result.reflections == sum(asked) - failed
    # What failed has cost something, too.
    assert result.spent is spent
    assert spent.reflection_cost == 0.5 * asked[-1] + 0.25 * land.failures
    assert spent.prompt_tokens["reflection"] == 7 * asked[-1] + land.failures + 100 * result.reflections


def test_a_phase_that_ended_early_goes_on_where_reflection_failed(tmp_path):
    straight = Moody()
    whole = run(straight, tmp_path / "whole")
    gone, again = Moody(gone_at=2), Moody()
    assert run(gone, tmp_path / "b").ended_early
    _, lost, _ = gone.calls[-1]
    resumed = run(again, tmp_path / "b")
    assert resumed.candidates == whole.candidates and resumed.metric_calls == whole.metric_calls
    # What the batch cost in vain stays counted, beside what it cost in the end.
    assert resumed.spent.reflection_cost == whole.spent.reflection_cost + 0.5 * lost
    assert resumed.spent.prompt_tokens["reflection"] == whole.spent.prompt_tokens["reflection"] + 7 * lost
    assert resumed.events["reflection_failed"] == whole.events["reflection_failed"] + lost
    assert resumed.ended_early is None
    # The batch that nobody answered is the first that is asked for.
    assert again.calls == straight.calls[-len(again.calls) :]
    assert again.calls[0][0] == "reflection" and again.batches == straight.batches - 2


@pytest.mark.parametrize("when", [4, 9, 17])
def test_failed_reflections_are_the_same_in_an_interrupted_phase(tmp_path, when):
    whole = run(Moody(), tmp_path / "whole")
    assert whole.events["reflection_failed"] > 1
    with pytest.raises(RuntimeError, match="killed"):
        run(Moody(fail_at=when), tmp_path / "b")
    assert run(Moody(), tmp_path / "b") == whole


def test_unknown_usage_is_counted(tmp_path):
    def reflect(prompts, *, seed):
        return [Reflection("```\nUse A.\n```", None, None) for _ in prompts]

    result = evolve(QUESTIONS, Land().rollout, reflect, CONFIG, seed=0, epoch=1, run_dir=tmp_path)
    assert result.events == {"reflection_usage_unknown": result.reflections}
    assert result.spent.prompt_tokens["reflection"] == 0


def test_progress_tells_where_it_stands(tmp_path):
    seen = []
    run(Land(), tmp_path, on_progress=seen.append)
    assert [p.stage for p in seen[:2]] == ["seed", "dev"]
    assert seen[-1].best_template == "Use A. Use B." and seen[-1].max_metric_calls == 200
    assert seen[-1].stage == "done" and seen[-1].metric_calls >= 200
