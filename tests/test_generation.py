"""What a model is asked and how it samples: the same in training, evolution, reflection and evaluation."""

import copy
import json
import shutil

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from p2o.cli import main
from p2o.cli.eval import EvalArguments
from p2o.cli.frozen_options import parse
from p2o.completions import Sampling
from p2o.engines.frozen import FrozenModel, encode, transformers_model
from p2o.evaluation.types import QuestionSet
from p2o.pico import model_path, world
from p2o.prompt_phase.frozen_policy import FrozenPolicy
from p2o.prompt_phase.types import Question
from p2o.reflection.model import transformers_reflection
from trainers import generation_batch, make, questions, rows_of

# What checkpoints bring along in generation_config.json, and more of it than any one does.
SETTINGS = {
    **{"do_sample": True, "repetition_penalty": 1.5, "temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.2},
    **{"typical_p": 0.5, "no_repeat_ngram_size": 2, "min_new_tokens": 20, "suppress_tokens": [40], "num_beams": 1},
}


def checkpoint_with_settings(path):
    """The embedded model with generation settings of its own, in a directory that is made."""
    shutil.copytree(model_path(), path)
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**settings, **SETTINGS}))
    return str(path)


@pytest.fixture(scope="module")
def with_settings(tmp_path_factory):
    return checkpoint_with_settings(tmp_path_factory.mktemp("checkpoint") / "model")


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


# -- what the model is asked -------------------------------------------------------------------------------------------

THINKING = (
    "{%- if messages[0]['role'] == 'system' %}{{ '<|system|>' + messages[0]['content'] + '<|end|>' }}"
    "{%- else %}{{ '<|system|>You are a helpful assistant.<|end|>' }}{%- endif %}"
    "{%- for message in messages %}{%- if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ 'Thought: none. ' }}{%- endif %}{%- endif %}"
)
"""A default system prompt, as SmolLM2's and Qwen2.5's templates have it, and a switch, as Qwen3's."""
NO_SYSTEM = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
OFF = {"enable_thinking": False}
CHATS = [
    [{"role": "user", "content": "3 + 4?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 4?"}],
]


def tokenizer_with(template):
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template = template
    return tokenizer


def checkpoint_with(path, template):
    """The embedded model with another chat template, None for none, in a directory."""
    shutil.copytree(model_path(), path)
    (path / "chat_template.jinja").unlink()
    tokenizer_with(template).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("options", [{}, OFF])
def test_rollouts_reflection_and_evaluation_ask_alike(tmp_path, options):
    """With the template's own system prompt where the chat has none, and with its options."""
    path = checkpoint_with(tmp_path / "model", THINKING)
    tokenizer = AutoTokenizer.from_pretrained(path)
    trainer = make(tmp_path / "run", tokenizer=tokenizer, chat_template_kwargs=options, reflection_max_tokens=1)
    asked = [tokenizer.apply_chat_template(c, add_generation_prompt=True, **options)["input_ids"] for c in CHATS]
    assert ("none." in tokenizer.decode(asked[0])) == bool(options)
    assert trainer._tokens(CHATS) == asked == encode(tokenizer, CHATS, **options)
    (reflection,) = trainer.reflect(["3 + 4?"], seed=0)
    assert reflection.prompt_tokens == len(asked[0])
    model = transformers_model(path, template_options=options)
    answers = model.complete(CHATS, sampling=Sampling(1), seed=0)
    assert [a.prompt_tokens for a in answers] == [len(ids) for ids in asked]
    limit = max(map(len, asked))
    assert [len(asked[i]) for i in model.too_long(CHATS, 2048 - limit + 1)] == [limit]


