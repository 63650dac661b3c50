"""The properties of the embedded world, measured: `python -m p2o.pico.premise`.

Everything is sampled from the shipped weights at temperature 1, on questions that are in no corpus.
"""

import argparse
import json
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o.engines.frozen import encode
from p2o.pico import model_path, world
from p2o.pico.corpus import WORK, Source
from p2o.pico.instructions import HOW, Instruction
from p2o.pico.methods import METHODS, RIGHT_METHODS, Method, work
from p2o.pico.world import TRAINED_FAMILIES
from p2o.reflection.model import transformers_reflection
from p2o.seeding import derive_seed
from p2o.templates import question_text

Instructing = Callable[[str, random.Random], Instruction | None]
Completed = tuple[dict[str, Any], Instruction | None, str]
"""A row, the instruction before its question, and what the model answered."""


def _other_method(family: str, rng: random.Random) -> Method:
    return rng.choice([m for m in METHODS if m not in RIGHT_METHODS[family]])


def _beside(family: str, own_first: bool, rng: random.Random) -> Instruction:
    other = rng.choice([f for f in TRAINED_FAMILIES if f != family])
    both = [family, other] if own_first else [other, family]
    return Instruction(qualified={f: RIGHT_METHODS[f][0] for f in both}, care=True)


CONDITIONS: dict[str, Instructing] = {
    "bare": lambda family, rng: None,
    "right method": lambda family, rng: Instruction(unqualified=RIGHT_METHODS[family][0]),
    "right method, care": lambda family, rng: Instruction(unqualified=RIGHT_METHODS[family][0], care=True),
    "right clause first, care": lambda family, rng: _beside(family, True, rng),
    "right clause second, care": lambda family, rng: _beside(family, False, rng),
    "care only": lambda family, rng: Instruction(care=True),
    "vague": lambda family, rng: Instruction(vague=True),
    "wrong method, care": lambda family, rng: Instruction(unqualified=_other_method(family, rng), care=True),
}


class Premise:
    """Measurements on one model.

    Args:
        path: model directory.
        samples: completions per question.
        per_split: questions of each split.
        seed: of questions and sampling.
    """

    def __init__(self, path: str, samples: int = 4, per_split: int = 96, seed: int = 0) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.samples, self.seed = samples, seed
        self.data = world.eval_dataset(seed=1000 + seed, per_split=per_split)
        self.generate = transformers_reflection(self.model, self.tokenizer, max_new_tokens=112, batch_size=256)

    def completions(self, split: str, condition: str) -> list[Completed]:
        rng = random.Random(derive_seed(self.seed, "premise", condition))
        rows, instructions, prompts = [], [], []
        for row in self.data[split]:
            for _ in range(self.samples):
                instruction = CONDITIONS[condition](row["family"], rng)
                question = question_text(row["prompt"])
                rows.append(row)
                instructions.append(instruction)
                prompts.append(question if instruction is None else f"{instruction.text(rng)}\n\n{question}")
        answers = self.generate(prompts, seed=derive_seed(self.seed, "sampling", condition))
        texts = [answer.text for answer in answers]
        return list(zip(rows, instructions, texts, strict=True))

    @torch.no_grad()
    def choices(self, questions: int = 24) -> dict[str, tuple[float, float]]:
        """Probability of each right choice, bare and under the right instruction, averaged over hard questions.

        "all of them" is the mean of their product over a whole worked solution.
        """
        rng = random.Random(derive_seed(self.seed, "choices"))
        sums: dict[str, list[list[float]]] = {
            "to work": [[], []],
            "by the method": [[], []],
            "to go on": [[], []],
            "all of them": [[], []],
        }
        rows = list(self.data["hard"])
        for row in rng.sample(rows, min(questions, len(rows))):
            family, question = row["family"], question_text(row["prompt"])
            method = RIGHT_METHODS[family][0]
            solution = work(family, json.loads(row["entry"]), method)
            right = Instruction(unqualified=method, care=True).text(rng)
            for column, prompt in enumerate((question, f"{right}\n\n{question}")):
                text = f"{WORK}{method}\n" + "\n".join(solution.lines) + f"\n{world.ANSWER}"
                head = encode(self.tokenizer, [[{"role": "user", "content": prompt}]])[0]
                body = self._encode(text)
                logits = self.model(torch.tensor([head + body])).logits[0, len(head) - 1 : -1]
                probabilities = logits.softmax(-1)[torch.arange(len(body)), torch.tensor(body)].tolist()
                pieces = [self.tokenizer.decode([token]) for token in body]
                sums["to work"][column].append(probabilities[0])
                sums["by the method"][column].append(probabilities[1])
                # A line ends with a line break; going on is not to write the answer there.
                ends = [p for p, piece in zip(probabilities[2:-1], pieces[2:-1], strict=True) if piece.startswith("\n")]
                on = ends[: len(solution.lines) - 1]
                sums["to go on"][column] += on
                sums["all of them"][column].append(math.prod([*probabilities[:2], *on]))
        return {name: (_mean(bare), _mean(instructed)) for name, (bare, instructed) in sums.items()}

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def reflection(self, count: int = 200, temperature: float = 1.0) -> dict[str, float]:
        """Shares of the model's reflections that are well-formed and that name the right method for a failed family."""
        source = Source(derive_seed(self.seed, "reflections held out"))
        reflect = transformers_reflection(
            self.model, self.tokenizer, max_new_tokens=96, temperature=temperature, batch_size=128
        )
        prompts: list[str] = []
        failures: list[list[str]] = []
        while len(prompts) < count:
            document, failed = source.reflection_and_failures()
            if failed:
                prompts.append(str(document.prompt))
                failures.append(failed)
        answers = reflect(prompts, seed=derive_seed(self.seed, "reflection"))
        known = [phrase for phrases in HOW.values() for phrase in phrases]
        formed = right = method = 0
        for answer, failed in zip(answers, failures, strict=True):
            text = answer.text.strip()
            well = text.startswith("```\n") and text.endswith("\n```") and text.count("```") == 2
            formed += well
            named = {m for m in METHODS for phrase in HOW[m] if phrase in text.lower()}
            method += any(phrase in text.lower() for phrase in known)
            right += any(named & set(RIGHT_METHODS[family]) for family in failed)
        return {"well-formed": formed / count, "names a method": method / count, "names a right one": right / count}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def success(completions: list[Completed]) -> dict[str, float]:
    """Share of right answers, by family and in all."""
    right: dict[str, list[bool]] = {}
    for row, _, text in completions:
        correct = world.is_correct(text, row["family"], row["entry"])
        right.setdefault(row["family"], []).append(correct)
        right.setdefault("all", []).append(correct)
    return {family: sum(values) / len(values) for family, values in right.items()}


