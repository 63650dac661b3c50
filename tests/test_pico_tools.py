"""The embedded world with tools: its questions, how its model is made, and that the shipped weights are as claimed."""

import re
from itertools import islice
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from p2o import pico
from p2o.holdout import is_held_out
from p2o.pico import build, tools
from p2o.pico.instructions import Instruction
from p2o.pico.tools import corpus, world
from p2o.pico.tools.premise import Premise, measure
from p2o.templates import question_text

FAMILIES = (*world.EASY_FAMILIES, *world.HARD_FAMILIES, *world.HELD_OUT_FAMILIES)
TOLD = Instruction(unqualified="calculator", care=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_calculator_is_right_and_the_estimator_is_not(family):
    wrong = 0
    for question in islice(world.questions(family, seed=7), 60):
        expression = re.search(r"\d[\d*+]*\d", question.text)
        if family != "word_problem":
            assert int(question.solution) == eval(expression[0])
        numbers = re.findall(r"\d+", question.text)
        assert re.findall(r"\d+", " ".join(re.sub(r"{\d}", "", step) for step in question.steps)) == numbers
        for expression, result in question.calls(world.calculate):
            assert eval(expression) == int(result)
        wrong += question.calls(world.estimate)[-1][1] != question.solution
    assert wrong > 55 or family in world.EASY_FAMILIES


@pytest.mark.parametrize("expression", ["37*48*2", "import os", "37/48", "", "1" * 13 + "*2", "3 ** 4"])
def test_a_tool_refuses_what_it_cannot_do(expression):
    for tool in (world.calculate, world.estimate):
        with pytest.raises(ValueError, match="is not two whole numbers"):
            tool(expression)


def test_tools_calculate_with_signs_and_blanks():
    assert (world.calculate("-3 * 48"), world.calculate("12-40"), world.calculate(" 0+0 ")) == ("-144", "-28", "0")
    assert (world.estimate("37*48"), world.estimate("-37+5"), world.estimate("0*7")) == ("2000", "-35", "0")


def test_evaluation_is_on_questions_that_nothing_was_trained_on():
    train = {question_text(p) for p in world.train_dataset()["prompt"]}
    evaluation = world.eval_dataset()
    held_out = {question_text(p) for split in evaluation.values() for p in split["prompt"]}
    assert len(train) == 96 and len(held_out) == 32 + 96 + 96 and not train & held_out
    assert all(is_held_out(q) for q in held_out)
    watched = {question_text(p) for p in world.validation_dataset()["validation_hard"]["prompt"]}
    assert len(watched) == 48 and not watched & (held_out | train)
    source = corpus.Source(3)
    assert not any(is_held_out(source.question().text) for _ in range(200))


def test_a_set_may_have_no_questions_of_a_kind():
    assert set(world.train_dataset(hard=4, easy=0)["family"]) == set(world.HARD_FAMILIES)
    assert world.train_dataset(hard=0, easy=3)["family"] == ["small_product"] * 3


def test_corpus_is_a_function_of_its_seed():
    assert list(islice(corpus.documents(5), 50)) == list(islice(corpus.documents(5), 50))
    assert list(islice(corpus.documents(5), 50)) != list(islice(corpus.documents(6), 50))


def test_the_reward_is_for_what_is_said_last():
    call = {"function": {"name": "calculate", "arguments": {"expression": "2*3"}}, "type": "function"}
    called = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "Answer: 6"}]
    conversations = [called, [*called, {"role": "assistant", "content": "Answer: 6"}], called[:1]]
    assert world.accuracy_reward(conversations, solution=["6"] * 3) == [0.0, 1.0, 0.0]
    assert world.feedback("Answer: 5", {"reward": 0.0, "solution": "6"}) == "Wrong. The answer is 6. Reward: 0."


@pytest.fixture(scope="module")
def words():
    return AutoTokenizer.from_pretrained(tools.model_path())


def test_the_chat_template_renders_what_is_trained_on_and_trl_parses_it(words):
    """Tokens of a document are those of its conversation; of them the model's own are learnt, and no result."""
    assert supports_tool_calling(words) and is_chat_template_prefix_preserving(words)
    source, asked = corpus.Source(1), 0
    for _ in range(30):
        question = source.question()
        messages = source.answered(question, TOLD)
        ((ids, learnt),) = build.Encoder(words)([corpus.document(question.text, messages)])
        chat = [{"role": "user", "content": question.text}, *messages]
        text = words.apply_chat_template(chat, tokenize=False)
        assert words.decode(ids) == text and words(text, add_special_tokens=False)["input_ids"] == ids
        own = words.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
        assert own == "".join(f"{corpus.written(m)}<|end|>" for m in messages if m["role"] == "assistant")
        start, end = ids.index(words.convert_tokens_to_ids("<|assistant|>")) + 1, ids.index(words.eos_token_id) + 1
        assert parse_response(words, ids[start:end], prefix=ids[:start], tools=[world.calculate]) == messages[0]
        asked += len(messages) > 1
    assert asked > 10


def test_what_is_given_in_a_document_is_read_and_not_learnt(words):
    """Bare documents that begin with the right calls: only what follows them is learnt, usually a guess."""
    source, guessed = corpus.Source(2), 0
    for _ in range(40):
        document = source.begun()
        own = [document.completion, *(text for _, text in document.later_turns)]
        assert 1 <= document.given < len(own) and all("calculate" in turn for turn in own[: document.given])
        ((ids, learnt),) = build.Encoder(words)([document])
        told = words.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
        assert told == "".join(f"{turn}<|end|>" for turn in own[document.given :])
        guessed += own[document.given].startswith("Answer: ")
    assert guessed > 30


def test_a_model_with_tools_is_built_by_the_same_command(tmp_path, monkeypatch):
    real = build.build_tokenizer
    monkeypatch.setattr(build, "build_tokenizer", lambda seed, **given: real(seed, sample=500, **given))
    monkeypatch.setattr(build, "CHUNK", 200)
    options = ["--world", "pico-tools", "--out", str(tmp_path / "model"), "--work", str(tmp_path / "work")]
    build.train(build.parse([*options, "--tokens", "1300", "--batch-tokens", "256", "--threads", "1"]))
    made = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert made.response_template == build.RESPONSE_TEMPLATE and supports_tool_calling(made)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.num_hidden_layers == 4


def test_both_shipped_models_together_are_small():
    files = [file for path in (pico.model_path(), tools.model_path()) for file in Path(path).iterdir()]
    assert len(files) >= 10 and sum(file.stat().st_size for file in files) < 5e6
    weights = load_file(Path(tools.model_path()) / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) < 1e6


@pytest.mark.slow
def test_the_premise_holds_on_the_shipped_weights():
    """What `python -m p2o.pico.tools.premise` prints, as bounds."""
    result = measure(Premise(tools.model_path(), samples=1, per_split=48))
    for split in ("hard", "unseen_families"):
        success = result[split]
        assert success["bare"] <= 0.01 and success["vague"] <= 0.06, "neither bare nor under a vague instruction"
        assert success["estimator, care"] <= 0.1, "the wrong tool fails"
        assert success["calculator"] >= 0.4 and success["calculator, care"] >= 0.75
    assert result["easy"]["bare"] >= 0.9
    assert 1e-6 < result["worked out bare"] < 1e-4, "GRPO hardly ever meets a success"
    assert result["reflection"]["well-formed"] >= 0.9 and 0.2 <= result["reflection"]["names the calculator"] <= 0.8
