"""Runs that go on from a checkpoint, and random streams that nothing else touches."""

import random

import pytest
import torch

from p2o import P2OTrainer
from p2o.prompt_phase import phase
from p2o.state import CheckpointError, P2OState
from trainers import assert_same, make, weights


def test_resuming_another_configuration_is_refused(tmp_path):
    make(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(CheckpointError, match=r"temperature was 1\.0, is 0\.5"):
        make(tmp_path, temperature=0.5).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        make(tmp_path / "elsewhere").train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1" / "p2o_files.json").unlink()  # it would say first that the state is another
    state = next(tmp_path.glob("checkpoint-1/p2o_state.json"))
    state.write_text(state.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(CheckpointError, match="version 0"):
        make(tmp_path).train(resume_from_checkpoint=True)
    state.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        make(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("changes", [{}, {"steps_per_generation": 4, "num_iterations": 2}])
def test_resume_is_exact_at_every_step(tmp_path, changes):
    """Also within a generation batch, whose remaining rollouts belong to the checkpoint."""
    settings = {"max_steps": 5, "gradient_accumulation_steps": 1, **changes}
    straight = make(tmp_path / "a", **settings)
    straight.train()
    make(tmp_path / "b", save_strategy="steps", save_steps=1, **settings).train()
    for step in (1, 2, 3, 4):
        resumed = make(tmp_path / "b", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{step}"))
        assert_same(weights(straight), weights(resumed))


def test_order_of_questions_does_not_depend_on_having_lived_through_earlier_epochs(tmp_path):
    trainer = make(tmp_path)
    lived = make(tmp_path)._get_train_sampler()
    epochs = []
    for epoch in range(3):
        trainer.p2o.epoch = epoch
        epochs.append(list(trainer._get_train_sampler()))
    reference = super(P2OTrainer, trainer)._get_train_sampler()
    assert epochs == [list(reference) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert list(lived) == epochs[0]


def test_checkpoints_appear_whole(tmp_path, monkeypatch):
    """Whatever fails while a checkpoint is written, what is called a checkpoint is complete."""
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
    save, calls = P2OState.save, []

    def fails_second(state, *args):
        calls.append(state)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(state, *args)

    monkeypatch.setattr(P2OState, "save", fails_second)
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    make(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_the_prompt_phase_leaves_the_policy_phases_generators_alone(tmp_path):
    trainer = make(tmp_path)
    states = random.getstate(), torch.random.get_rng_state()
    asked = [phase.question(trainer.train_dataset, row, "solution") for row in (0, 1)]
    requests = list(zip(asked, ("Think.", ""), strict=True))
    first = trainer.policy_rollouts(requests, 1)
    trainer.reflect(["Improve this."], seed=1)
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    assert trainer.policy_rollouts(requests, 1) == first


def test_a_completion_of_the_prompt_phase_is_decoded_once(tmp_path, monkeypatch):
    """At a recipe's thousands of tokens it is most of what a prompt phase does by itself."""
    trainer = make(tmp_path)
    decode, decoded = type(trainer.processing_class).batch_decode, []

    def counted(tokenizer, sequences, **options):
        decoded.extend(sequences)
        return decode(tokenizer, sequences, **options)

    monkeypatch.setattr(type(trainer.processing_class), "batch_decode", counted)
    requests = [(phase.question(trainer.train_dataset, row, "solution"), "Think.") for row in (0, 1, 2)]
    rollouts = trainer.policy_rollouts(requests, 1)
    assert len(rollouts) == len(decoded) == 3 and all(rollout.completion for rollout in rollouts)
