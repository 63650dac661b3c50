"""The prompt phase on the real gepa: batches, proposals, what a phase records."""

import re

import pytest

from land import CONFIG, QUESTIONS, Land, always, run
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.proposals import reflection_prompt
from p2o.prompt_phase.types import EvolutionConfig, Reflection, Rollout

PLAIN = "Improve: <curr_param>\n<side_info>"
FENCED = f"{PLAIN}\nWrite it within ``` blocks."


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


def test_a_request_without_a_fence_takes_answers_without_one(tmp_path):
    """Of 48 answers of SmolLM2's to a request for a fence, 40 had none."""
    asked = {wording: EvolutionConfig(budget=60, reflection_prompt_template=wording) for wording in (PLAIN, FENCED)}
    taken, refused = (always("Use A.", config, tmp_path / str(i)) for i, config in enumerate(asked.values()))
    assert "Use A." in [candidate.text for candidate in taken.candidates]
    assert len(refused.candidates) == 1 and set(refused.rejections) == {"no_fence"}


def test_an_instruction_with_a_placeholder_is_shown_as_it_is():
    prompt = reflection_prompt(
        "Fill <side_info> in.", [{"Question": "2 + 3?"}], "NOW <curr_param> DATA <side_info> END"
    )
    assert prompt.startswith("NOW Fill <side_info> in. DATA") and prompt.count("2 + 3?") == 1


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


def test_progress_tells_where_it_stands(tmp_path):
    seen = []
    run(Land(), tmp_path, on_progress=seen.append)
    assert [p.stage for p in seen[:2]] == ["seed", "dev"]
    assert seen[-1].best_template == "Use A. Use B." and seen[-1].max_metric_calls == 200
    assert seen[-1].stage == "done" and seen[-1].metric_calls >= 200
