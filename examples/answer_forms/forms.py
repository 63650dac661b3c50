"""Questions whose answers must have a form that only the feedback explains: data, reward, feedback, a teacher.

python forms.py        # writes data/train.jsonl and data/test.jsonl beside this file
"""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2o.prompt_phase.types import Reflection

CAPITALS = {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "China": "Beijing",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
}
TRAINED = 8  # countries; the others are for the test

# How a question begins, what its answer must match beside naming the capital, and what says so.
FORMS = {
    "page": (
        "For a page: ",
        r"<<[^<>\n]+>>",
        "The answer must contain a title, wrapped in double angular brackets, such as <<title>>.",
    ),
    "slide": (
        "For a slide: ",
        r"(?m)^[*-] .*\n+[*-] ",
        "The answer must contain bullet points. Use the markdown bullets such as:\n"
        "* This is point 1.\n* This is point 2.",
    ),
    "note": (
        "For a note: ",
        r"\*[^\s*][^*\n]*\*",
        "The answer must highlight a section with markdown, i.e. *highlighted section*.",
    ),
    "chat": ("", "", ""),
}


LEADS = ("", "Remember: ", "Please note: ", "Rule: ", "Important: ", "In every case: ", "As always: ", "Follow this: ")


def has_form(text: str, form: str) -> bool:
    return re.search(FORMS[form][1], text) is not None


def accuracy(completions: list[Any], solution: list[str], form: list[str], **columns: Any) -> list[float]:
    """1 for the capital in the form that is asked for, else 0."""
    texts = [completion[-1]["content"] for completion in completions]
    rows = zip(texts, solution, form, strict=True)
    return [float(capital in text and has_form(text, wanted)) for text, capital, wanted in rows]


def feedback(completion: str, row: dict[str, Any]) -> str:
    """What an answer lacks."""
    lacks = [] if row["solution"] in completion else ["The capital is wrong."]
    lacks += [] if has_form(completion, row["form"]) else [FORMS[row["form"]][2]]
    return " ".join(lacks) or "Right."


def reflect(prompts: Sequence[str], *, seed: int) -> list[Reflection]:
    """A teacher that turns one demand of the feedback into an instruction, and knows nothing else."""
    answers = []
    for index, prompt in enumerate(prompts):
        found = [demand for _, _, demand in FORMS.values() if demand and demand in prompt]
        drawn = random.Random(f"{seed}-{index}")
        demand = drawn.choice(found or ["The answer must name the capital."]).replace("The answer", "Your answer", 1)
        answers.append(Reflection(f"```\n{drawn.choice(LEADS)}{demand}\n```"))
    return answers


def rows(countries: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"{begins}What is the capital of {country}?"}],
            "solution": CAPITALS[country],
            "form": form,
        }
        for country in countries
        for form, (begins, _, _) in FORMS.items()
    ]


def main() -> None:
    countries = sorted(CAPITALS)
    random.Random(0).shuffle(countries)
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    for split, part in (("train", countries[:TRAINED]), ("test", countries[TRAINED : 2 * TRAINED])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(part)))


if __name__ == "__main__":
    main()
