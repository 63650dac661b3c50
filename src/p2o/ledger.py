"""Rollouts, tokens and cost by purpose, prompt phases included."""

from dataclasses import dataclass, field
from typing import Literal, get_args

Purpose = Literal["policy", "evolution_feedback", "evolution_dev", "reflection", "evaluation"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def _zeros() -> dict[str, int]:
    return dict.fromkeys(PURPOSES, 0)


@dataclass
class Ledger:
    """Spending over all processes; part of every checkpoint, so that a resumed run counts nothing twice.

    Args:
        rollouts: generated completions by purpose; a reflection is one.
        prompt_tokens: tokens read in order to generate them, templates included.
        completion_tokens: tokens generated.
        reflection_cost: US dollars paid to reflection endpoints, as far as prices are known.
        forward_tokens: prompt and completion tokens of passes without a gradient: old and reference log-probabilities,
            the context ratio, evaluation losses.
        forward_backward_tokens: prompt and completion tokens of passes with a gradient.
    """

    rollouts: dict[str, int] = field(default_factory=_zeros)
    prompt_tokens: dict[str, int] = field(default_factory=_zeros)
    completion_tokens: dict[str, int] = field(default_factory=_zeros)
    reflection_cost: float = 0.0
    forward_tokens: int = 0
    forward_backward_tokens: int = 0

    def add(self, purpose: Purpose, rollouts: int, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        self.rollouts[purpose] += rollouts
        self.prompt_tokens[purpose] += prompt_tokens
        self.completion_tokens[purpose] += completion_tokens

    def add_pass(self, tokens: int, *, backward: bool) -> None:
        """Counts a forward pass over existing tokens, with a backward pass or without."""
        if backward:
            self.forward_backward_tokens += tokens
        else:
            self.forward_tokens += tokens

    def merge(self, other: "Ledger") -> None:
        for purpose in PURPOSES:
            self.add(purpose, other.rollouts[purpose], other.prompt_tokens[purpose], other.completion_tokens[purpose])
        self.reflection_cost += other.reflection_cost
        self.forward_tokens += other.forward_tokens
        self.forward_backward_tokens += other.forward_backward_tokens

    @property
    def metric_calls(self) -> int:
        """Rollouts of evolution on questions."""
        return self.rollouts["evolution_feedback"] + self.rollouts["evolution_dev"]

    @property
    def total_rollouts(self) -> int:
        """Everything generated in order to train: all purposes but evaluation."""
        return sum(count for purpose, count in self.rollouts.items() if purpose != "evaluation")
