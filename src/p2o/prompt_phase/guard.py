"""The guard: templates that contain markup, an answer or a quoted question are rejected. Pure.

The reflection model sees gold answers, and completions that a model wrote. A template that contains an answer earns
reward on its feedback question and distils a memorised answer; one that contains a special token rewrites the chat.
"""

import re
from collections.abc import Collection, Sequence, Set
from typing import Literal

Rejection = Literal["empty", "no_fence", "too_long", "markup", "leaked_answer", "quoted_question", "duplicate"]

RUN = 6  # this many words of a question in a row are a quotation

_MARKUP = re.compile(
    r"<\|[^<>|\n]{1,60}\|>"  # ChatML, Llama 3, Phi, ours
    r"|<｜[^<>\n]{1,60}｜>"  # DeepSeek
    r"|</?(?:s|think|pad|unk|bos|eos|tool_call|tool_response)>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|^\s*(?:system|user|assistant|human)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?![\w])")
_ANNOUNCES = r"(?:answer|result|solution|say|says|reply|respond|output|return|write|give|is|equals?|=|:)\W{0,12}"


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
    number = _NUMBER.fullmatch(answer)
    if number:
        digits = answer.replace(",", "").replace("−", "-").lstrip("+")
        stated = [found.replace(",", "").replace("−", "-").lstrip("+") for found in _NUMBER.findall(template)]
        # "-14" is quoted by "14" as well: signs detach in prose such as "minus 14".
        if len(re.sub(r"\D", "", digits)) >= 2:
            return digits.lstrip("-") in {found.lstrip("-") for found in stated}
    elif len(answer) >= 4:
        return bool(re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", template.lower()))
    return bool(re.search(rf"\b{_ANNOUNCES}{re.escape(answer.lower())}(?!\w)", template.lower()))


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
    if _MARKUP.search(text) or any(token in text for token in special_tokens if token.strip()):
        return "markup"
    if any(leaks_answer(text, answer) for _, answer in questions):
        return "leaked_answer"
    quoted = _runs(text)
    if any((_runs(question) & quoted) - stock for question, _ in questions):
        return "quoted_question"
    return None
