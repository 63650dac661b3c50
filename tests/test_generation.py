"""What a model is asked and how it samples: the same in training, evolution, reflection and evaluation."""

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from p2o.completions import Sampling
from p2o.engines.frozen import transformers_model
from p2o.pico import model_path, world
from p2o.prompt_phase.types import Question
from p2o.reflection.model import transformers_reflection
from test_trainer import generation_batch, load, make, questions, rows_of

# What checkpoints bring along in generation_config.json, and more of it than any one does.
SETTINGS = {
    **{"do_sample": True, "repetition_penalty": 1.5, "temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.2},
    **{"typical_p": 0.5, "no_repeat_ngram_size": 2, "min_new_tokens": 20, "suppress_tokens": [40], "num_beams": 1},
}


@pytest.fixture(scope="module")
def with_settings(tmp_path_factory):
    """The embedded model, with generation settings of its own."""
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    shutil.copytree(model_path(), path)
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**settings, **SETTINGS}))
    return str(path)


PROMPTS = [row["prompt"] for row in world.eval_dataset(per_split=8)["easy"]]


@pytest.mark.parametrize("sampling", [Sampling(24), Sampling(24, 0.7, 0.9, 20), Sampling(24, 0.0)])
def test_an_evaluation_samples_by_its_own_settings_alone(with_settings, sampling):
    plain, shaped = (transformers_model(path, attn_implementation="eager") for path in (model_path(), with_settings))
    assert plain.complete(PROMPTS, sampling=sampling, seed=0) == shaped.complete(PROMPTS, sampling=sampling, seed=0)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_reflection_samples_by_its_own_settings_alone(with_settings, adapter):
    answers = []
    for path in (model_path(), with_settings):
        model = AutoModelForCausalLM.from_pretrained(path)
        if adapter:
            model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        own = copy.deepcopy(model.generation_config)
        reflect = transformers_reflection(model, AutoTokenizer.from_pretrained(path), max_new_tokens=24)
        answers.append(reflect(["What is to be done?"] * 4, seed=0))
        assert model.generation_config.to_dict() == own.to_dict(), "it belongs to the checkpoint"
    assert answers[0] == answers[1]


def sampled(trainer):
    """Completions of the policy phase with a template and without, of a prompt phase, and what evaluation logs."""
    policy = [completion for _, completion in rows_of(generation_batch(trainer))]
    bare = [completion for _, completion in rows_of(generation_batch(trainer, assign={}))]
    requests = [(Question(i, "", ""), "") for i in range(4)]
    evolution = [rollout.completion for rollout in trainer.policy_rollouts(requests, seed=5)]
    evaluated = trainer.evaluate(questions(4))
    return policy, bare, evolution, evaluated["eval_reward"], evaluated["eval_completions/mean_length"]


def test_rollouts_are_sampled_by_the_options_alone(tmp_path):
    plain, shaped = make(tmp_path / "plain"), make(tmp_path / "shaped")
    shaped.model.generation_config.update(**SETTINGS)
    assert sampled(plain) == sampled(shaped)
    shaped.save_model(str(tmp_path / "saved"))
    assert GenerationConfig.from_pretrained(tmp_path / "saved").repetition_penalty == 1.5


def test_options_that_shape_sampling_still_do(tmp_path):
    plain, shaped = make(tmp_path / "a"), make(tmp_path / "b", generation_kwargs={"no_repeat_ngram_size": 1})
    before, after = sampled(plain)[0], sampled(shaped)[0]
    assert before != after and all(len(set(ids)) == len(ids) for ids in after)