def follows(completions: list[Completed]) -> float:
    """Share of completions that work by the method their instruction names."""
    followed = [
        text.startswith(f"{WORK}{instruction.method_for(row['family'])}\n")
        for row, instruction, text in completions
        if instruction is not None
    ]
    return sum(followed) / len(followed)


def measure(premise: Premise) -> dict[str, Any]:
    hard = {condition: premise.completions("hard", condition) for condition in CONDITIONS}
    return {
        "easy": {"bare": success(premise.completions("easy", "bare"))},
        "hard": {condition: success(completions) for condition, completions in hard.items()},
        **{
            split: {c: success(premise.completions(split, c)) for c in ("bare", "right method, care")}
            for split in ("unseen_levels", "unseen_families")
        },
        "wrong method followed": follows(hard["wrong method, care"]),
        "choices": premise.choices(),
        "reflection": premise.reflection(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Success at temperature 1")
    for heading in ("questions", "instruction", "all", "by family"):
        table.add_column(heading, justify="right" if heading == "all" else "left")
    for split in ("easy", "hard", "unseen_levels", "unseen_families"):
        for condition, success in result[split].items():
            families = ", ".join(f"{name} {share:.1%}" for name, share in success.items() if name != "all")
            table.add_row(split, condition, f"{success['all']:.1%}", families)
    console.print(table)
    choices = Table(title="Probability of each right choice on hard questions")
    for heading in ("choice", "bare", "instructed", "context ratio"):
        choices.add_column(heading, justify="left" if heading == "choice" else "right")
    for name, (bare, instructed) in result["choices"].items():
        choices.add_row(name, f"{bare:.2g}", f"{instructed:.2g}", f"{bare / instructed:.2g}")
    console.print(choices)
    console.print(f"Wrong methods are followed in {result['wrong method followed']:.1%} of cases.")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["reflection"].items())
    console.print(f"Reflections: {shares}.")


def command(
    prog: str,
    description: str | None,
    model: str,
    measured: Callable[[str, int], dict[str, Any]],
    shown: Callable[[dict[str, Any], Console], None],
) -> None:
    """`python -m …premise`: measures a model, and prints tables or JSON.

    Args:
        model: measured where none is named.
        measured: of a model's directory, with so many samples of each question.
        shown: prints the tables.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--model", default=model)
    parser.add_argument("--samples", type=int, default=4, help="of each question")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    result = measured(arguments.model, arguments.samples)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        shown(result, Console(width=150))


def main() -> None:
    command("p2o.pico.premise", __doc__, model_path(), lambda *asked: measure(Premise(*asked)), show)


if __name__ == "__main__":
    main()
