"""A prompt phase against the bare engine given the same requests at once, and against GEPA's default sequential loop.

    python benchmarks/prompt_phase.py --json prompt_phase.json

All three generate with the same model; reflection answers at once, so that what is measured is the rollouts. A rollout
of the sequential loop is one of a minibatch or dev evaluation of one candidate after the other.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import gepa
from gepa.core.adapter import EvaluationBatch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.evolution.prompt_phase import EvolutionConfig, Question, Reflection, Rollout, evolve
from p2o.pico import model_path, world

WORDS = "count carry total sign digit column check order product sum part line slowly twice first last".split()


def chance(completions: list[Any], **kwargs: Any) -> list[float]:
    """1 for one completion in five, by its text."""
    return [float(zlib.crc32(c[-1]["content"].encode()) % 5 == 0) for c in completions]


def instruction(number: int) -> str:
    """Endless different instructions of ordinary length."""
    rng = random.Random(number)
    return f"Think of {', '.join(rng.choice(WORDS) for _ in range(12))}."


class Sequential:
    """GEPA's adapter as its documentation has it: one candidate, one minibatch at a time."""

    propose_new_texts = None

    def __init__(self, trainer: P2OTrainer) -> None:
        self.trainer, self.spent, self.numbers = trainer, 0, itertools.count(10**6)

    def evaluate(
        self, batch: list[Question], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Any, Any]:
        rollouts = self.trainer._rollouts([(question, candidate["template"]) for question in batch], self.spent)
        self.spent += len(batch)
        return EvaluationBatch(outputs=rollouts, scores=[r.reward for r in rollouts], trajectories=rollouts)

    def make_reflective_dataset(self, candidate: Any, batch: Any, components: Any) -> dict[str, list[dict[str, str]]]:
        return {"template": [{"Answer": r.completion, "Feedback": r.feedback} for r in batch.trajectories]}

    def reflection(self, prompt: Any) -> str:
        return f"```\n{instruction(next(self.numbers))}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200, help="of the hard set")
    parser.add_argument("--budget", type=int, default=1500, help="rollouts")
    parser.add_argument("--parents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="of a completion")
    parser.add_argument("--use_vllm", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
        trainer = P2OTrainer(
            model=model_path() if arguments.use_vllm else AutoModelForCausalLM.from_pretrained(model_path()),
            reward_funcs=chance,
            args=P2OConfig(
                output_dir=output,
                num_generations=8,
                max_completion_length=arguments.tokens,
                prompt_phase_batch_size=512,
                bf16=False,
                report_to="none",
                **(engine if arguments.use_vllm else {"use_cpu": True}),
            ),
            train_dataset=world.train_dataset(hard=arguments.questions, easy=0),
            processing_class=AutoTokenizer.from_pretrained(model_path()),
            reflect=lambda prompts, *, seed: [],
        )
        questions = [trainer._question(index) for index in range(arguments.questions)]
        asked: list[tuple[Question, str]] = []
        numbers = itertools.count()

        def rollout(requests: list[tuple[Question, str]], *, seed: int, purpose: Any) -> list[Rollout]:
            asked.extend(requests)
            return trainer._rollouts(requests, seed)

        def reflect(prompts: list[str], *, seed: int) -> list[Reflection]:
            return [Reflection(f"```\n{instruction(next(numbers))}\n```") for _ in prompts]

        trainer._rollouts([(questions[0], "")] * 8, 0)  # warms up
        began = time.perf_counter()
        config = EvolutionConfig(
            budget=arguments.budget, parents_per_iteration=arguments.parents, max_dev_questions=arguments.questions // 2
        )
        result = evolve(questions, rollout, reflect, config, seed=0, epoch=1, run_dir=Path(output) / "evolution")
        phase = result.metric_calls / (time.perf_counter() - began)

        contexts, _ = trainer._contextualise(
            [trainer.train_dataset[question.id]["prompt"] for question, _ in asked], [text for _, text in asked]
        )
        began = time.perf_counter()
        for start in range(0, len(contexts), 512):
            trainer._generate_single_turn(contexts[start : start + 512], None, {}, 1)
        bare = len(contexts) / (time.perf_counter() - began)

        adapter = Sequential(trainer)
        began = time.perf_counter()
        gepa.optimize(
            seed_candidate={"template": ""},
            trainset=[q for q in questions if q.id in result.feedback_ids],
            valset=[q for q in questions if q.id in result.dev_ids],
            adapter=adapter,
            reflection_lm=adapter.reflection,
            max_metric_calls=max(arguments.budget // 4, len(result.dev_ids) + 60),
            logger=_Silent(),
            seed=0,
        )
        sequential = adapter.spent / (time.perf_counter() - began)
    rows = {"prompt phase": phase, "bare engine, same requests": bare, "GEPA's sequential loop": sequential}
    table = Table(title=f"{result.metric_calls} rollouts, {len(result.candidates)} candidates")
    for heading in ("", "rollouts per second", "prompt phase / this"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, speed in rows.items():
        table.add_row(name, f"{speed:.1f}", f"{phase / speed:.2f}")
    Console(width=100).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"options": options, "rollouts_per_second": rows}, indent=1) + "\n")


class _Silent:
    def log(self, message: str) -> None:
        pass


if __name__ == "__main__":
    main()
