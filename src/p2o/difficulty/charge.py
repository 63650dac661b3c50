"""Rollouts that P²O is charged for one epoch, estimated from a forecast of its groups. Pure."""

from dataclasses import dataclass

from p2o.difficulty.groups import GroupForecast
from p2o.prompt_phase.budget import dev_size, metric_call_budget
from p2o.prompt_phase.options import BudgetOptions


@dataclass(frozen=True)
class EpochCharge:
    """Rollouts of the first epoch, whose rollouts are all bare, and of the prompt phase that follows it.

    Args:
        hard: questions that are expected to be in the hard set.
        policy: rollouts of the policy phase.
        prompt: the budget of the prompt phase; 0 where the hard set is too small for one.
        reflections: at most so many; they count like rollouts.
    """

    hard: int
    policy: int
    prompt: int
    reflections: int

    @property
    def total(self) -> int:
        return self.policy + self.prompt + self.reflections


def epoch_charge(questions: int, scored: int, expected: GroupForecast, options: BudgetOptions) -> EpochCharge:
    """The charge of an epoch in which each question has one group.

    Reflections are bounded as if no candidate were accepted: each is preceded and followed by rollouts of its
    minibatch, once the empty template is scored on the dev questions. Rollouts that compare templates before they are
    used (`selection_margin`) are not in it: how many templates would be compared is not known.

    Args:
        questions: all that are trained on.
        scored: those whose rollouts can be scored; the others are sampled, too, but are no evidence.
        expected: the groups of `num_generations` rollouts.
    """
    hard = round(scored * expected.hard(near_hard=options.near_hard))
    prompt = reflections = 0
    if hard >= options.min_hard_questions:
        dev = dev_size(hard, options.max_dev_questions)
        budget = metric_call_budget(options.evolution_calls, dev)
        if budget > dev:  # otherwise it would not score the empty template, and there is no prompt phase
            prompt, reflections = budget, (budget - dev) // (2 * options.feedback_minibatch_size)
    return EpochCharge(hard, questions * expected.size, prompt, reflections)