def test_a_model_without_a_chat_template_gets_its_first_token_everywhere(tmp_path):
    tokenizer = tokenizer_with(None)
    first = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|system|> $A", None, [("<|system|>", first)])
    data = Dataset.from_dict({"prompt": ["3 + 4?"] * 4})
    trainer = make(tmp_path, tokenizer=tokenizer, data=data, reflection_max_tokens=1)
    (asked,) = trainer._tokens(["3 + 4?"])
    assert asked[0] == first and encode(tokenizer, ["3 + 4?"]) == [asked]
    assert trainer.reflect(["3 + 4?"], seed=0)[0].prompt_tokens == len(asked)


@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset", "eval_dataset 'b'"])
def test_a_template_that_refuses_the_system_role_is_told_before_training(tmp_path, where):
    sound, refused = (Dataset.from_dict({"prompt": [chat] * 4}) for chat in CHATS)
    data = {"data": refused} if where == "train_dataset" else {"data": sound}
    evaluation = {"eval_dataset": refused, "eval_dataset 'b'": {"a": sound, "b": refused}}.get(where)
    with pytest.raises(ValueError, match=rf"{where} row 0.*System role not supported.*4 of 4 rows"):
        make(tmp_path, tokenizer=tokenizer_with(NO_SYSTEM + THINKING), eval_dataset=evaluation, **data)


@pytest.mark.parametrize(("command", "template"), [("eval", None), ("evolve", NO_SYSTEM + THINKING)])
def test_a_chat_that_cannot_be_rendered_is_told_by_the_commands(tmp_path, capsys, command, template):
    path = checkpoint_with(tmp_path / "model", template)
    rows = [{"prompt": CHATS[1], "solution": "7"}] * 8
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--dataset", str(tmp_path / "data.jsonl"), "--max_completion_length", "8", "--conflicts", "first"]
    options += ["--reward_func", "trl.rewards:think_format_reward"]
    assert main([command, path, *options, "--output_dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert ("System role not supported" if template else "no chat template") in told and "Traceback" not in told


def test_options_of_the_chat_template_reach_the_commands(tmp_path):
    path = checkpoint_with(tmp_path / "model", THINKING)
    read = {}
    for name, options in (("on", []), ("off", ["--chat_template_kwargs", json.dumps(OFF)])):
        command = ["eval", path, "--tasks", "pico:easy", "--limit", "1", "--n", "1", "--max_completion_length", "1"]
        assert main([*command, *options, "--temperature", "0", "--output_dir", str(tmp_path / name)]) == 0
        read[name] = json.loads((tmp_path / name / "eval.json").read_text())["prompt_tokens"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert read["off"] - read["on"] == len(tokenizer("Thought: none. ")["input_ids"]) > 0


@pytest.mark.parametrize("given", ["enable_thinking=false", "[1]", "{"])
def test_options_of_the_chat_template_are_a_mapping(tmp_path, capsys, given):
    assert main(["eval", "pico", "--tasks", "pico:easy", "--chat_template_kwargs", given]) == 2
    assert "chat_template_kwargs" in capsys.readouterr().err


def test_a_template_is_measured_with_the_options_of_the_chat_template():
    tokenizer = tokenizer_with(THINKING)
    templated = [{"role": "user", "content": "Add.\n\n3 + 4?"}]
    fits, longer = (len(encode(tokenizer, [templated], **options)[0]) for options in ({}, OFF))
    assert fits < longer
    for options, used in (({}, "Add."), (OFF, "")):
        model = FrozenModel(None, tokenizer, fits + 9, options)
        policy = FrozenPolicy([QuestionSet("a", [{"prompt": CHATS[0]}], None)], model, Sampling(9))
        assert policy.prompts([(0, "Add.")])[1] == [used]


def test_a_configuration_of_training_brings_the_options_of_the_chat_template(tmp_path):
    (tmp_path / "my.yaml").write_text("chat_template_kwargs:\n  enable_thinking: false\n")
    command = ["some/model", "--tasks", "aime24", "--config", str(tmp_path / "my.yaml")]
    assert parse(EvalArguments, command, prog="p2o", description="").template_options() == OFF
