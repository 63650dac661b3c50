"""Numbers of processes, rows and rollouts that go together: as TRL has it, and said before a model is loaded."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments
from trl import GRPOConfig

from p2o import P2OConfig, P2OTrainer
from p2o.batch_sizes import BatchSizes
from p2o.cli import main
from p2o.pico import model_path, world

CPU = {"output_dir": "run", "use_cpu": True, "bf16": False, "report_to": "none"}
SMALL_NUMBERS = st.integers(1, 12)


@pytest.fixture
def on_processes(monkeypatch):
    """Lets configurations take the machine for one of so many processes, as their own arithmetic sees it."""

    def pretend(count):
        monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: count))

    return pretend


SIZES = st.fixed_dictionaries(
    {
        "num_generations": st.integers(1, 12),
        "per_device_train_batch_size": SMALL_NUMBERS,
        "gradient_accumulation_steps": st.integers(1, 4),
        "per_device_eval_batch_size": SMALL_NUMBERS,
        "num_generations_eval": st.none() | st.integers(1, 6),
    },
    optional={"steps_per_generation": st.integers(1, 6), "generation_batch_size": st.integers(1, 48)},
)


def accepted(config, processes, sizes, evaluates):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingArguments, "world_size", property(lambda self: processes))
        try:
            return config(**CPU, **sizes, eval_strategy="epoch" if evaluates else "no")
        except ValueError as error:
            return str(error)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([1, 2, 3, 4, 8]), SIZES, st.booleans())
def test_what_goes_together_is_what_trl_takes(processes, sizes, evaluates):
    ours = BatchSizes(processes, evaluates=evaluates, **sizes)
    theirs = accepted(GRPOConfig, processes, sizes, evaluates)
    assert (ours.problem() is None) == isinstance(theirs, GRPOConfig), (ours.problem(), theirs)
    if isinstance(theirs, GRPOConfig):
        assert (ours.batch, ours.batch % ours.step) == (theirs.generation_batch_size, 0)
        return
    assert accepted(P2OConfig, processes, sizes, evaluates) == ours.problem(), "one message has it all"
    for option in {option for _, options in ours.faults() for option in options}:
        for value in ours.fitting(option):
            changed = {**sizes, "processes": processes, option: value}
            assert isinstance(accepted(GRPOConfig, changed.pop("processes"), changed, evaluates), GRPOConfig)


def test_the_message_names_what_would_fit():
    with pytest.raises(ValueError, match="num_generations=6 does not divide 8 rollouts") as caught:
        P2OConfig(**CPU, num_generations=6)
    message = str(caught.value)
    assert "per_device_train_batch_size=8 × 1 process × gradient_accumulation_steps=1" in message
    for fits in ("num_generations=2, 4 or 8", "per_device_train_batch_size=6", "gradient_accumulation_steps=3",
                 "processes=3, 6, 9 or 12"):  # fmt: skip
        assert fits in message


def test_a_shared_engine_needs_its_processes(on_processes):
    """TRL looks after the model is loaded."""
    on_processes(2)
    engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_tensor_parallel_size": 4}
    with pytest.raises(ValueError, match=r"vllm_tensor_parallel_size=4 does not divide 2 processes.*processes=4, 8"):
        P2OConfig(**CPU, **engine)
    assert P2OConfig(**CPU, **{**engine, "vllm_mode": "server"}).vllm_tensor_parallel_size == 4


def test_another_error_is_not_covered_by_sizes():
    with pytest.raises(ValueError, match="sorting is not a valid"):
        P2OConfig(**CPU, num_generations=6, eval_strategy="epoch", loss_type="grpo", save_strategy="sorting")


def test_an_evaluation_that_cuts_groups_apart_is_refused_before_it_generates(tmp_path):
    trainer = P2OTrainer(
        model=model_path(),
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=P2OConfig(**{**CPU, "output_dir": str(tmp_path)}, num_generations_eval=3, max_completion_length=4),
        train_dataset=world.train_dataset(hard=4, easy=4),
        eval_dataset=world.eval_dataset(per_split=4)["hard"],
    )
    with pytest.raises(ValueError, match="num_generations_eval=3 does not divide 8 rollouts"):
        trainer.evaluate()


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Exit code and words of `p2o train --check-only` on sixteen questions of the user's."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n} + 1?", "solution": str(n + 1)} for n in range(16)]
    for name in ("own", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words):
        code = main(["train", "--check-only", "--dataset", "own.jsonl", *words])
        return code, "".join(capsys.readouterr())

    return run


def test_a_batch_in_words():
    sizes = BatchSizes(1, num_generations=4, per_device_train_batch_size=16, steps_per_generation=2)
    assert sizes.summary() == (
        "A batch is 32 rollouts (per_device_train_batch_size=16 × 1 process × steps_per_generation=2) on 1 process: "
        "8 questions, 16 on 2, 32 on 4, 64 on 8."
    )


def test_checking_says_where_a_batch_fits(tmp_path, said):
    lines = ["model_name_or_path: pico", "num_generations: 4", "generation_batch_size: 32"]
    (tmp_path / "my.yaml").write_text("\n".join([*lines, "per_device_train_batch_size: 8", ""]))
    code, output = said("--config", "my.yaml")
    assert code == 0, output
    assert "generation_batch_size=32 on 1 process: 8 questions, 8 on 2, 8 on 4; it does not fit on 8." in output


def test_the_evaluation_before_training_is_looked_at_first(said, monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("p2o.cli.preflight.AutoModelForCausalLM.from_pretrained", loaded)
    words = ("--dataset_test_split", "train", "--num_generations_eval", "6", "--per_device_eval_batch_size", "8")
    code, output = said(*words)
    assert code == 2 and "num_generations_eval=6 does not divide 8 rollouts" in output, output
