"""Real checkpoints: continued exactly, continued with a word, or refused with one."""

import json
import logging
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.checkpointing import check_parts, newest_checkpoint
from p2o.files import sampled_digest
from p2o.pico import model_path, world
from p2o.state import CheckpointError

K = 2


def length(completions, **kwargs):
    return [len(set(c[-1]["content"])) + 0.01 * len(c[-1]["content"]) for c in completions]


def make(output, *, model=None, data=None, reward=length, **changes):
    values = {
        "output_dir": str(output),
        "num_generations": K,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "reflection_model": "policy",
    }
    return P2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32) if model is None else model,
        reward_funcs=reward,
        args=P2OConfig(**{**values, **changes}),
        train_dataset=world.train_dataset(hard=8, easy=0) if data is None else data,
        processing_class=AutoTokenizer.from_pretrained(model_path()),
    )


def weights(trainer):
    return [value.detach().clone() for value in trainer.model.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three steps with all its checkpoints, and its final weights. Not to be written to."""
    path = tmp_path_factory.mktemp("run")
    trainer = make(path)
    trainer.train()
    return path, weights(trainer)


def resume(run, output, step=1, **changes):
    trainer = make(output, **changes)
    trainer.train(resume_from_checkpoint=str(run[0] / f"checkpoint-{step}"))
    return trainer


def notices(caplog):
    return [r.getMessage() for r in caplog.records if "no longer exactly" in r.getMessage()]


def test_the_same_run_goes_on_in_silence_to_the_same_weights(run, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    assert same(run[1], weights(resume(run, tmp_path)))
    assert not notices(caplog)


def with_other_answers():
    data = world.train_dataset(hard=8, easy=0)
    return Dataset.from_list([{**row, "solution": "0"} for row in data.to_list()])


def with_other_questions():
    return world.train_dataset(seed=1, hard=8, easy=0)


def other_reward(completions, **kwargs):
    return [float(len(c[-1]["content"])) for c in completions]


def another_model():
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model.config.rope_theta = 5.0
    return model


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"temperature": 0.5, "top_p": 0.9}, ["temperature was 1.0, is 0.5", "top_p was 1.0, is 0.9"]),
        ({"beta": 0.1}, ["beta was 0.0, is 0.1"]),
        ({"reward": other_reward}, ["reward_functions was ['length'], is ['other_reward']"]),
        ({"reward_weights": [2.0]}, ["reward_weights_in_force was [1.0], is [2.0]"]),
        ({"data": with_other_answers}, ["gold_answers was "]),
        ({"data": with_other_questions}, ["prompts was "]),
        ({"model": another_model}, ["architecture was "]),
        ({"max_prompt_length": 100}, ["max_prompt_length_in_force was "]),
        ({"per_device_train_batch_size": 8}, ["generation_batch_size was 4, is 8", "rollouts_per_update was 4, is 8"]),
    ],
)
def test_another_run_is_refused_with_every_difference(run, tmp_path, changes, names):
    made = {
        name: value() if value in (with_other_answers, with_other_questions, another_model) else value
        for name, value in changes.items()
    }
    with pytest.raises(CheckpointError, match="another configuration") as refused:
        resume(run, tmp_path, **made)
    assert all(name in str(refused.value) for name in names)
    assert "To continue it, " in str(refused.value)


def test_a_changed_learning_rate_is_used_and_told(run, tmp_path, caplog):
    """transformers loads the old rate with the scheduler, whatever the option says."""
    settings = {"learning_rate": 5e-4, "lr_scheduler_type": "constant", "save_steps": 2, "max_steps": 4}
    trainer = resume(run, tmp_path, logging_steps=1, **settings)
    rates = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    assert rates[-1] == pytest.approx(5e-4) and not same(run[1], weights(trainer))
    (notice,) = notices(caplog)
    assert "learning_rate was 0.001, is 0.0005" in notice and "save_steps was 1, is 2" in notice
    # What is continued from there has the new rate and no second factor.
    caplog.clear()
    again = make(tmp_path, logging_steps=1, **{**settings, "max_steps": 4})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(5e-4) and not notices(caplog)
    assert same(weights(trainer), weights(again))


def test_a_batch_divided_otherwise_goes_on_where_it_was(run, tmp_path, caplog):
    """Twice the passes of half the rollouts: the same questions, the same steps, the same rollouts in all."""
    trainer = resume(run, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    straight = make(tmp_path / "straight", save_strategy="no")
    straight.train()
    assert trainer.state.global_step == 3 and trainer.p2o.ledger.rollouts == straight.p2o.ledger.rollouts
    assert trainer.p2o.epoch == straight.p2o.epoch and trainer.p2o.outcomes.keys() == straight.p2o.outcomes.keys()
    (notice,) = notices(caplog)
    assert "per_device_train_batch_size was 4, is 2" in notice and "batches are divided otherwise" in notice


def test_within_a_generation_batch_the_division_is_refused(tmp_path):
    within = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "generation_batch_size": None}
    make(tmp_path, **{**within, "max_steps": 1}).train()
    changed = {**within, "steps_per_generation": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(CheckpointError, match=r"within a generation batch.*per_device_train_batch_size was 4, is 2"):
        make(tmp_path, **changed).train(resume_from_checkpoint=True)


# -- what a checkpoint consists of -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("optimizer.pt", "the optimizer's state"),
        ("scheduler.pt", "the learning-rate scheduler's state"),
        ("rng_state.pth", "the random generators' states"),
        ("trainer_state.json", "the trainer's state"),
        ("model.safetensors", "model.safetensors is missing"),
        ("p2o_state.json", "no p2o_state.json|p2o_state.json is missing"),
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "of an earlier release"])
def test_a_checkpoint_without_a_part_is_not_continued(run, tmp_path, missing, said, listed):
    shutil.copytree(run[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / missing).unlink()
    if not listed:
        said = said if missing != "model.safetensors" else "valid checkpoint"  # transformers' own refusal
        (tmp_path / "checkpoint-2" / "p2o_files.json").unlink()
    with pytest.raises(ValueError, match=said):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def files(path):
    return sorted(file.name for file in path.iterdir() if file.suffix != ".md")


def test_every_file_that_was_cut_is_named(run, tmp_path):
    whole = run[0] / "checkpoint-2"
    check_parts(whole)
    for name in files(whole):
        if name.endswith((".pt", ".pth", ".safetensors", ".bin")):
            copy = shutil.copytree(whole, tmp_path / name / "checkpoint-2")
            content = (copy / name).read_bytes()
            (copy / name).write_bytes(content[: len(content) // 2])
            with pytest.raises(CheckpointError, match=rf"{name} has .* bytes"):
                check_parts(copy)


def test_every_file_of_another_step_is_named(run, tmp_path):
    """Most of them have the same length at every step."""
    swapped = []
    for name in files(run[0] / "checkpoint-2"):
        other = (run[0] / "checkpoint-1" / name).read_bytes()
        if other != (run[0] / "checkpoint-2" / name).read_bytes() and name != "p2o_files.json":
            copy = shutil.copytree(run[0] / "checkpoint-2", tmp_path / name / "checkpoint-2")
            (copy / name).write_bytes(other)
            with pytest.raises(CheckpointError, match=name):
                check_parts(copy)
            swapped.append(name)
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "p2o_state.json", "trainer_state.json"} <= set(swapped)


def test_a_long_file_is_told_from_others_by_samples(tmp_path):
    path, content = tmp_path / "a", bytearray(range(256)) * 4
    path.write_bytes(content)
    seen = sampled_digest(path, blocks=4, size=16)
    for place in (0, 1023, 343, 680):  # in the blocks: the first, the last, and where two between begin
        path.write_bytes(content[:place] + b"\x99\x98"[place % 2 : place % 2 + 1] + content[place + 1 :])
        assert sampled_digest(path, blocks=4, size=16) != seen
    path.write_bytes(content[:-1])
    assert sampled_digest(path, blocks=4, size=16) != seen
    path.write_bytes(content)
    assert sampled_digest(path, blocks=4, size=16) == seen


BROKEN = ["", "null", "3", '{"version": 1}', '{"version": 1, "fingerprint": 3}', "\x00", "[1]"]


@pytest.mark.parametrize("name", ["p2o_state.json", "p2o_files.json"])
def test_a_damaged_list_or_state_is_said_to_be_damaged(run, tmp_path, name):
    shutil.copytree(run[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "p2o_files.json").unlink()  # else it says so first
    trainer = make(tmp_path)
    for content in BROKEN:
        (tmp_path / "checkpoint-2" / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"{name}.* damaged|version|fingerprint is missing"):
            trainer.train(resume_from_checkpoint=True)


def test_checkpoints_without_an_optimizer_are_written_but_not_resumed(tmp_path):
    make(tmp_path, save_only_model=True, max_steps=1).train()
    with pytest.raises(CheckpointError, match=r"the optimizer's state, .*save_only_model=True"):
        make(tmp_path).train(resume_from_checkpoint=True)


def test_files_in_folders_of_a_checkpoint_are_flushed_and_listed(run, tmp_path, monkeypatch):
    """Sharded models have them. What is renamed before it is on disk may be empty after a crash of the machine."""
    import os

    synced, fsync = set(), os.fsync

    class Sharded(P2OTrainer):
        def _save_optimizer_and_scheduler(self, output_dir):
            super()._save_optimizer_and_scheduler(output_dir)
            deep = os.path.join(output_dir, "pytorch_model_fsdp_0", "deep")
            os.makedirs(deep)
            with open(os.path.join(deep, "__0_0.distcp"), "w") as file:
                file.write("weights")

    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    trainer = make(tmp_path, max_steps=1)
    trainer.__class__ = Sharded
    trainer.train()
    checkpoint = newest_checkpoint(tmp_path)
    written = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*")}
    flushed = {path.partition("checkpoint-1/")[2] for path in synced}
    assert written <= flushed and "pytorch_model_fsdp_0/deep/__0_0.distcp" in flushed
    (checkpoint / "pytorch_model_fsdp_0" / "deep" / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"deep/__0_0\.distcp is missing"):
        check_parts(checkpoint)


def test_data_and_model_are_hashed_once(tmp_path, monkeypatch):
    from p2o import identity

    calls = []
    digest = identity.rows_digest
    monkeypatch.setattr(identity, "rows_digest", lambda *given: calls.append(given) or digest(*given))
    trainer = make(tmp_path, max_steps=3)
    trainer.train()
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3 and len(calls) == 3  # questions, answers, the rest
    state = json.loads((tmp_path / "checkpoint-3" / "p2o_state.json").read_text())
    assert state["fingerprint"] == json.loads(json.dumps(trainer.fingerprint()))
