"""math-verify's judgement, for the workers only: its own time-outs are off here, since a worker can be killed.

A completion's answer is what math-verify finds in its last `\\boxed{…}`, or in LaTeX after "final answer is" and the
like, as in `trl.rewards.accuracy_reward`. The last box wins, or the enumeration of boxes that ends with it. Rules for
what math-verify cannot read (`rules.pays`), and for what it must not pay (`rules.refuses`), stand around its verdict.
"""

import logging
import re
from functools import lru_cache
from typing import Any, NamedTuple

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from math_verify import verify as equal

from p2o.verifiers.answers import GoldError, around_last_boxes, gold_answer, last_boxes
from p2o.verifiers.golds import unmatchable
from p2o.verifiers.notation import constants, scientific
from p2o.verifiers.rules import pays, readable, refuses

_NORMALIZATION = NormalizationConfig(units=True, boxed="last")
COMPLETION = [
    LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=_NORMALIZATION)
]
GOLD = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

_MISTAKABLE = re.compile(r"\d[eE][-+\d]|\\mathrm|\\rm|\\text\s*\{\s*[ei]\s*\}")
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_PER_CENT = re.compile(r"\}[\s$]*(?:\\?%|[Pp]er ?cent|[Pp]ct)(?![a-zA-Z])(?![^{]*\})")

# It warns that somebody else has to see to time-outs. Somebody does.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class Gold(NamedTuple):
    """A gold answer as text, and as what math-verify reads (empty where only our rules can read it)."""

    text: str
    parsed: list[Any]


def gold_text(solution: str) -> str:
    """A bare answer such as `\\frac{1}{2}` or `x^2 + 1`, of which plain parsing would see a number or nothing, boxed.

    Text with LaTeX delimiters or words such as "the answer is" is left for math-verify to search.
    """
    if re.search(r"\\boxed|\\fbox|\$|\\\(|\\\[|(?i:\banswer\b)", solution):
        return solution
    return rf"\boxed{{{solution}}}"


@lru_cache(maxsize=4096)
def parse_gold(solution: str) -> Gold:
    """
    Raises:
        GoldError: nothing can be made of it, or nobody can be paid for it.
    """
    if reason := unmatchable(solution):
        raise GoldError(reason)
    answer = gold_answer(solution)
    text = rf"\boxed{{{answer}}}" if answer is not None and "####" in solution else gold_text(solution)
    try:
        found: list[Any] = parse(_unmistakable(text), GOLD, parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception as error:  # as below
        raise GoldError(f"math-verify cannot parse it ({type(error).__name__})") from None
    if answer is None:
        answer = next((item for item in reversed(found) if isinstance(item, str)), solution)
    if all(isinstance(item, str) for item in found):
        if not readable(answer):
            raise GoldError("math-verify cannot parse it")
        found = []
    return Gold(answer, found)


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    """Reward (None without an answer) and the answer found."""
    return _judge(around_last_boxes(completion), job["solution"])


# Rollouts of one question end alike more often than not.
@lru_cache(maxsize=4096)
def _judge(text: str, solution: str) -> tuple[float | None, str | None]:
    gold = parse_gold(solution)
    boxed = last_boxes(text)
    if boxed is not None:
        if _PER_CENT.search(text):
            boxed += r"\%"
        if (verdict := _at_a_glance(gold, boxed)) is not None:
            return float(verdict), boxed
    try:
        found = parse(
            _unmistakable(text), COMPLETION, extraction_mode="first_match", parsing_timeout=None, raise_on_error=True
        )
    except MemoryError:
        raise
    except Exception:  # whatever sympy and its parsers raise over an untrusted string means that it is no answer
        found = []
    # Not str() of the expression: that alone can take forever.
    extracted = next((item for item in found if isinstance(item, str)), "") or boxed or ""
    if not extracted and (not found or found == [""]):
        return None, None
    answer = extracted if boxed is None else boxed
    if equal(gold.parsed, found, timeout_seconds=None):
        return float(not refuses(gold.text, answer, gold.parsed, found)), extracted
    return float(pays(gold.text, answer)), extracted


def _at_a_glance(gold: Gold, answer: str) -> bool | None:
    """The verdict where reading the answer as mathematics could add nothing: the same text, or two whole numbers."""
    if not gold.parsed:
        return None
    if gold.text == answer:
        return True
    return int(gold.text) == int(answer) if _WHOLE.fullmatch(gold.text) and _WHOLE.fullmatch(answer) else None


def _unmistakable(text: str) -> str:
    """Without what math-verify reads, but as something else: 1e-7 as a multiple of e, an upright i as a unit."""
    return constants(scientific(text)) if _MISTAKABLE.search(text) else text
