"""A user's own module: questions that are answered in prose, the reward, the feedback, and who reflects."""

import json
import math
import re

from p2o.prompt_phase.types import Reflection

INSTRUCTION = "Answer in French."


def write_questions(path, pairs=((30, 25), (12, 18), (14, 21), (40, 16))):
    """JSON Lines with a chat and a gold answer each."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is the GCD of {a} and {b}?"}],
            "solution": str(math.gcd(a, b)),
        }
        for a, b in pairs
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows


def says_it_in_french(completions, solution, **columns):
    """1 for prose in French that ends with the right number, less for other prose in French, 0 for anything else."""
    rewards = []
    for completion, gold in zip(completions, solution, strict=True):
        text = completion[-1]["content"]
        said = re.search(r"(\d+)\W*$", text)
        french = re.findall(r"\b(?:la|le|les|des?|du|une?|et|est|en|à)\b|\bl'", text, re.IGNORECASE)
        rewards.append(0.0 if not french else 1.0 if said and said[1] == gold else 0.1 * min(len(french), 9))
    return rewards


def states_the_number(completions, solution, **columns):
    """1 where the sentence ends with the right number: "The GCD of 30 and 25 is 5."."""
    found = [re.search(r"is (\d+)\W*$", completion[-1]["content"]) for completion in completions]
    return [float(bool(said) and said[1] == gold) for said, gold in zip(found, solution, strict=True)]


def feedback(completion, row):
    return f"Wanted is a sentence in French that ends with {row['solution']}."


def reflect(prompts, *, seed):
    return [Reflection(f"```\n{INSTRUCTION}\n```") for _ in prompts]
