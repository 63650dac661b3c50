"""A scripted reflection model that always knows the right method, to compare with self-reflection."""

import random
import re

from p2o.pico.instructions import Instruction
from p2o.pico.methods import RIGHT_METHODS
from p2o.prompt_phase.types import Reflection
from p2o.seeding import derive_seed

# How reasoning-gym words the questions of each family.
_SIGNS = {
    "complex_arithmetic": re.compile(r"Multiply the complex numbers"),
    "complex_sum": re.compile(r"^Simplify ", re.MULTILINE),
    "basic_arithmetic": re.compile(r"^Calculate ", re.MULTILINE),
    "chain_sum": re.compile(r"State the final answer"),
}


def reflect(prompts: list[str], *, seed: int) -> list[Reflection]:
    """The right methods for two of the families in the request, and 'write every step'."""
    answers = []
    for index, prompt in enumerate(prompts):
        rng = random.Random(derive_seed(seed, "teacher", index))
        seen = [family for family, sign in _SIGNS.items() if sign.search(prompt)]
        named = rng.sample(seen, min(2, len(seen)))
        instruction = Instruction(qualified={family: RIGHT_METHODS[family][0] for family in named}, care=True)
        answers.append(Reflection(f"```\n{instruction.text(rng)}\n```"))
    return answers
