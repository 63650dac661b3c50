"""Bad questions, options and reward functions: refused before training, and nothing is lost."""

import inspect
import re

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path
from trainers import K, assert_same, length_reward, load, make, options, questions, weights


def test_the_signature_is_grpo_trainers_and_ours():
    ours, theirs = (inspect.signature(t.__init__).parameters for t in (P2OTrainer, GRPOTrainer))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default and ours[name].kind == parameter.kind
    assert list(ours)[len(theirs) :] == ["feedback_func", "reflect"]
    assert all(parameter.annotation is not parameter.empty for name, parameter in ours.items() if name != "self")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "^`train_dataset` is required"),
        (Dataset.from_dict({"question": ["a"]}), "no `prompt` column; it has question"),
        (Dataset.from_dict({"prompt": []}), "is empty"),
        (Dataset.from_dict({"prompt": ["a", "  "]}), "row 1, field `prompt`: empty"),
        (Dataset.from_dict({"prompt": [[{"role": "system", "content": "x"}]] * 2}), "row 0, field `prompt`: .*no user"),
        (Dataset.from_dict({"prompt": ["a"]}), "1 questions, fewer than the 2 of one generation batch"),
        (Dataset.from_dict({"prompt": ["a", "b"], "image": ["x", "y"]}), "images"),
        (Dataset.from_dict({"prompt": ["a", "b " * 2500]}), "row 1: .* tokens"),
    ],
)
def test_bad_questions_are_refused_before_training(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        P2OTrainer(
            model=load(),
            reward_funcs=length_reward,
            args=P2OConfig(**options(tmp_path)),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(model_path()),
        )


@pytest.mark.parametrize("split", [False, True])
def test_a_streamed_dataset_is_refused(tmp_path, split):
    """With why, and what to do; not with what TRL would ask of it next."""
    data = questions().to_iterable_dataset()
    changes = {"accelerator_config": {"dispatch_batches": True}} if split else {}
    with pytest.raises(ValueError, match=r"is an IterableDataset; .* by row, .*without streaming=True") as refused:
        make(tmp_path, data=data, **changes)
    offer = re.search("`(.*take.*)`", str(refused.value))[1].replace("5000", "8")
    part = eval(offer, {"Dataset": Dataset, "train_dataset": data})
    assert len(make(tmp_path, data=part).train_dataset) == 8


@pytest.mark.parametrize("none", [None, []])
def test_without_a_reward_nothing_is_mined(tmp_path, none):
    with pytest.raises(ValueError, match=r"^No reward source provided: .*reward_funcs"):
        make(tmp_path, reward=none)


def test_streams_are_evaluated_on(tmp_path):
    """As in TRL, given to the trainer or to `evaluate`."""
    stream = questions(4).to_iterable_dataset()
    sizes = {"num_generations_eval": 2, "per_device_eval_batch_size": 4}
    trainer = make(tmp_path, eval_dataset={"stream": stream}, **sizes)
    assert 0 <= trainer.evaluate()["eval_stream_accuracy"] <= 1
    assert 0 <= trainer.evaluate(stream)["eval_accuracy"] <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_mask": "sharp"}, "choose one of hard, soft, off"),
        ({"old_logprobs_context": "x"}, "choose one of bare, rollout"),
        ({"evolution_budget": "huge"}, "light, medium, heavy, heavy_4"),
        ({"min_hard_questions": 1}, "at least 2"),
        ({"bare_rollouts_per_group": K}, "smaller than num_generations"),
        ({"context_ratio_min": 2.0, "context_ratio_max": 1.0}, "context_ratio_min < context_ratio_max"),
        ({"reflection_prompt": "Improve <curr_param>"}, "<side_info>"),
        ({"num_generations": 1}, "2"),
        ({"per_device_train_batch_size": 6}, "does not divide 6 rollouts"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        P2OConfig(**options(tmp_path, **changes))


def test_names_swap_in_pairs(tmp_path):
    with pytest.raises(ValueError, match="P2OConfig"):
        make(tmp_path, config=GRPOConfig)


def test_an_unknown_success_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="length_reward"):
        make(tmp_path, success_reward="accuracy")


@pytest.mark.parametrize("failure", ["raise", "length", "nan"])
def test_failing_reward_functions_lose_nothing(tmp_path, failure):
    def reward(completions, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            if failure == "raise":
                raise RuntimeError("the verifier is gone")
            if failure == "length":
                return [1.0]
            return [float("nan")] * len(completions)
        return length_reward(completions)

    reward.__name__ = length_reward.__name__  # mended, it is resumed with
    trainer = make(tmp_path, reward=reward, save_strategy="steps", save_steps=50, max_steps=3)
    if failure == "nan":
        trainer.train()
        assert trainer.p2o.events["unscored_rollouts"] == 8
        return
    with pytest.raises((RuntimeError, ValueError)) as caught:
        trainer.train()
    assert "resume from" in caught.value.__notes__[0]

    # What was saved goes on as if nothing had happened.
    resumed = make(tmp_path, save_strategy="steps", save_steps=50, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    straight = make(tmp_path / "straight", max_steps=3)
    straight.train()
    assert_same(weights(straight), weights(resumed))
