"""The instruction within an answer of a reflection model, or why there is none. Pure.

The request asks for the instruction in a fenced block. Models think before it, try drafts, label and explain, show
examples in further blocks, open a fence and never close it, or are cut off. Only text that was surely meant as the
instruction comes through: a fragment as a template costs an epoch, a rejected reflection costs itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from p2o.prompt_phase.fences import Block, read_blocks
from p2o.prompt_phase.guard import Rejection, check_form

_SPECIAL = r"(?:<\|[^<>|\n]{1,60}\|>|<｜[^<>\n]{1,60}｜>|</s>|<end_of_turn>|<eos>|<turn\|>)"

_THOUGHTS = (  # opening and closing mark; the opening one is often part of the prompt
    (r"<(?:\w+:)?(?:think|thinking|thoughts?)\b[^<>\n]*>", r"</(?:\w+:)?(?:think|thinking|thoughts?)\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|channel>\s*thought\b", r"<channel\|>"),  # Gemma 4
    (r"<unused94>\s*thought\b", r"<unused95>"),  # MedGemma
    (r"(?m:^Thinking\.\.\.$)", r"(?m:^\.\.\.done thinking\.?$)"),  # Ollama
    (r"\[BEGIN REASONING\]", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
)
_PLAIN_TAGS = r"reason(?:ing)?|scratch_?pad|analysis|reflections?|rationale|monologue|inner_\w+|critique|plan(?:ning)?"
_OPENING_TAG = re.compile(rf"<({_PLAIN_TAGS})\b[^<>\n]*>", re.IGNORECASE)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
# The same where a tokenizer has left its special tokens out.
_BARE_CHANNEL = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z\"'`])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\W|[A-Z])")

_NEW = r"\b(?:new|improved?|revised?|final(?:ly)?|better|updated?|refined?|rewritten|corrected|instead|proposed)\b"
_OLD = r"\b(?:current|original|old|existing|previous|initial|given|present|first)\b"
_DRAFT = r"\b(?:drafts?|attempt|first try|perhaps|maybe|tried)\b"
_SAMPLE = (
    r"\b(?:examples?|for instance|e\.g|samples?|demonstration|would (?:look|say|give|produce|answer|write)|responses?"
    r"|outputs?|completion|the assistant|the model|test(?:ed|ing)?)\b"
)
_REQUEST = re.compile(
    r"I provided an assistant with|Your task is to write a new instruction|Provide the new instructions? within[^\n]*"
)
_SECOND_THOUGHTS = (
    r"\b(?:wait|hmm+|however|but|alternatively|better|shorter|instead|improve|revise|draft|not good|let me)\b"
)
_THOUGHT_LANGUAGES = {"think", "thinking", "thought", "thoughts", "reasoning", "analysis", "scratchpad"}


@dataclass(frozen=True)
class Reading:
    """What a reflection comes to: an instruction, or the reason why it is rejected."""

    instruction: str | None = None
    rejection: Rejection | None = None


def extract_instruction(answer: str, truncated: bool = False) -> str | None:
    """The instruction that a reflection proposes, as it stands in its fence; None where the reflection is rejected.

    Args:
        answer: all that the reflection model wrote, thoughts included.
        truncated: whether the limit on its length ended it, rather than the model.
    """
    return read_reflection(answer, truncated).instruction


def read_reflection(answer: str, truncated: bool = False, *, fenced: bool = True) -> Reading:
    """As [`extract_instruction`], with the reason of a rejection.

    The last fenced block counts that is neither a draft, the present instruction, code nor an example. A block without
    an end counts where the model ended there by itself, one that was cut off does not.

    Args:
        fenced: whether the request asked for a fenced block. Otherwise an answer without one is the instruction.
    """
    text = without_thoughts(answer.replace("\r\n", "\n").replace("\r", "\n"))
    text = _behind_last(_REQUEST, text) or text  # a model that repeats the request before it answers
    if not text.strip():
        return Reading(rejection="truncated" if truncated else "empty")
    text = re.sub(rf"(?m)^([ \t>]*(?:`{{3,}}|~{{3,}})){_SPECIAL}+[ \t]*$", r"\1", text)
    blocks, rest = read_blocks(text.rstrip())
    if not blocks:
        if truncated or fenced:
            return Reading(rejection="truncated" if truncated else "no_fence")
        whole = text.strip()
        return Reading(rejection=reason) if (reason := check_form(whole)) else Reading(whole)
    if not all(block.closed for block in blocks) and (truncated or blocks[-1].nested):
        return Reading(rejection="truncated" if truncated else "several_fences")
    filled = [block for block in blocks if block.text and block.language not in _THOUGHT_LANGUAGES]
    if not filled:
        return Reading(rejection="empty")
    if _may_be_nested(filled):
        return Reading(rejection="several_fences")
    block = _chosen(filled, drafts=not truncated)
    if block is None:
        return Reading(rejection="truncated" if truncated else "no_instruction")
    if truncated and (block.text.endswith(":") or re.search(_SECOND_THOUGHTS, rest, re.IGNORECASE)):
        return Reading(rejection="truncated")
    rejection = check_form(block.text, block.language)
    return Reading(rejection=rejection) if rejection else Reading(block.text)


def without_thoughts(text: str) -> str:
    """What stands behind the last thought; "" behind one without an end. Thoughts are known by their marks alone."""
    text = re.sub(rf"(?:{_SPECIAL}\s*){{1,9}}$", "", text.rstrip())
    if "<|channel|>" in text:
        return _behind_last(_FINAL_CHANNEL, text) or ""
    if _BARE_CHANNEL.match(text):
        return _behind_last(_BARE_FINAL, text) or ""
    for opening, closing in _THOUGHTS:
        behind = _behind_last(re.compile(closing, re.IGNORECASE), text)
        text = text if behind is None else behind
        if (begun := re.search(opening, text, re.IGNORECASE)) and not _within_block(text, begun.start()):
            text = text[: begun.start()]
    # Other tags are words as well, which an instruction may ask for: they mark a thought where they stand before it.
    while (tag := _OPENING_TAG.search(text)) and not re.search("```|~~~", text[: tag.start()]):
        end = re.compile(rf"</{tag[1]}\s*>", re.IGNORECASE).search(text, tag.end())
        text = text[: tag.start()] + (text[end.end() :] if end else "")
    return text


def _within_block(text: str, position: int) -> bool:
    """Whether a fence is open there: what stands in it is quoted, and is for the guard to judge."""
    blocks, _ = read_blocks(text[:position])
    return bool(blocks) and not blocks[-1].closed


def _behind_last(mark: re.Pattern[str], text: str) -> str | None:
    found = list(mark.finditer(text))
    return text[found[-1].end() :] if found else None


def _may_be_nested(blocks: Sequence[Block]) -> bool:
    """Whether blocks could as well be one with an example in it, fenced alike: where it ends is anybody's guess."""
    for block, following in pairwise(blocks):
        announced = bool(re.search(rf"{_NEW}|{_DRAFT}|{_OLD}|{_SAMPLE}", following.lead, re.IGNORECASE))
        if announced or following.language:
            continue
        between = following.between.strip()
        if block.text.endswith((":", ",")) or (re.match(r"[a-z(,.;]", following.text) and not between.endswith(":")):
            return True
        begun = not block.lead or re.search(_NEW, block.lead, re.IGNORECASE)
        if begun and between and not re.search(r"[.!?:…]$|^\W+$|\b(?:or|option|version)\b", between, re.IGNORECASE):
            return True
    return False


def _chosen(blocks: Sequence[Block], *, drafts: bool) -> Block | None:
    """The block that is meant as the instruction; None where all of them are something else.

    Args:
        drafts: whether a draft is as good as an instruction where nothing follows it.
    """

    def is_said_to_be(block: Block, what: str) -> bool:
        found = re.search(what, block.lead, re.IGNORECASE)
        return bool(found) and not re.search(_NEW, block.lead, re.IGNORECASE)

    present = rf"{_OLD}\W+(?:\w+\W+)?(?:instruction|prompt|template)|(?:instruction|prompt|template)s?\W+(?:was|were)\b"
    left = [block for block in blocks if not is_said_to_be(block, present)]
    for what in (_SAMPLE, _DRAFT):
        others = [block for block in left if not is_said_to_be(block, what)]
        if others or not drafts:
            left = others
    prose = [block for block in left if check_form(block.text, block.language) != "no_instruction"]
    usable = prose or left
    return usable[-1] if usable else None
