"""The properties of the model with tools, measured: `python -m p2o.pico.tools.premise`.

Everything is sampled from the shipped weights at temperature 1, on questions that are in no corpus, with the tools.
"""

import math
import random
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from p2o.pico.build import Encoder
from p2o.pico.corpus import ChoiceProbabilities
from p2o.pico.instructions import HOW, Instruction
from p2o.pico.premise import command
from p2o.pico.tools import model_path, world
from p2o.pico.tools.corpus import RIGHT, WRONG, Source, converse, document
from p2o.reflection.model import transformers_reflection
from p2o.seeding import derive_seed, random_stream
from p2o.templates import apply_template

CONDITIONS: dict[str, Instruction | None] = {
    "bare": None,
    "calculator": Instruction(unqualified=RIGHT),
    "calculator, care": Instruction(unqualified=RIGHT, care=True),
    "estimator, care": Instruction(unqualified=WRONG, care=True),
    "care only": Instruction(care=True),
    "vague": Instruction(vague=True),
}


def instructed(rows: Dataset, instruction: Instruction | None, rng: random.Random) -> Dataset:
    """The rows with a wording of the instruction in front of each question."""
    if instruction is None:
        return rows
    return Dataset.from_list([{**row, "prompt": apply_template(row["prompt"], instruction.text(rng))} for row in rows])


class Premise:
    """Measurements on one model.

    Args:
        path: model directory.
        samples: conversations per question.
        per_split: questions of each split.
        seed: of questions and sampling.
    """

    def __init__(self, path: str, samples: int = 4, per_split: int = 96, seed: int = 0) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.samples, self.seed = samples, seed
        self.data = world.eval_dataset(seed=1000 + seed, per_split=per_split)

    def success(self, tools: Sequence[Callable[..., str]] = (world.calculate, world.estimate)) -> dict[str, Any]:
        """Share of right answers by split and condition."""
        with tempfile.TemporaryDirectory() as scratch:
            options: dict[str, Any] = {
                "num_generations_eval": self.samples,
                "per_device_eval_batch_size": 32 * self.samples,
            }
            options |= {"report_to": "none", "bf16": False, "use_cpu": True, "disable_tqdm": True}
            trainer = GRPOTrainer(
                self.model,
                world.accuracy_reward,
                GRPOConfig(scratch, max_completion_length=112, gradient_checkpointing=False, **options),
                train_dataset=world.train_dataset(hard=8, easy=1),
                processing_class=self.tokenizer,
                tools=list(tools),
            )
            trainer.remove_callback(PrinterCallback)
            found: dict[str, Any] = {"easy": {"bare": self._rate(trainer.evaluate, "easy", "bare")}}
            for split in ("hard", "unseen_families"):
                found[split] = {name: self._rate(trainer.evaluate, split, name) for name in CONDITIONS}
        return found

    def _rate(self, evaluate: Callable[[Dataset], dict[str, float]], split: str, condition: str) -> float:
        stream = derive_seed(self.seed, "premise with tools", split, condition)
        rows = instructed(self.data[split], CONDITIONS[condition], random.Random(stream))
        with random_stream(stream):
            return evaluate(rows)["eval_reward"]

    @torch.no_grad()
    def worked_out_bare(self, questions: int = 40) -> float:
        """Probability that a bare hard question is worked out: all calls, of the right tool, and the answer; a mean."""
        every_choice_right = ChoiceProbabilities(1.0, {RIGHT: 1.0}, 1.0)
        rng, found = random.Random(0), []
        for family in world.HARD_FAMILIES:
            for question in islice(world.questions(family, derive_seed(self.seed, "worked out")), questions):
                worked = document(question.text, converse(question, every_choice_right, rng))
                ((ids, written),) = Encoder(self.tokenizer)([worked])
                logs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
                chosen = [logs[i - 1, token].item() for i, token in enumerate(ids) if written[i]]
                found.append(math.exp(math.fsum(chosen)))
        return math.fsum(found) / len(found)

    def reflection(self, count: int = 200, temperature: float = 1.0) -> dict[str, float]:
        """Shares of the model's reflections that are well-formed, and that name the right tool and the wrong one."""
        source = Source(derive_seed(self.seed, "reflections held out"))
        reflect = transformers_reflection(
            self.model, self.tokenizer, max_new_tokens=64, temperature=temperature, batch_size=64
        )
        prompts: list[str] = []
        while len(prompts) < count:
            document, failed = source.reflection_and_failures()
            prompts += [str(document.prompt)] if failed else []
        texts = [answer.text.strip() for answer in reflect(prompts, seed=derive_seed(self.seed, "reflection"))]
        formed = [text.startswith("```\n") and text.endswith("\n```") and text.count("```") == 2 for text in texts]
        named = {tool: [any(how in text.lower() for how in HOW[tool]) for text in texts] for tool in (RIGHT, WRONG)}
        return {
            "well-formed": sum(formed) / count,
            "names the calculator": sum(named[RIGHT]) / count,
            "names the estimator": sum(named[WRONG]) / count,
        }


def measure(premise: Premise) -> dict[str, Any]:
    return {
        **premise.success(),
        "worked out bare": premise.worked_out_bare(),
        "reflection": premise.reflection(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Success at temperature 1, with the tools")
    for heading in ("questions", "instruction", "success"):
        table.add_column(heading, justify="right" if heading == "success" else "left")
    for split in ("easy", "hard", "unseen_families"):
        for condition, success in result[split].items():
            table.add_row(split, condition, f"{success:.1%}")
    console.print(table)
    console.print(f"Bare hard questions are worked out with a probability of {result['worked out bare']:.1g}.")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["reflection"].items())
    console.print(f"Reflections: {shares}.")


def main() -> None:
    command("p2o.pico.tools.premise", __doc__, model_path(), lambda *asked: measure(Premise(*asked)), show)


if __name__ == "__main__":
    main()
