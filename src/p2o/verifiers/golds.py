r"""Recognizes gold answers that no completion can match. Pure string functions."""

import re

from p2o.verifiers.answers import gold_answer
from p2o.verifiers.choices import unstyled

_NOTHING = re.compile(
    r"n/?a|nan|null|none given|not (?:given|found|provided|available|applicable)|unknown|unanswered|omitted|tbd|todo|"
    r"\?+|-+|no (?:final )?answer(?: (?:given|provided|available|found))?|answers? (?:may |will )?var(?:y|ies)"
)
_PROOF = re.compile(
    r"(?:the )?proof(?: (?:is )?(?:completed?|omitted|given|shown|above|below))?|(?:hence )?prove[nd]|shown|"
    r"q\.?\s?e\.?\s?d\.?|as (?:required|desired|was to be shown)|(?:the )?statement is proved|\\blacksquare|\\square"
)
_ELSEWHERE = re.compile(
    r"(?:please )?(?:see|refer to|look at|as shown in|shown in)\s+(?:the\s+|in\s+|to\s+)*(?:\w+\s+)?(?:figure|fig\b|"
    r"diagram|graph|picture|image|drawing|table|solution|explanation|proof|above|below|attached|text|plot|work)"
)
_TASK = re.compile(
    r"(?:prove|show|explain|draw|sketch|describe|justify|construct|derive|verify|discuss|demonstrate|plot|graph)\s+"
    r"(?:that|the|why|how|an?|your|it|this)\b"
)


def unmatchable(solution: str) -> str | None:
    """Why no completion can match this gold answer; None if one can.

    Proofs, references to a figure, sentences, placeholders for a missing answer. A word, a name, a letter, yes and no,
    or a worked solution that boxes an answer are none of these.
    """
    answer = gold_answer(solution)
    text = unstyled(solution if answer is None else answer)
    text = re.sub(r"\s+", " ", text.replace("$", "").replace(r"\boxed", "")).strip("{} .!:;*#\n").lower()
    if not text:
        return "it is empty"
    if _PROOF.fullmatch(text) or re.match(r"proof\s*[.:]", text):
        return "it is a proof, which no verifier can judge"
    if _NOTHING.fullmatch(text):
        return "it says that there is no answer"
    if _ELSEWHERE.match(text):
        return "it refers to something that is not in the data"
    if _TASK.match(text):
        return "it is a task and not an answer"
    # Mathematics, or a number, may be what is asked for.
    most = 5 if re.search(r"[;.]\s", text) else 7  # words; "the second player has a winning strategy" is an answer
    if not re.search(r"[\d$\\=<>^_+|]", text) and len(re.findall(r"[^\W\d_]+", text)) > most:
        return "it is a sentence and not an answer"
    return None
