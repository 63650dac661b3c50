"""Questions whose answers must have a form that only the feedback explains: data, reward, feedback.

python forms.py        # writes data/train.jsonl and data/test.jsonl beside this file
"""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
TRAINED = 12  # countries; the others are for the test

# How a question begins, what its answer must match beside naming the capital, and what says so.
FORMS = {
    "page": (
        "For a page: ",
        r"<<[^<>\n]+>>",
        "The answer must contain a title, wrapped in double angular brackets, such as <<title>>.",
    ),
    "chat": ("", "", ""),
}


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
    for split, part in (("train", countries[:TRAINED]), ("test", countries[TRAINED:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(part)))


if __name__ == "__main__":
    main()
