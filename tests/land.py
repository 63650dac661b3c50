"""A made-up policy for evolution on the real gepa: which questions an instruction solves is known."""

import random

from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.types import EvolutionConfig, Question, Reflection, Rollout


class Land:
    """A world in three lines: a question of kind a or b is solved by a template with its letter in it.

    Rollouts and reflections answer by their seed alone, as a sampling model with a named stream does.
    """

    def __init__(self, reflections=("Use A.", "Use B.", "Use A. Use B.", "Hm."), fail_at=None):
        self.calls, self.reflections, self.fail_at = [], reflections, fail_at
        self.batches_of_questions = []

    def rollout(self, requests, *, seed):
        self._count("rollouts", len(requests), seed)
        self.batches_of_questions.append({question.id for question, _ in requests})
        rng = random.Random(seed)
        rollouts = []
        for question, template in requests:
            solved = question.text[-1] in template and rng.random() < 0.9
            said, feedback = f"said {rng.random():.3f}", "Right." if solved else "Wrong."
            rollouts.append(Rollout(said, float(solved), solved, feedback, 10 + len(template), 5))
        return rollouts

    def reflect(self, prompts, *, seed):
        self._count("reflection", len(prompts), seed)
        rng = random.Random(seed)
        return [Reflection(f"```\n{rng.choice(self.reflections)}\n```", 100, 20) for _ in prompts]

    def _count(self, kind, size, seed):
        if len(self.calls) == self.fail_at:
            raise RuntimeError("killed")
        self.calls.append((kind, size, seed))


QUESTIONS = [Question(i, f"question {i} of kind {'AB'[i % 2]}", str(1000 + i)) for i in range(20)]
CONFIG = EvolutionConfig(budget=200, parents_per_iteration=4)


def run(land, tmp_path, config=CONFIG, questions=QUESTIONS, **changes):
    options = {"seed": 0, "epoch": 1, "run_dir": tmp_path, **changes}
    return evolve(questions, land.rollout, land.reflect, config, **options)


def always(answer, config, tmp_path):
    """Evolution whose every reflection is this answer."""

    def reflect(prompts, *, seed):
        return [Reflection(answer)] * len(prompts)

    return evolve(QUESTIONS, Land().rollout, reflect, config, seed=0, epoch=1, run_dir=tmp_path)
