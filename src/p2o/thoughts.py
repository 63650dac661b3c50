"""Where a thinking model's answer begins: behind its thought. Pure."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, Literal

THOUGHTS = ("auto", "marked", "opened", "kept")
HELP = (
    "What becomes of a thinking model's thoughts when its answer is read: 'auto' leaves out those that are marked, "
    "finished or not, and where the chat template opens the thought in the prompt everything up to its end; 'marked' "
    "and 'opened' say so themselves; 'kept' reads them like any other text. The verifier 'accuracy' reads everything, "
    "as TRL does, unless one of the last three is named."
)

_WORDS = "|".join(("think(?:_fast(?:er)?)?", "thinking", "thoughts?", "reasoning", "scratch_?pad"))
_OPENING = "|".join(
    (
        rf"<(?:\w{{1,16}}[:|])?(?:{_WORDS})(?::\w{{1,16}})?(?:\s[^<>]{{0,80}})?>",  # <think>, <seed:think>, <mm:think>
        r"\[THINK\]",
        "◁think▷",
        r"<\|(?:begin_of_thought|START_THINKING)\|>",
        r"<\|open\|>think<\|sep\|>",
        r"<\|channel>",  # Gemma 4
        r"<unused94>\s*thought\b",  # MedGemma
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
        "<unused95>",
        r"\[BEGIN FINAL RESPONSE\]",  # Apriel, which begins with its thought
        r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
    )
)
# Begins with a set of characters, for which regular expressions are quick.
_MARKS = re.compile(rf"(?=[<\[◁])(?:(?P<opening>{_OPENING})|{_CLOSING})", re.IGNORECASE)
_ENDS_WITH_OPENING = re.compile(rf"(?:{_OPENING})\s*\Z", re.IGNORECASE)
_END_OF_MESSAGE = re.compile(r"\s*<\|(?:end|return|call)\|>")
_PARTS_OF_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
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


def opened_by_prompt(prompt: Any) -> bool:
    """Whether a prompt of a data set, a text or a chat, opens a thought itself.

    A text does so at its end, a chat in an assistant's message that is to be continued.
    """
    if not isinstance(prompt, str):
        prompt = prompt[-1].get("content") if _is_continued(prompt) else ""
    return isinstance(prompt, str) and ends_in_thought(prompt)


def _is_continued(chat: Sequence[Mapping[str, Any]]) -> bool:
    return bool(chat) and chat[-1].get("role") == "assistant"


# -- what a tokenizer says about them ----------------------------------------------------------------------------------


def template_thinks(tokenizer: Any) -> bool:
    """Whether the chat template knows marks of thoughts; False without a template."""
    return _MARKS.search(str(getattr(tokenizer, "chat_template", None) or "")) is not None


def template_opens_thought(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether completions of chats begin inside a thought, since the chat template opens it in the prompt.

    Args:
        tokenizer: of transformers', or a processor; False for one without a chat template.
        chat_template_kwargs: as the prompts are rendered with, such as `enable_thinking`.
    """
    if not template_thinks(tokenizer):
        return False
    chat = [{"role": "user", "content": "?"}]
    rendered = tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, **(chat_template_kwargs or {})
    )
    return ends_in_thought(rendered)


def special_marks(tokenizer: Any) -> set[str]:
    """Special tokens of which marks of thoughts are made; decoding that leaves special tokens out loses them."""
    special = set(getattr(tokenizer, "all_special_tokens", ()))  # a processor has none
    parts = {token for token in _PARTS_OF_MARKS if token in special} if _PARTS_OF_MARKS[0] in special else set()
    return parts | {token for token in special if _MARKS.fullmatch(token)}


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Decodes a completion's tokens to its text without special tokens, but for those that mark thoughts."""
    marks = special_marks(tokenizer)
    if not marks:
        return partial(tokenizer.decode, skip_special_tokens=True)
    dropped = set(tokenizer.all_special_tokens) - marks

    def decode(ids: Sequence[int]) -> str:
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        for token in dropped:
            text = text.replace(token, "")
        return text

    return decode


# -- how a verifier reads completions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThoughtReading:
    """How completions of a model that may think are read for their answer.

    Args:
        kept: whether a thought counts like any other text.
        opened: whether completions begin inside a thought: "chats" where the chat template opens it, "all" of them.
        named: whether somebody asked for it; it then holds for TRL's `accuracy`, too, which reads all of a text.
        decode: a completion's text from its tokens, with marks of thoughts; None where texts have all there is.
    """

    kept: bool = False
    opened: Literal["", "chats", "all"] = ""
    named: bool = False
    decode: Callable[[Sequence[int]], str] | None = None

    def begins_inside(self, prompt: Any = None) -> bool:
        """Whether the completion of this prompt, a text or a chat, begins inside a thought."""
        if self.opened == "all" or prompt is None:
            return self.opened == "all"
        by_template = self.opened == "chats" and not isinstance(prompt, str) and not _is_continued(prompt)
        return by_template or opened_by_prompt(prompt)

    def given_to(self, *functions: Any) -> list[Any]:
        """The functions, of which those with a parameter `thought_reading` have this as its value."""
        return [self._given_to(function) for function in functions]

    def _given_to(self, function: Any) -> Any:
        try:
            takes = "thought_reading" in inspect.signature(function).parameters
        except (ValueError, TypeError):  # no signature available
            takes = False
        return update_wrapper(partial(function, thought_reading=self), function) if takes else function


MARKED = ThoughtReading()
"""Thoughts are known by their marks in the text alone."""


def thought_reading(
    option: str, tokenizer: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> ThoughtReading:
    """The reading that one of `THOUGHTS` names.

    Args:
        tokenizer: what 'auto' follows; without one thoughts are known by their marks.
        chat_template_kwargs: as the prompts are rendered with, such as `enable_thinking`.
    """
    if option == "kept":
        return ThoughtReading(kept=True, named=True)
    decoded = None
    if tokenizer is not None and (template_thinks(tokenizer) or special_marks(tokenizer)):
        decoded = decoder(tokenizer)
    if option == "auto":
        opened = tokenizer is not None and template_opens_thought(tokenizer, chat_template_kwargs)
        return ThoughtReading(opened="chats" if opened else "", decode=decoded)
    return ThoughtReading(opened="all" if option == "opened" else "", named=True, decode=decoded)
