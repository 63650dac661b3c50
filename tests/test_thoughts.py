"""Where a thinking model's answer begins."""

import json
from importlib.resources import files

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from p2o import P2OConfig, P2OTrainer
from p2o.cli import main
from p2o.cli.frozen_options import FrozenArguments
from p2o.cli.frozen_questions import reading_thoughts
from p2o.completions import as_message
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.scorers import scorer
from p2o.evaluation.types import QuestionSet
from p2o.pico import model_path
from p2o.thoughts import (
    THOUGHTS,
    decoder,
    ends_in_thought,
    opened_by_prompt,
    special_marks,
    template_opens_thought,
    thought_reading,
    without_thoughts,
)
from p2o.verifiers import rewards

PAIRS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ('<think effort="high">', "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<ifm|think_fast>", "</ifm|think_fast>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>commentary<|message|>tool<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
]


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_marks_of_thoughts(opening, closing):
    for thought in ("t", "", "several\nlines of\n\nit", r"\boxed{7} <b> [x] ```draft```"):
        assert without_thoughts(f"{opening}{thought}{closing}a") == "a"
        assert without_thoughts(f"{opening}{thought}") == ""
        assert without_thoughts(f"{thought}{closing}a") == "a"
        assert without_thoughts(f"{thought}{closing}a", begins_inside=True) == "a"
        assert without_thoughts(thought, begins_inside=True) == ""
        assert without_thoughts(thought) == thought
    if "channel|>" not in opening:
        assert without_thoughts(f"a{opening}t{closing}b{opening}t{closing}c") == "abc"


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("a <b> [c] ◁d▷ x < y", "a <b> [c] ◁d▷ x < y"),
        ("<thinks>a</thinks>", "<thinks>a</thinks>"),
        ("<|channel|>analysis", ""),
        ("<|channel|>analysis<|message|>t<|end|>", ""),
        ("<|channel|>final<|message|>a<|return|>", "a"),
        ("analysisWe need it.assistantfinalIt is 4.", "It is 4."),
        ("analysisWe need it, and", ""),
        ("analysis of it", "analysis of it"),
        ("Analysis: it", "Analysis: it"),
    ],
)
def test_what_stands_outside(text, outside):
    assert without_thoughts(text) == outside


@given(st.lists(st.tuples(st.booleans(), st.text(alphabet="ab \n\\{}", max_size=5)), max_size=6), st.booleans())
def test_text_is_cut_as_a_reader_would(parts, begins_inside):
    """Any order of marks: a reader who goes through them keeps what he meets outside."""
    outside, inside, text = "", begins_inside, ""
    for opens, words in parts:
        text += words
        outside += "" if inside else words
        if not opens and not inside:
            outside = ""
        text += "<think>" if opens else "</think>"
        inside = opens
    text += "end"
    outside += "" if inside else "end"
    assert without_thoughts(text, begins_inside=begins_inside) == outside


def byte_tokenizer(*special):
    """A tokenizer of bytes, for any text, with these special tokens beside `</s>`."""
    alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def template(name):
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


@pytest.mark.parametrize(
    ("name", "options", "opened"),
    [
        ("qwen3", {}, False),  # the model opens its thought itself
        ("qwen3", {"enable_thinking": False}, False),
        ("qwen3_5_think", {}, True),
        ("qwen3_5_think", {"enable_thinking": False}, False),
        ("deepseek_r1_distill", {}, True),
        ("nemotron_3_nano", {"enable_thinking": True}, True),
        ("nemotron_3_nano", {"enable_thinking": False}, False),
        ("gptoss", {}, False),
        ("qwen2_5", {}, False),
    ],
)
def test_templates_that_open_the_thought_in_the_prompt(name, options, opened):
    tokenizer = byte_tokenizer()
    assert not template_opens_thought(tokenizer, options)
    tokenizer.chat_template = template(name)
    assert template_opens_thought(tokenizer, options) == opened


