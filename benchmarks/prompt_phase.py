"""A prompt phase against the bare engine given the same requests at once, and against GEPA's default sequential loop.

    python benchmarks/prompt_phase.py --json prompt_phase.json

All three generate with the same model; reflection answers at once, so that what is measured is the rollouts. A rollout
of the sequential loop is one of a minibatch or dev evaluation of one candidate after the other. Below stands the engine
alone, given so many requests at once: how much there is to gain from large batches on this machine.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gepa
import torch
from gepa.core.adapter import EvaluationBatch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from chance import chance
from p2o import P2OConfig, P2OTrainer
from p2o.models import model_path
from p2o.pico import world
from p2o.policy_phase.rollouts import contexts_within
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.phase import question
from p2o.prompt_phase.types import EvolutionConfig, Question, Reflection, Rollout

PHASE = "prompt phase"
WORDS = "count carry total sign digit column check order product sum part line slowly twice first last".split()


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
        rollouts = self.trainer.policy_rollouts([(question, candidate["template"]) for question in batch], self.spent)
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
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 3, 16, 48, 128, 512], help="of the engine alone")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, one thread")
    parser.add_argument("--model", default="pico", help="or smollm2-135m, or a checkpoint")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use_vllm", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    path = model_path(arguments.model)
    now = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as output:
        engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
        trainer = P2OTrainer(
            model=path if arguments.use_vllm else AutoModelForCausalLM.from_pretrained(path),
            reward_funcs=chance,
            args=P2OConfig(
                output_dir=output,
                num_generations=8,
                max_completion_length=arguments.tokens,
                prompt_phase_batch_size=512,
                bf16=arguments.bf16,
                gradient_checkpointing=False,
                report_to="none",
                use_cpu=not torch.cuda.is_available(),
                **(engine if arguments.use_vllm else {}),
            ),
            train_dataset=world.train_dataset(hard=arguments.questions, easy=0),
            processing_class=AutoTokenizer.from_pretrained(path),
            reflect=lambda prompts, *, seed: [],
        )
        questions = [question(trainer.train_dataset, index, "solution") for index in range(arguments.questions)]
        numbers = itertools.count()

        def forget() -> None:
            """What an engine has cached of the requests that it meets again."""
            if arguments.use_vllm:
                trainer.vllm_generation.llm.reset_prefix_cache()

        def bare(asked: list[tuple[Question, str]], size: int) -> float:
            """Rollouts per second of the engine alone, so many at once."""
            prompts = [trainer.train_dataset[question.id]["prompt"] for question, _ in asked]
            tokenize = lambda prompts: trainer._tokenize_prompts(prompts)[0]  # noqa: E731
            contexts, _ = contexts_within(prompts, [text for _, text in asked], tokenize, None)
            forget()
            began = now()
            for start in range(0, len(contexts), size):
                trainer._generate_single_turn(contexts[start : start + size], None, {}, 1)
            return len(contexts) / (now() - began)

        def turn(number: int) -> tuple[dict[str, float], list[tuple[Question, str]]]:
            asked: list[tuple[Question, str]] = []

            def rollout(requests: list[tuple[Question, str]], *, seed: int) -> list[Rollout]:
                asked.extend(requests)
                return trainer.policy_rollouts(requests, seed)

            def reflect(prompts: list[str], *, seed: int) -> list[Reflection]:
                return [Reflection(f"```\n{instruction(next(numbers))}\n```") for _ in prompts]

            config = EvolutionConfig(
                budget=arguments.budget,
                parents_per_iteration=arguments.parents,
                max_dev_questions=arguments.questions // 2,
            )
            forget()
            began = now()
            result = evolve(
                questions, rollout, reflect, config, seed=number, epoch=1, run_dir=Path(output) / f"{number}"
            )
            phase = result.metric_calls / (now() - began)
            adapter = Sequential(trainer)
            forget()
            began = now()
            gepa.optimize(
                seed_candidate={"template": ""},
                trainset=[q for q in questions if q.id in result.feedback_ids],
                valset=[q for q in questions if q.id in result.dev_ids],
                adapter=adapter,
                reflection_lm=adapter.reflection,
                max_metric_calls=arguments.budget,
                logger=_Silent(),
                seed=number,
            )
            sequential = adapter.spent / (now() - began)
            speeds = {
                PHASE: phase,
                "bare engine, same requests": bare(asked, 512),
                "GEPA's sequential loop": sequential,
            }
            return speeds, asked

        trainer.policy_rollouts([(question, "") for question in questions[:8]], 0)  # warms up
        turns = [turn(number) for number in range(arguments.turns)]
        asked = turns[0][1]
        alone = {size: bare(asked[: min(40 * size, len(asked))], size) for size in arguments.batches}
    rows = {name: statistics.median(speeds[name] for speeds, _ in turns) for name in turns[0][0]}
    ratios = {name: statistics.median(s[PHASE] / s[name] for s, _ in turns) for name in rows}
    table = Table(title=f"{len(asked)} rollouts a phase, median of {arguments.turns}; ratios within a turn")
    for heading in ("", "rollouts per second", "prompt phase / this"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, speed in rows.items():
        table.add_row(name, f"{speed:.1f}", f"{ratios[name]:.2f}")
    for size, speed in alone.items():
        table.add_row(f"bare engine, {size} at once", f"{speed:.1f}", "")
    Console(width=100).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        result = {"options": options, "rollouts_per_second": rows, "ratios": ratios, "by_batch": alone}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


class _Silent:
    def log(self, message: str) -> None:
        pass


if __name__ == "__main__":
    main()
