"""Trains a model to answer questions about a SQLite database, which it reads with a tool.

    python examples/sqlite_agent.py --model Qwen/Qwen3-4B --use_vllm true

Any option of `P2OConfig` can be given. The questions do not say which tables there are. A model that queries what it
imagines gets errors, and where all rollouts of a question fail, GRPO learns nothing from it; an instruction such as
"Read sqlite_master first" is what the prompt phases look for. For a database of your own: `DATABASE` and `questions`.
"""

import random
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import TrlParser

from p2o import P2OConfig, P2OTrainer

DATABASE = Path(tempfile.gettempdir()) / "p2o-example-shop.sqlite"
SCHEMA = """
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE article (id INTEGER PRIMARY KEY, name TEXT, category TEXT, price_in_cents INTEGER);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customer, day TEXT);
CREATE TABLE purchase_line (purchase_id INTEGER REFERENCES purchase, article_id INTEGER REFERENCES article,
    pieces INTEGER);
"""
CITIES = "Aachen Bergen Cork Delft Espoo Faro Ghent Horsens".split()
CATEGORIES = {"tools": "saw file vice".split(), "toys": "kite ball yoyo".split(), "books": "atlas novel guide".split()}
YEARS = ("2023", "2024", "2025")
JOINED = "purchase_line l JOIN purchase p ON p.id = purchase_id JOIN article a ON a.id = article_id "
JOINED += "JOIN customer c ON c.id = customer_id"
ASKED = {  # a question, and the query that answers it
    "How many customers live in {city}?": "SELECT count(*) FROM customer WHERE city = '{city}'",
    "How many pieces of the article {article} were bought by customers from {city}?": (
        f"SELECT total(pieces) FROM {JOINED} WHERE a.name = '{{article}}' AND city = '{{city}}'"
    ),
    "What did customers from {city} spend on {category} in {year}, in cents?": (
        f"SELECT total(pieces * price_in_cents) FROM {JOINED} "
        "WHERE city = '{city}' AND category = '{category}' AND day LIKE '{year}%'"
    ),
    "How many different customers bought {category} in {year}?": (
        f"SELECT count(DISTINCT c.id) FROM {JOINED} WHERE category = '{{category}}' AND day LIKE '{{year}}%'"
    ),
}


def build_database(path: Path, seed: int = 0) -> None:
    """Writes a small shop: 60 customers, 9 articles, 400 purchases."""
    rng = random.Random(seed)
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as shop, shop:
        shop.executescript(SCHEMA)
        shop.executemany("INSERT INTO customer VALUES (?, ?, ?)", [(i, f"C{i}", rng.choice(CITIES)) for i in range(60)])
        articles = [(name, category) for category, names in CATEGORIES.items() for name in names]
        for number, (name, category) in enumerate(articles):
            shop.execute("INSERT INTO article VALUES (?, ?, ?, ?)", (number, name, category, rng.randint(2, 90) * 50))
        for number in range(400):
            day = f"{rng.choice(YEARS)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            shop.execute("INSERT INTO purchase VALUES (?, ?, ?)", (number, rng.randrange(60), day))
            for article in rng.sample(range(len(articles)), rng.randint(1, 3)):
                shop.execute("INSERT INTO purchase_line VALUES (?, ?, ?)", (number, article, rng.randint(1, 9)))


def asked() -> Iterator[tuple[str, str]]:
    """Every question with the query that answers it."""
    articles = [name for names in CATEGORIES.values() for name in names]
    values = {"city": CITIES, "category": list(CATEGORIES), "article": articles, "year": YEARS}
    for text, sql in ASKED.items():
        names = re.findall(r"{(\w+)}", text)
        for chosen in product(*(values[name] for name in names)):
            known = dict(zip(names, chosen, strict=True))
            yield text.format(**known), sql.format(**known)


def questions(path: Path) -> Iterator[dict[str, Any]]:
    """Rows with a `prompt` and the `solution` that the database has."""
    with closing(sqlite3.connect(path)) as shop:
        for text, sql in asked():
            told = f"{text} Answer from the shop's SQLite database. End with a line `Answer: …`."
            (solution,) = shop.execute(sql).fetchone()
            yield {"prompt": [{"role": "user", "content": told}], "solution": str(int(solution))}


def query(sql: str) -> str:
    """Runs a query on the shop's SQLite database, which it cannot change.

    Args:
        sql: one SELECT statement.

    Returns:
        The first 20 rows, one a line, with the names of the columns above them.
    """
    with closing(sqlite3.connect(f"{DATABASE.resolve().as_uri()}?mode=ro", uri=True)) as shop:
        shop.set_progress_handler(
            lambda: 1, 2_000_000
        )  # ends a query that would run for seconds; what it raises is told
        found = shop.execute(sql)
        rows = [[column for column, *_ in found.description or ()], *found.fetchmany(20)]
    return "\n".join(" | ".join(map(str, row)) for row in rows)[:2000]


def given_answer(completion: list[dict[str, Any]]) -> float | None:
    """The number behind the last `Answer:` of the last message; None where there is none, or a tool spoke last."""
    last = completion[-1]
    found = (
        re.findall(r"Answer:\s*(-?\d[\d,]*\.?\d*)", last.get("content") or "") if last["role"] == "assistant" else []
    )
    return float(found[-1].replace(",", "")) if found else None


def correct(completions: list[list[dict[str, Any]]], solution: list[str], **columns: Any) -> list[float]:
    """1 for the right number, else 0."""
    answers = map(given_answer, completions)
    return [float(answer == float(gold)) for answer, gold in zip(answers, solution, strict=True)]


def feedback(completion: str, row: dict[str, Any]) -> str:
    """What the reflection model reads about a rollout, behind the conversation itself."""
    if row["reward"] > 0:
        return "Right."
    queries = sum(len(message.get("tool_calls") or ()) for message in row["conversation"])
    return f"Wrong after {queries} queries. The answer is {row['solution']}."


@dataclass
class Arguments:
    model: str = field(default="Qwen/Qwen3-4B", metadata={"help": "Name on the hub or directory."})


def main() -> P2OTrainer:
    parser = TrlParser((Arguments, P2OConfig))
    parser.set_defaults(
        output_dir="runs/sqlite-agent",
        num_generations=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=32,  # 4 × 32 rollouts: 16 questions × 8
        num_train_epochs=6,
        max_completion_length=2048,  # calls and results included
        max_tool_calling_iterations=6,
        chat_template_kwargs={"enable_thinking": False},
        evolution_budget=800,
    )
    arguments, training = parser.parse_args_and_config()
    with training.main_process_first():
        if training.local_process_index == 0:
            build_database(DATABASE)
    rows = Dataset.from_list(list(questions(DATABASE))).train_test_split(0.1, seed=0)
    trainer = P2OTrainer(
        model=arguments.model,
        reward_funcs=correct,
        args=training,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        tools=[query],
        feedback_func=feedback,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
