"""math-verify's judgement, for the workers only: its own time-outs are off here, since a worker can be killed.

A completion's answer is what math-verify finds in its last `\\boxed{…}`, or in LaTeX after "final answer is" and the
like, as in `trl.rewards.accuracy_reward`. The last box wins, or the enumeration of boxes that ends with it.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from math_verify import verify as equal

from p2o.verifiers.answers import GoldError, around_last_boxes

_NORMALIZATION = NormalizationConfig(units=True, boxed="last")
COMPLETION = [
    LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=_NORMALIZATION)
]
GOLD = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

# It warns that somebody else has to see to time-outs. Somebody does.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def gold_text(solution: str) -> str:
    """A bare answer such as `\\frac{1}{2}` or `x^2 + 1`, of which plain parsing would see a number or nothing, boxed.

    Text with LaTeX delimiters or words such as "the answer is" is left for math-verify to search.
    """
    if re.search(r"\\boxed|\\fbox|\$|\\\(|\\\[|(?i:\banswer\b)", solution):
        return solution
    return rf"\boxed{{{solution}}}"


@lru_cache(maxsize=4096)
def parse_gold(solution: str) -> list[Any]:
    """
    Raises:
        GoldError: math-verify can make nothing of it.
    """
    try:
        found: list[Any] = parse(gold_text(solution), GOLD, parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception as error:  # as below
        raise GoldError(f"math-verify cannot parse it ({type(error).__name__})") from None
    if all(isinstance(item, str) for item in found):
        raise GoldError("math-verify cannot parse it")
    return found


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    """Reward (None without an answer) and the answer found."""
    return _judge(around_last_boxes(completion), job["solution"])


# Rollouts of one question end alike more often than not.
@lru_cache(maxsize=4096)
def _judge(text: str, solution: str) -> tuple[float | None, str | None]:
    gold = parse_gold(solution)
    try:
        found = parse(text, COMPLETION, extraction_mode="first_match", parsing_timeout=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:  # whatever sympy and its parsers raise over an untrusted string means that it is no answer
        found = []
    if not found or found == [""]:
        return None, None
    # Not str() of the expression: that alone can take forever.
    extracted = next((item for item in found if isinstance(item, str)), "")
    return float(equal(gold, found, timeout_seconds=None)), extracted
