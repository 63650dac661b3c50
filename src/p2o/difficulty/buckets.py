"""Hard, medium, easy: the bucket of a question by its successes. Pure.

"Mechanistically Interpreting the Role of Sample Difficulty in RLVR for LLMs" (arXiv 2605.28388) sorts questions by
pass@k of the base model, with k the group size: hard is none of 8. Its other cut-offs are not printed. Ours, both of
them options: hard is a pass rate of 0, and easy one of 3/4 or more, 6 of 8. From there on the variance p(1 − p) of a
rollout's reward, and with it the signal of a group, is at most three quarters of its largest value.
"""

from dataclasses import dataclass

from p2o.prompt_phase.hard_samples import Outcome

HARD, MEDIUM, EASY = "hard", "medium", "easy"
BUCKETS = (HARD, MEDIUM, EASY)
UNSCORED = "unscored"


@dataclass(frozen=True)
class Cutoffs:
    """Pass rates at which buckets end. What lies between the two is medium.

    Args:
        hard_at_most: the greatest pass rate of a hard question, in [0, 1].
        easy_at_least: the least pass rate of an easy question, in (hard_at_most, 1].

    Raises:
        ValueError: cut-offs out of their range or order.
    """

    hard_at_most: float = 0.0
    easy_at_least: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.hard_at_most < self.easy_at_least <= 1:
            raise ValueError(
                f"The cut-offs hard_at_most={self.hard_at_most:g} and easy_at_least={self.easy_at_least:g} are out of "
                "order: choose them so that 0 ≤ hard_at_most < easy_at_least ≤ 1."
            )

    def bucket(self, outcome: Outcome) -> str:
        """One of [`BUCKETS`], by the rollouts that were scored; `UNSCORED` where none was, which is not hard."""
        if not outcome.rollouts:
            return UNSCORED
        rate = outcome.successes / outcome.rollouts
        return HARD if rate <= self.hard_at_most else EASY if rate >= self.easy_at_least else MEDIUM

    def __str__(self) -> str:
        hard = "none succeeds" if not self.hard_at_most else f"at most {self.hard_at_most:.0%} succeed"
        return f"hard: {hard}; easy: at least {self.easy_at_least:.0%} succeed; medium: the rest"
