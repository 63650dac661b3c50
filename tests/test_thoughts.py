"""Where a thinking model's answer begins."""

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from p2o.thoughts import ends_in_thought, opened_by_prompt, template_opens_thought, without_thoughts

PAIRS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ('<think effort="high">', "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
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
    words = Tokenizer(models.WordLevel({"?": 0}, "?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    assert not template_opens_thought(tokenizer, options)
    tokenizer.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text()
    assert template_opens_thought(tokenizer, options) == opened


def test_prompts_that_open_the_thought_themselves():
    assert ends_in_thought("Assistant: Let me see.\n<think>\n")
    assert not ends_in_thought("Reason in <think></think>, or start with <think>.")
    assert opened_by_prompt("Q: 1+1? A: <think>")
    assert opened_by_prompt([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\n"}])
    assert not opened_by_prompt([{"role": "user", "content": "Say <think>"}])
    assert not opened_by_prompt([])
