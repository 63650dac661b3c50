"""Which part of an answer is what: computation, deliberation, a conclusion after either, or an answer given at once.

Read off the text by rules, which a user may replace. Those of the embedded world are in [`p2o.pico.spans`].
"""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

COMPUTATION, DELIBERATION, CONCLUSION, DIRECT = "computation", "deliberation", "conclusion", "direct answer"
KINDS = (COMPUTATION, DELIBERATION, CONCLUSION, DIRECT)


class Span(NamedTuple):
    """Characters `start` to `end`, the latter excluded, of a completion."""

    kind: str
    start: int
    end: int


SpanFn = Callable[[str], list[Span]]
"""`spans(completion)`: its spans, which do not overlap; characters in none of them count nowhere."""

_NUMBER = r"[-−(]?\$?\d[\d.,]*\)?"
_COMPUTATION = re.compile(rf"{_NUMBER}(?:\s*(?:[-+*/^×·÷−]|\\times|\\cdot|\\div)\s*{_NUMBER})+\s*=\s*{_NUMBER}")
_DELIBERATION = re.compile(
    r"\b(?:wait|hmm|let me|let's|let us|alternatively|instead|actually|first,|check|verify|recall|suppose|"
    r"we (?:need|want|have) to|I (?:need|want|have) to|should|plan|step by step|think)\b",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\\boxed\{|^\W*(?:final )?answer\W*:|^####|\btherefore\b|\bthe answer is\b", re.IGNORECASE | re.M
)
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|\n|$)|[.!?\n]+")


def text_spans(text: str) -> list[Span]:
    """Spans of any answer: equations are computation; of the sentences without one, those that conclude, or deliberate.

    An answer with neither computation nor deliberation is a direct answer as a whole.
    """
    found: list[Span] = []
    for sentence in _SENTENCE.finditer(text):
        equations = [Span(COMPUTATION, *each.span()) for each in _COMPUTATION.finditer(text, *sentence.span())]
        if equations:
            found += equations
        elif _CONCLUSION.search(sentence[0]):
            found.append(Span(CONCLUSION, *sentence.span()))
        elif _DELIBERATION.search(sentence[0]):
            found.append(Span(DELIBERATION, *sentence.span()))
    if not any(span.kind in (COMPUTATION, DELIBERATION) for span in found):
        return [Span(DIRECT, 0, len(text))] if text.strip() else []
    return found


def token_kinds(tokenizer: Any, ids: Sequence[int], text: str, spans: Sequence[Span]) -> list[str | None]:
    """The kind of each token, by the span that its first character is in; None where it is in none.

    Args:
        ids: of the completion.
        text: of the completion, without special tokens, as `ids` decode.
    """
    pieces = [len(piece) for piece in tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=True)]
    ends = list(accumulate(pieces))
    if ends and ends[-1] != len(text):  # some tokens are parts of a character, or read differently alone
        ends = [len(tokenizer.decode(ids[: place + 1], skip_special_tokens=True)) for place in range(len(ids))]
    kinds: list[str | None] = []
    for start, end in zip([0, *ends], ends, strict=False):
        kinds.append(next((span.kind for span in spans if start < end and span.start <= start < span.end), None))
    return kinds
