"""Whether each tier opens the next, measured: `python -m p2o.pico.ladder`.

The shipped weights are fine-tuned on bare worked solutions of one tier after the other, with no line wrong. After each
the success of every hard family is measured, bare and under its right instruction. An instruction for a family should
work once the tiers below it have been learnt, and not before. No reinforcement, and no instruction in training.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from p2o.pico import model_path
from p2o.pico.build import Encoder, loss_of
from p2o.pico.corpus import WORK, Document, Source
from p2o.pico.methods import RIGHT_METHODS, work
from p2o.pico.premise import Premise, command, success
from p2o.pico.world import ANSWER, TIERS
from p2o.seeding import derive_seed

CONDITIONS = ("bare", "right method, care")
STEPS, BATCH, LEARNING_RATE = 40, 64, 5e-4  # about as far as a run of training goes for a tier


def solutions(families: list[str], seed: int) -> Iterator[Document]:
    """Endless bare questions of these families with their solutions, worked by the first right method."""
    source = Source(derive_seed(seed, "ladder", *families))
    while True:
        family = source.rng.choice(families)
        question, entry = source.question(family, "hard")
        method = RIGHT_METHODS[family][0]
        worked = work(family, entry, method)
        yield Document(question, "\n".join([f"{WORK}{method}", *worked.lines, f"{ANSWER}{worked.answer}"]))


def learn(premise: Premise, families: list[str]) -> None:
    """Fine-tunes the model of the premise on solutions of these families."""
    model, encoder = premise.model.train(), Encoder(premise.tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    documents = solutions(families, premise.seed)
    for _ in range(STEPS):
        rows = encoder(list(islice(documents, BATCH)))
        width = max(len(tokens) for tokens, _ in rows)
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in rows])
        learnt = torch.tensor([trained + [False] * (width - len(trained)) for _, trained in rows])
        (loss_of(model, ids, learnt) / learnt.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def measure(premise: Premise) -> dict[str, Any]:
    """By what has been learnt, condition and family: the share of right answers."""
    found = {"nothing": _success(premise)}
    for tier in sorted(set(TIERS.values()))[:-1]:
        learn(premise, [family for family, of in TIERS.items() if of <= tier])
        found[f"tier {tier} and below"] = _success(premise)
    return found


def _success(premise: Premise) -> dict[str, dict[str, float]]:
    return {condition: success(premise.completions("hard", condition)) for condition in CONDITIONS}


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Success on hard questions at temperature 1")
    for heading in ("learnt", "instruction", *TIERS):
        table.add_column(heading, justify="right" if heading in TIERS else "left")
    for learnt, conditions in result.items():
        for condition, families in conditions.items():
            table.add_row(learnt, condition, *(f"{families[family]:.1%}" for family in TIERS))
    console.print(table)


def main() -> None:
    command(
        "p2o.pico.ladder",
        __doc__,
        model_path(),
        lambda path, samples: measure(Premise(path, samples, per_split=64)),
        show,
    )


if __name__ == "__main__":
    main()
