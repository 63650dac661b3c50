"""A scripted reflection model that always knows the right method, to compare with self-reflection."""

import random
import re

from p2o.pico.instructions import Instruction
from p2o.pico.world import RIGHT_METHOD
from p2o.prompt_phase.types import Reflection
from p2o.seeding import derive_seed

# How reasoning-gym words the questions of each family.
_SIGNS = {
    "leg_counting": re.compile(r"how many legs"),
    "complex_arithmetic": re.compile(r"complex numbers"),
    "basic_arithmetic": re.compile(r"^Calculate ", re.MULTILINE),
    "chain_sum": re.compile(r"State the final answer"),
}


def reflect(prompts: list[str], *, seed: int) -> list[Reflection]:
    """For each family in the request: its right method and 'write every step'."""
    answers = []
    for index, prompt in enumerate(prompts):
        rng = random.Random(derive_seed(seed, "teacher", index))
        seen = [family for family, sign in _SIGNS.items() if sign.search(prompt)]
        instruction = Instruction(qualified={family: RIGHT_METHOD[family] for family in seen}, care=True)
        answers.append(Reflection(f"```\n{instruction.text(rng)}\n```"))
    return answers
