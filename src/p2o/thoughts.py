"""Where a thinking model's answer begins: behind its thought. Pure."""

import re
from collections.abc import Mapping
from typing import Any

_WORDS = "|".join(("think(?:_fast(?:er)?)?", "thinking", "thoughts?", "reasoning"))
_OPENING = "|".join(
    (
        rf"<(?:\w{{1,16}}[:|])?(?:{_WORDS})(?::\w{{1,16}})?(?:\s[^<>]{{0,80}})?>",  # <think>, <seed:think>, <mm:think>
        r"\[THINK\]",
        "◁think▷",
        r"<\|(?:begin_of_thought|START_THINKING)\|>",
        r"<\|open\|>think<\|sep\|>",
        r"<\|channel>",  # Gemma 4
        r"<\|channel\|>(?!\s*final)(?:[^<]*<\|message\|>)?",  # gpt-oss: analysis, and commentary for tools
    )
)
_CLOSING = "|".join(
    (
        rf"</(?:\w{{1,16}}[:|])?(?:{_WORDS})(?::\w{{1,16}})?\s*>",
        r"\[/THINK\]",
        "◁/think▷",
        r"<\|(?:end_of_thought|END_THINKING)\|>",
        r"<\|close\|>think<\|sep\|>",
        r"<channel\|>",
        r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
    )
)
# Begins with a set of characters, for which regular expressions are quick.
_MARKS = re.compile(rf"(?=[<\[◁])(?:(?P<opening>{_OPENING})|{_CLOSING})", re.IGNORECASE)
_ENDS_WITH_OPENING = re.compile(rf"(?:{_OPENING})\s*\Z", re.IGNORECASE)
_END_OF_MESSAGE = re.compile(r"\s*<\|(?:end|return|call)\|>")
# gpt-oss decoded without its special tokens: "analysisWe need …assistantfinalThe answer …".
_BARE_ANALYSIS, _BARE_FINAL = re.compile(r"\s*analysis(?=[^\sa-z:;,.])"), "assistantfinal"


def without_thoughts(text: str, *, begins_inside: bool = False) -> str:
    """What stands outside of thoughts such as `<think>…</think>`.

    A thought that is not closed goes on to the end, and one that is closed only began before the text. Text without
    marks is left as it is. Takes time linear in the text.

    Args:
        begins_inside: whether the text goes on with a thought that was opened before it, as by a chat template; without
            a closing mark all of it is the thought.
    """
    if not begins_inside and _BARE_ANALYSIS.match(text):
        return text.rpartition(_BARE_FINAL)[2] if _BARE_FINAL in text else ""
    # Looking for one character is a hundred times faster than for marks, and there may be megabytes.
    if not any(sign in text for sign in "<[◁"):
        return "" if begins_inside else text
    kept: list[str] = []
    start, inside, channels = 0, begins_inside, False
    for mark in _MARKS.finditer(text):
        opens, channel = mark["opening"] is not None, mark[0].startswith("<|channel|>")
        channels = channels or channel
        if opens and not inside:
            kept.append(text[start : mark.start()])
        elif not opens:
            if not inside or channel:  # the final channel is the whole answer
                kept.clear()
            start = mark.end()
        inside = opens
    outside = "".join(kept) + ("" if inside else text[start:])
    return _END_OF_MESSAGE.sub("", outside) if channels else outside


def ends_in_thought(prompt: str) -> bool:
    """Whether a prompt, as text, ends with the opening mark of a thought, in which its completion then begins."""
    return _ENDS_WITH_OPENING.search(prompt[-200:]) is not None


def template_opens_thought(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether completions of chats begin inside a thought, since the chat template opens it in the prompt.

    Args:
        tokenizer: of transformers', or a processor; False for one without a chat template.
        chat_template_kwargs: as the prompts are rendered with, such as `enable_thinking`.
    """
    if not getattr(tokenizer, "chat_template", None):
        return False
    chat = [{"role": "user", "content": "?"}]
    rendered = tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, **(chat_template_kwargs or {})
    )
    return ends_in_thought(rendered)


def opened_by_prompt(prompt: Any) -> bool:
    """Whether a prompt of a data set, a text or a chat, opens a thought itself.

    A text does so at its end, a chat in an assistant's message that is to be continued.
    """
    if not isinstance(prompt, str):
        last = prompt[-1] if prompt else {}
        prompt = last.get("content") if last.get("role") == "assistant" else ""
    return isinstance(prompt, str) and ends_in_thought(prompt)
