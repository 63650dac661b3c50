"""Reflection prompts within a limit, and batches within memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2o.engines.memory import Halving
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.proposals import reflection_prompt
from p2o.prompt_phase.traces import (
    ANSWER,
    FEEDBACK,
    QUESTION,
    PromptLimit,
    estimated_tokens,
    fit,
    limit_of,
    prompt_limit,
    shorten,
)
from p2o.prompt_phase.types import EvolutionConfig, Question, Reflection, ReflectionError, Rollout
from trainers import make


def render(records):
    return reflection_prompt("Be exact.", records, None)


def record(number, size):
    answer = f"begin {number} " + "word " * size + f" end {number}"
    return {QUESTION: f"question {number}?", ANSWER: answer, FEEDBACK: f"Wrong. It is {number}."}


def words(text):
    return len(text.split())


@given(st.lists(st.integers(0, 900), min_size=1, max_size=4), st.integers(150, 1200))
@settings(max_examples=60, deadline=None)
def test_a_prompt_never_exceeds_its_limit_and_keeps_questions_and_feedback_whole(sizes, tokens):
    records = [record(number, size) for number, size in enumerate(sizes)]
    whole, limit = render(records), PromptLimit(tokens, words)
    fitted = fit(render, records, limit)
    if words(whole) <= tokens:
        assert (fitted.text, fitted.shortened, fitted.dropped) == (whole, 0, 0)
        return
    if fitted.text is None:
        assert tokens < words(render([record(0, 0)])) + 20
        return
    assert words(fitted.text) <= tokens and fitted.shortened + fitted.dropped > 0
    kept = records[: len(records) - fitted.dropped]
    assert all(r[QUESTION] in fitted.text and r[FEEDBACK] in fitted.text for r in kept)
    cut = [r for r in kept if r[ANSWER] not in fitted.text]
    assert len(cut) == fitted.shortened == fitted.text.count("characters left out …]")
    assert all(len(r[ANSWER]) >= max((len(k[ANSWER]) for k in kept if k not in cut), default=0) for r in cut)


def test_a_long_answer_keeps_its_beginning_and_its_end():
    fitted = fit(render, [record(1, 4000), record(2, 10)], PromptLimit(800, words))
    assert fitted.shortened == 1 and fitted.dropped == 0
    assert "begin 1" in fitted.text and "end 1" in fitted.text and record(2, 10)[ANSWER] in fitted.text
    assert words(fitted.text) > 600, "the room is used"
    halves = shorten("x" * 500 + "y" * 500, 0.2)
    assert len(halves) <= 200 and 0 <= halves.count("x") - halves.count("y") <= 1


def test_where_nothing_fits_there_is_no_prompt():
    assert fit(render, [record(1, 10)], PromptLimit(20, words)).text is None
    assert fit(render, [record(1, 10)], None).text == render([record(1, 10)])


def test_limits_come_from_positions_and_from_the_user():
    assert prompt_limit(40_960, 8192, None).tokens == 32_768
    assert prompt_limit(40_960, 8192, 12_000).tokens == 12_000
    assert prompt_limit(8192, 6144, 12_000).tokens == 2048
    assert prompt_limit(None, 6144, None) is None and prompt_limit(None, 6144, 100).tokens == 100
    with pytest.raises(ValueError, match="reflection_max_tokens=1024 leaves no room"):
        prompt_limit(1024, 1024, None)
    assert limit_of(lambda prompts, *, seed: [], 300).count is estimated_tokens
    assert estimated_tokens("Add the ones first.") == 7 and estimated_tokens("先算个位") == 4


def test_evolution_asks_within_the_limit_and_says_what_it_left_out(tmp_path):
    questions = [Question(i, f"question {i}", str(1000 + i)) for i in range(12)]
    asked = []

    def rollout(requests, *, seed):
        return [Rollout("start " + "step " * 3000 + "stop", 0.0, False, "Wrong.") for _ in requests]

    def reflect(prompts, *, seed):
        asked.extend(prompts)
        return [Reflection("```\nAdd.\n```", 1, 1) for _ in prompts]

    def run(limit, name):
        config = EvolutionConfig(budget=40, parents_per_iteration=2)
        return evolve(questions, rollout, reflect, config, seed=0, epoch=1, run_dir=tmp_path / name, prompt_limit=limit)

    found = run(PromptLimit(2000, words), "some")
    assert asked and max(map(words, asked)) <= 2000
    assert all("start" in prompt and "stop" in prompt and "Wrong." in prompt for prompt in asked)
    assert found.events["reflection_answers_cut"] == 3 * len(asked)
    assert run(PromptLimit(2000, words), "some").events == found.events, "a resumed phase counts the same"
    asked.clear()
    nothing = run(PromptLimit(20, words), "none")
    assert not asked and nothing.reflections == 0 and nothing.events["reflection_prompt_too_long"] > 0


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_batch_is_halved_until_it_fits_and_later_ones_are_no_larger():
    tried = []

    def run(batch, seed):
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return [(item, float(torch.rand(()))) for item in batch]

    halving = Halving()
    results = halving.run(run, list(range(10)), 5)
    assert [item for item, _ in results] == list(range(10))
    assert tried == [10, 5, 2, 2, 1, 2, 2, 1] and halving.times == 2
    tried.clear()
    halving.run(run, list(range(4)), 6)
    assert tried == [2, 2]
    # Random streams are the parts' own, whatever had been drawn when memory ran out.
    torch.rand(7)
    assert Halving().run(run, list(range(10)), 5) == results


def test_what_halving_does_not_mend_is_raised():
    def run(batch, seed):
        raise error

    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        Halving().run(run, [1, 2], 0)
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        Halving().run(run, [1, 2], 0)


@pytest.fixture
def scarce(tmp_path, monkeypatch):
    """A trainer whose model generates at most two rows at once, and the sizes that were tried."""
    trainer, tried = make(tmp_path, reflection_model="policy", reflection_max_tokens=8, max_completion_length=8), []
    generate = trainer.model.generate

    def scarce_generate(*args, **kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        tried.append(len(ids))
        if len(ids) > trainer.rows_in_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 21.00 GiB.")
        return generate(*args, **kwargs)

    trainer.rows_in_memory = 2
    monkeypatch.setattr(trainer.model, "generate", scarce_generate)
    return trainer, tried


def test_reflections_and_rollouts_go_on_with_smaller_batches(scarce):
    trainer, tried = scarce
    reflections = trainer.reflect([f"Improve {n}." for n in range(5)], seed=0)
    assert len(reflections) == 5 and not any(reflection.error for reflection in reflections)
    assert tried == [5, 2, 2, 1] and trainer.reflect.events == {"batch_halved_for_memory": 1}
    tried.clear()
    rollouts = trainer.policy_rollouts([(Question(n, "", ""), "") for n in range(5)], 1)
    assert len(rollouts) == 5 and tried == [5, 2, 2, 1]
    assert trainer.p2o.events["batch_halved_for_memory"] == 1


def test_without_memory_for_one_reflection_the_phase_ends_and_the_run_goes_on(scarce):
    trainer, _ = scarce
    trainer.rows_in_memory = 0
    with pytest.raises(ReflectionError, match="reflection_max_prompt_tokens"):
        trainer.reflect(["Improve this.", "And this."], seed=0)


def test_the_trainers_limit_counts_as_its_tokenizer_does(tmp_path):
    trainer = make(tmp_path, reflection_model="policy", reflection_max_tokens=48)
    limit = trainer.reflect.prompt_limit
    assert limit.tokens == trainer.model.config.max_position_embeddings - 48
    (reflection,) = trainer.reflect(["Improve this."], seed=0)
    assert limit.count("Improve this.") == reflection.prompt_tokens
    assert make(tmp_path, reflection_max_prompt_tokens=77).reflect.prompt_limit.tokens == 77
    with pytest.raises(ValueError, match="reflection_max_tokens=2048 leaves no room"):
        make(tmp_path, reflection_max_tokens=2048)
    assert make(tmp_path, reflection_max_tokens=2048, prompt_phase=False).reflect.prompt_limit is None
