"""Options of mining and evolution, the same for `P2OConfig` and for `p2o evolve`. Pure."""

from dataclasses import dataclass, field

from p2o.options import check_ranges
from p2o.prompt_phase.budget import parse_budget
from p2o.prompt_phase.types import EvolutionConfig


@dataclass
class BudgetOptions:
    """Which questions are hard, and what a prompt phase for them may spend."""

    near_hard: bool = field(
        default=True,
        metadata={
            "help": "Whether questions with exactly one success among their rollouts join the hard set, beside those "
            "with none."
        },
    )
    min_hard_questions: int = field(
        default=100,
        metadata={
            "help": "The prompt phase is skipped, and the next epoch untemplated, when the hard set is smaller than "
            "this. At least 2: one question to reflect on and one to judge by."
        },
    )
    max_dev_questions: int = field(
        default=300,
        metadata={
            "help": "Hard questions kept apart for scoring templates. Half of the hard set when it is smaller than "
            "one and a half times this."
        },
    )
    evolution_budget: str = field(
        default="light",
        metadata={
            "help": "Rollouts one prompt phase may spend: a preset ('light', 'medium', 'heavy', 'heavy_4'; the paper "
            "uses 'heavy_4') that grows with the dev set, or a number. Every rollout counts, one that is known "
            "already included."
        },
    )
    feedback_minibatch_size: int = field(
        default=3,
        metadata={"help": "Feedback questions a parent is tried on before and after reflection."},
    )

    def check_budget(self) -> None:
        """
        Raises:
            ValueError: an option out of its range, naming it and what it may be.
        """
        parse_budget("evolution_budget", self.evolution_budget)
        self.evolution_budget = str(self.evolution_budget)  # YAML has it as a number
        check_ranges(self, {"min_hard_questions": 2, "max_dev_questions": 1, "feedback_minibatch_size": 1})

    @property
    def evolution_calls(self) -> str | int:
        """The budget as evolution takes it: a preset's name or a number of rollouts."""
        return parse_budget("evolution_budget", self.evolution_budget)


@dataclass
class EvolutionOptions(BudgetOptions):
    """Which questions are hard, and how templates for them are evolved."""

    parents_per_iteration: int = field(
        default=16,
        metadata={"help": "Distinct parents drawn from the Pareto front in one iteration of evolution."},
    )
    max_template_length: int = field(
        default=2000,
        metadata={"help": "Longest template, in characters. Longer reflections are rejected and counted."},
    )

    selection_margin: float | None = field(
        default=None,
        metadata={
            "help": "What a template has to be better by to come into use: its solve rate on the dev questions above "
            "the empty template's, in [0, 1), in rollouts made again for those that would be selected. Not set: the "
            "paper's rule, by which one lucky rollout is enough."
        },
    )
    selection_rollouts: int = field(
        default=4,
        metadata={
            "help": "Rollouts of every dev question for that, under each template that would be selected and under "
            "none. They come on top of `evolution_budget`, and count."
        },
    )

    def check_evolution(self) -> None:
        """
        Raises:
            ValueError: an option out of its range, naming it and what it may be.
        """
        self.check_budget()
        ranges: dict[str, float | str] = {
            "parents_per_iteration": 1,
            "max_template_length": 1,
            "selection_rollouts": 1,
            "selection_margin": "[0, 1)",
        }
        check_ranges(self, ranges)

    def evolution_config(self, *, wording: str | None, max_metric_calls: int | None = None) -> EvolutionConfig:
        """The settings of one prompt phase.

        Args:
            wording: of reflection prompts; GEPA's own when None.
            max_metric_calls: what is left of a run's rollouts; no limit when None.
        """
        return EvolutionConfig(
            budget=self.evolution_calls,
            max_metric_calls=max_metric_calls,
            parents_per_iteration=self.parents_per_iteration,
            feedback_minibatch_size=self.feedback_minibatch_size,
            max_dev_questions=self.max_dev_questions,
            max_template_length=self.max_template_length,
            selection_margin=self.selection_margin,
            selection_rollouts=self.selection_rollouts,
            reflection_prompt_template=wording,
        )


@dataclass
class HintOptions:
    """Hints from worked solutions, in place of evolved templates."""

    hint_column: str | None = field(
        default=None,
        metadata={
            "help": "Dataset column with worked solutions. A hard question's template is then a hint, the beginning of "
            "its worked solution, and nothing is evolved (`prompt_phase=False`). Reward functions do not get the "
            "column, unless it is `solution_column`."
        },
    )
    hint_parts: int = field(
        default=4,
        metadata={
            "help": "In how many parts a worked solution is shown: the first hint is one of them, and each group that "
            "fails under a hint gets one more in the next epoch."
        },
    )
    hint_shows_answer: bool = field(
        default=False,
        metadata={
            "help": "Whether a hint may show the gold answer and the last step. `False`: it ends before the first step "
            "in which the answer stands, and before the last."
        },
    )

    def check_hints(self, evolves: bool) -> None:
        """
        Args:
            evolves: whether there are prompt phases.

        Raises:
            ValueError: an option out of its range, or hints beside evolved templates.
        """
        check_ranges(self, {"hint_parts": 1})
        if self.hint_column is not None and evolves:
            raise ValueError(
                f"hint_column={self.hint_column!r} takes the place of evolved templates: set prompt_phase=False too."
            )
