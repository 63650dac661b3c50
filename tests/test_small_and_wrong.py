"""Windows of accumulation, figures over all processes, feedback only where it is read, who may reflect under FSDP1."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from p2o.checkpointing import newest_checkpoint
from p2o.engines.mismatch import mismatch_metrics
from p2o.identity import policy_digest, weights_digest
from p2o.pico import world
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.types import EvolutionConfig, Question, Reflection, Rollout
from p2o.reflection.own_model import _refuse_gathering
from test_continuing import length, make


def test_a_failure_after_a_partial_window_is_rescued_at_the_step_before_it(tmp_path):
    """An epoch of five passes in windows of two ends with a window of one: windows of the next begin at its start."""

    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 4:
            raise RuntimeError("the verifier is gone")
        return length(completions)

    data = world.train_dataset(hard=12, easy=0).select(range(10))
    changes = {
        "data": data,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "max_steps": 6,
        "save_steps": 50,
        "prompt_phase": False,
    }
    with pytest.raises(RuntimeError, match="verifier is gone") as failed:
        make(tmp_path, reward=reward, **changes).train()
    # Steps 1 to 3 are passes 1-2, 3-4 and 5; step 4 is passes 6 and 7, after which the next batch fails.
    assert newest_checkpoint(tmp_path).name == "checkpoint-4"
    assert "Everything up to step 4 is saved" in failed.value.__notes__[0]


rows = st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0), st.booleans()), min_size=1, max_size=6)


@given(st.lists(rows, min_size=1, max_size=3))
def test_mismatch_is_over_the_tokens_of_all_processes(processes):
    """What each of several processes measures is what one would that had all their tokens."""

    def tensors(triples):
        trainer, sampler, mask = (torch.tensor([column]) for column in zip(*triples, strict=True))
        return trainer.double(), sampler.double(), (trainer - sampler).double().exp(), mask

    gathered = []
    for triples in processes:
        mismatch_metrics(*tensors(triples), lambda row: gathered.append(row) or row)
    both = [torch.cat(gathered[start::2]) for start in (0, 1)]
    asked = iter(both)
    found = mismatch_metrics(*tensors(processes[0]), lambda row: next(asked))
    expected = mismatch_metrics(*tensors([triple for triples in processes for triple in triples]))
    assert {n: pytest.approx(v) for n, v in expected.items()} == found


CONFIG = EvolutionConfig(budget=30, parents_per_iteration=1)


def test_feedback_is_made_only_for_rollouts_that_are_reflected_on(tmp_path):
    made = []

    def rollout(requests, *, seed):
        def feedback(question):
            return lambda: made.append(question.id) or "wrong"

        return [Rollout("no", 0.0, False, feedback(question)) for question, _ in requests]

    questions = [Question(i, f"What is {i}?", str(i)) for i in range(8)]
    result = evolve(
        questions,
        rollout,
        lambda prompts, seed: [Reflection("x") for _ in prompts],
        CONFIG,
        seed=0,
        epoch=1,
        run_dir=tmp_path,
    )
    assert made and not set(made) & set(result.dev_ids)


def test_a_journal_of_other_weights_is_not_used(tmp_path, caplog):
    def evolved(policy, solved):
        asked = []

        def rollout(requests, *, seed):
            asked.extend(requests)
            return [Rollout("a", float(solved), solved, "wrong") for _ in requests]

        questions = [Question(i, f"What is {i}?", str(i)) for i in range(8)]
        reflect = lambda prompts, seed: [Reflection("x") for _ in prompts]  # noqa: E731
        found = evolve(questions, rollout, reflect, CONFIG, seed=0, epoch=1, policy=policy, run_dir=tmp_path)
        return len(asked), found.candidates[0].dev_rewards

    first = evolved("one", False)
    assert evolved("one", False) == (0, first[1])
    count, rewards = evolved("another", True)
    assert count and set(rewards.values()) == {1.0} and "another prompt phase" in caplog.text


@given(
    st.integers(0, 29), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int8]), st.integers(1, 127)
)
def test_any_changed_weight_changes_the_digest(place, dtype, value):
    model = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.zeros(n, dtype=dtype), requires_grad=False) for n in (10, 20)]
    )
    before = weights_digest(model)
    assert before == weights_digest(model) == policy_digest(model, Accelerator(cpu=True))
    model[place // 10 and 1].data[place % 10] = value
    assert weights_digest(model) != before


def test_two_swapped_weights_change_the_digest():
    one, other = (torch.nn.Linear(3, 3) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other.weight[:2] = other.weight[:2].flip(0)
    assert weights_digest(one) != weights_digest(other)
    assert weights_digest(one, frozen_only=True) == weights_digest(other, frozen_only=True)


@pytest.mark.parametrize(("version", "needs", "refused"), [(1, True, True), (1, False, False), (2, True, False)])
def test_the_model_in_training_does_not_reflect_under_fsdp1(version, needs, refused):
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version)))
    if refused:
        with pytest.raises(ValueError, match=r"Under FSDP1 .* fsdp_version 2, use_vllm=True, an endpoint"):
            _refuse_gathering(accelerator, needs=needs)
    else:
        _refuse_gathering(accelerator, needs=needs)
    _refuse_gathering(SimpleNamespace(state=SimpleNamespace()), needs=True)
