"""The verdicts of TRL 1.16's `trl.rewards.accuracy_reward`, in the workers, which import neither trl nor torch.

The same calls of math-verify with the same configurations; a test holds the two together.
"""

from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from p2o.verifiers.answers import GoldError

_COMPLETION = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
]


def score(completion: str, job: dict[str, Any]) -> tuple[float | None, str | None]:
    """Reward, 0 without an answer as in TRL, and the answer found."""
    gold = parse(job["solution"], parsing_timeout=None)
    if not gold:
        raise GoldError("TRL's accuracy_reward cannot parse it, and skips the question")
    found = parse(completion, _COMPLETION, extraction_mode="first_match", parsing_timeout=None)
    extracted = next((item for item in found if isinstance(item, str)), None)
    return float(verify(gold, found, timeout_seconds=None)), extracted