def test_prompts_that_open_the_thought_themselves():
    assert ends_in_thought("Assistant: Let me see.\n<think>\n")
    assert not ends_in_thought("Reason in <think></think>, or start with <think>.")
    assert opened_by_prompt("Q: 1+1? A: <think>")
    assert opened_by_prompt([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\n"}])
    assert not opened_by_prompt([{"role": "user", "content": "Say <think>"}])
    assert not opened_by_prompt([])


@pytest.mark.parametrize(
    ("special", "written", "read"),
    [
        ((), "<think>t</think> a</s>", "<think>t</think> a"),
        (("[THINK]", "[/THINK]", "[INST]"), "[THINK]t[/THINK]a[INST]</s>", "[THINK]t[/THINK]a"),
        (("◁think▷", "◁/think▷"), "◁think▷t", "◁think▷t"),
        (
            ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"),
            "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>a<|return|></s>",
            "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
        ),
        (("<|end|>", "<|message|>"), "a<|end|></s>", "a"),  # Phi ends its turns so
    ],
)
def test_decoding_keeps_the_marks(special, written, read):
    tokenizer = byte_tokenizer(*special)
    assert decoder(tokenizer)(tokenizer(written)["input_ids"]) == read
    assert special_marks(tokenizer) <= set(special)


CHAT = [{"role": "user", "content": "What is 6 · 9?"}]
THOUGHT, ANSWERED = "Perhaps \\boxed{42}, let me see", "Perhaps \\boxed{42}?</think> It is \\boxed{54}."


def paid(reading, completions, tokenizer=None, prompt=CHAT, reward=rewards.math, solution="42"):
    """What a reward function bound to this reading pays for completions, texts as TRL would hand them over."""
    (bound,) = reading.given_to(reward)
    assert bound.__name__ == reward.__name__
    ids = None if tokenizer is None else [tokenizer(text)["input_ids"] for text in completions]
    texts = [tokenizer.decode(i, skip_special_tokens=True) for i in ids] if ids else completions
    chat = not isinstance(prompt, str)
    return bound(
        completions=[[{"role": "assistant", "content": text}] if chat else text for text in texts],
        prompts=[prompt] * len(texts),
        completion_ids=ids,
        solution=[solution] * len(texts),
    )


def test_an_answer_in_an_unfinished_thought_is_none():
    """The thought is opened by the template, by the prompt, or by nobody; and what may be asked for explicitly."""
    thinking, plain = byte_tokenizer(), byte_tokenizer()
    thinking.chat_template, plain.chat_template = template("deepseek_r1_distill"), template("qwen2_5")
    cases = [
        (thought_reading("auto", thinking), CHAT, [0, 0]),
        (thought_reading("auto", plain), CHAT, [1, 0]),
        (thought_reading("auto", thinking), "What is 6 · 9? <think>", [0, 0]),
        (thought_reading("auto", thinking), "What is 6 · 9?", [1, 0]),
        (thought_reading("auto"), CHAT, [1, 0]),
        (thought_reading("marked", thinking), CHAT, [1, 0]),
        (thought_reading("opened"), CHAT, [0, 0]),
        (thought_reading("kept", thinking), CHAT, [1, 0]),
    ]
    for reading, prompt, expected in cases:
        assert paid(reading, [THOUGHT, ANSWERED], prompt=prompt) == expected, (reading, prompt)
    assert paid(thought_reading("opened"), [ANSWERED], solution="54") == [1]
    # TRL's own verdicts are of whole texts, unless somebody asks for another reading.
    verdicts = [paid(thought_reading(option, thinking), [THOUGHT], reward=rewards.accuracy) for option in THOUGHTS]
    assert verdicts == [[1], [1], [0], [1]]


def test_thoughts_are_read_off_the_tokens_where_texts_have_lost_their_marks():
    """Of special tokens, and of what TRL's parser has taken out of a message."""
    tokenizer = byte_tokenizer("[THINK]", "[/THINK]")
    cut_off, finished = "[THINK]Perhaps \\boxed{42}", "[THINK]Perhaps \\boxed{7}.[/THINK]It is \\boxed{42}.</s>"
    assert paid(thought_reading("auto", tokenizer), [cut_off, finished], tokenizer) == [0, 1]
    thinking = byte_tokenizer()
    thinking.chat_template = template("deepseek_r1_distill")
    (reward,) = thought_reading("auto", thinking).given_to(rewards.math)
    whole = "Perhaps 7.</think>It is \\boxed{42}."
    parsed = [{"role": "assistant", "reasoning_content": "Perhaps 7.", "content": "It is \\boxed{42}."}]
    ids = [thinking(whole)["input_ids"]]
    assert reward(completions=[parsed], prompts=[CHAT], completion_ids=ids, solution=["42"]) == [1]


def thinking_pico():
    """The embedded model's tokenizer with a template that opens a thought."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template += "{% if add_generation_prompt and enable_thinking | default(true) %}<think>{% endif %}"
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "pays"),
    [({}, 0), ({"chat_template_kwargs": {"enable_thinking": False}}, 1), ({"thoughts": "kept"}, 1)],
)
def test_training_reads_thoughts_as_its_template_has_them(tmp_path, changes, pays):
    trainer = P2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path()),
        reward_funcs=rewards.math,
        feedback_func=rewards.feedback_of("math"),
        args=P2OConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, report_to="none", **changes),
        train_dataset=Dataset.from_dict({"prompt": [CHAT] * 8, "solution": ["42"] * 8}),
        processing_class=thinking_pico(),
    )
    completion = [{"role": "assistant", "content": THOUGHT}]
    assert trainer.reward_funcs[0](completions=[completion], prompts=[CHAT], solution=["42"]) == [pays]
    told = trainer.feedback_func(THOUGHT, {"prompt": CHAT, "solution": "42", "reward": float(pays)})
    assert ("No answer found" in told) == (not pays)
    parsed = {"prompt": CHAT, "solution": "42", "reward": 0.0, "thought_taken_out": True}
    assert "No answer found" not in trainer.feedback_func("It is \\boxed{41}.", parsed)


def test_evaluation_reads_thoughts_as_its_template_has_them():
    rows = [{"prompt": CHAT, "solution": "42"}]
    for options, pays in (({}, 0), ({"enable_thinking": False}, 1)):
        model = FrozenModel(lambda prompts, **kwargs: [], thinking_pico(), None, options)
        arguments = FrozenArguments()
        ((task,), _) = reading_thoughts([QuestionSet("t", rows, scorer("math"))], arguments, model)
        assert [verdict.reward for verdict in task.score([as_message(THOUGHT, chat=True)], rows)] == [pays]
        arguments.thoughts = "opened"
        ((task,), _) = reading_thoughts([QuestionSet("t", rows, scorer("math"))], arguments, model)
        assert [verdict.reward for verdict in task.score([as_message(THOUGHT, chat=True)], rows)] == [0]


def test_a_file_is_scored_as_the_option_says(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"completion": THOUGHT, "solution": "42"}) + "\n")
    assert main(["score", str(tmp_path / "a.jsonl"), "--workers", "1", "--thoughts", "opened"]) == 0
    assert json.loads((tmp_path / "a.scored.jsonl").read_text())["reward"] == 0


def test_functions_that_do_not_ask_are_left_alone():
    def custom(completions, **columns):
        return columns["thought_reading"]

    class Called:
        def __call__(self, completions, **columns):
            return []

    functions = [custom, Called(), None]
    assert thought_reading("kept").given_to(*functions) == functions
