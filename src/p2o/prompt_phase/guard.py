"""The guard: templates that are none, or contain markup, an answer or a quoted question, are rejected. Pure.

The reflection model sees gold answers, and completions that a model wrote. A template that contains an answer earns
reward on its feedback question and distils a memorised answer; one that contains a special token rewrites the chat.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Sequence, Set
from typing import Literal

from p2o.prompt_phase.numbers import stated_numbers, states_a_result

Rejection = Literal[
    "empty",
    "truncated",
    "no_fence",
    "several_fences",
    "no_instruction",
    "too_long",
    "markup",
    "leaked_answer",
    "quoted_question",
    "duplicate",
]

RUN = 6  # this many words of a question in a row are a quotation

_MARKUP = re.compile(
    r"<\|[^<>\n]{1,60}\|?>|<[^<>|\n]{1,60}\|>"  # ChatML, Llama 3, Phi, Gemma 4, ours
    r"|<｜[^<>\n]{1,60}｜>"  # DeepSeek
    r"|</?(?:\w+:)?(?:s|think|thinking|thoughts?|pad|unk|bos|eos|mask|tool_calls?|tool_response|image)>"
    r"|<(?:start|end)_of_(?:turn|image)>|<(?:unused|extra_id_)\d+>|<0x[0-9a-f]{2}>"
    r"|\[/?(?:INST|THINK|TOOL_CALLS|AVAILABLE_TOOLS|SYSTEM_PROMPT|IMG|BOS|EOS|PAD|CLS|SEP|MASK)\]|<</?SYS>>|◁/?think▷"
    r"|(?<!\S)/(?:no_?)?think\b"  # Qwen3's and GLM's switches
    r"|^[ \t#*_>]*(?:system|user|assistant|human)[ \t*_]*:",
    re.IGNORECASE | re.MULTILINE,
)
_PLACEHOLDER = re.compile(
    r"(?:<[^<>]*>|\[[^\[\]]*\]|\{+[^{}]*\}+|\(?(?:the |your |my )?(?:new |improved |revised |updated |final )*"
    r"(?:instructions?|prompt|template)(?: text)?(?: (?:goes |comes )?here)?\)?|(?:insert|put|write) .{0,40} here"
    r"|none|n/?a|null|nil|nothing|todo|tbd|empty|unchanged|same(?: as (?:before|above))?|no changes?(?: needed)?)\W*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:i['’]?m |i am )?(?:very |so |truly )?(?:sorry|afraid)\b.{0,20}\b(?:i|but|can|cannot)\b|i apologi[sz]e"
    r"|unfortunately,? i\b|as an? (?:ai|large|language)\b"
    r"|i(?: can(?:no|['’])t| am (?:not able|unable)|['’]m (?:not able|unable))\b",
    re.IGNORECASE,
)
_ECHO = re.compile(
    r"^# Example \d+\s+## Question|^## (?:Question|Answer given|Feedback)\s*$"
    r"|I provided an assistant with the following|Your task is to write a new instruction"
    r"|Provide the new instructions? within",
    re.IGNORECASE | re.MULTILINE,
)
_CODE_LANGUAGES = frozenset(
    "bash c c++ console cpp csharp css diff go html java javascript js php r ruby rust sh shell sql typescript".split()
)
_ONE_QUESTION = re.compile(
    r"\b(?:when(?:ever)?|if|once) (?:you are |you're )?asked\b[^.\n]*?"
    r"\b(?:how (?:many|much|long|far|old)|what|which|who|where|when)\b([^,.;:\n]*)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_ANNOUNCES = r"(?:answer|result|solution|say|says|reply|respond|output|return|write|give|is|equals?|=|:)\W{0,12}"
_GENERAL = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 60, 90, 100, 180, 360, 1000}  # numbers that many questions have


def words(text: str) -> list[str]:
    """Words, numbers and signs in lower case; scripts without spaces character by character."""
    return _WORD.findall(text.lower())


def stock_runs(questions: Sequence[tuple[str, str]]) -> set[tuple[str, ...]]:
    """Runs of `RUN` words that questions with different answers share: their common wording, which quotes none.

    Args:
        questions: text and gold answer of each.
    """
    seen: dict[tuple[str, ...], str] = {}
    stock: set[tuple[str, ...]] = set()
    for text, answer in questions:
        for run in _runs(text):
            if seen.setdefault(run, answer) != answer:
                stock.add(run)
    return stock


def _runs(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)}


def leaks_answer(template: str, answer: str) -> bool:
    """Whether the template quotes the gold answer.

    A number of two digits or more, and any text of four characters or more, leaks wherever it stands by itself. Shorter
    ones ("2", "yes", "B") are part of ordinary prose and leak only right after a word that announces an answer.
    """
    answer = answer.strip().strip("$.").strip()
    if not answer:
        return False
    number = re.fullmatch(r"[-+−]?\d[\d,]*(?:\.\d+)?", answer)
    if number:
        # "-14" is quoted by "14" as well: signs detach in prose such as "minus 14".
        value = abs(float(answer.replace(",", "").replace("−", "-")))
        if len(re.sub(r"\D", "", answer)) >= 2:
            return value in {abs(stated) for stated in stated_numbers(template)}
    elif len(answer) >= 4:
        return bool(re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", template.lower()))
    return bool(re.search(rf"\b{_ANNOUNCES}{re.escape(answer.lower())}(?!\w)", template.lower()))


def check_form(text: str, language: str = "") -> Rejection | None:
    """Why this may not become a template whatever the question, or None.

    Args:
        language: that its fence names, in lower case.
    """
    text = text.strip()
    if not any(character.isalnum() for character in text):
        return "empty" if not text else "no_instruction"
    if _PLACEHOLDER.fullmatch(text) or _REFUSAL.match(text) or _ECHO.search(text) or _is_code(text, language):
        return "no_instruction"
    if _MARKUP.search(text) or _has_hidden_characters(text):
        return "markup"
    if states_a_result(text):
        return "leaked_answer"
    asked = _ONE_QUESTION.findall(text)
    if any(abs(number) not in _GENERAL for about in asked for number in stated_numbers(about)):
        return "quoted_question"
    return None


def _is_code(text: str, language: str) -> bool:
    if language in ("py", "python", "python3"):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            return False
        return True
    if language in _CODE_LANGUAGES:
        return True
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _has_hidden_characters(text: str) -> bool:
    """Control characters, directions, spaces without width, halves of pairs; joiners between letters are not hidden."""
    for before, character, after in zip(" " + text, text, text[1:] + " ", strict=False):
        category = unicodedata.category(character)
        joins = character in "\u200c\u200d" and not before.isascii() and not after.isascii()
        if character == "\ufffd" or (category in ("Cc", "Cf", "Cs", "Co") and character not in "\n\t" and not joins):
            return True
    return False


def check_template(
    text: str,
    *,
    questions: Sequence[tuple[str, str]],
    max_length: int,
    special_tokens: Collection[str] = (),
    stock: Set[tuple[str, ...]] = frozenset(),
) -> Rejection | None:
    """Why this reflection may not become a template, or None.

    Args:
        text: the proposed instruction.
        questions: text and gold answer of the feedback questions its reflection saw.
        max_length: longest template, in characters.
        special_tokens: the tokenizer's.
        stock: see [`stock_runs`].
    """
    text = text.strip()
    if not text:
        return "empty"
    if len(text) > max_length:
        return "too_long"
    if any(token in text for token in special_tokens if token.strip()):
        return "markup"
    if (reason := check_form(text)) is not None:
        return reason
    if any(leaks_answer(text, answer) for _, answer in questions):
        return "leaked_answer"
    quoted = _runs(text)
    if any((_runs(question) & quoted) - stock for question, _ in questions):
        return "quoted_question"
    return None
