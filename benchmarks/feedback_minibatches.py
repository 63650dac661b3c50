"""Does evolution find better templates if its first iterations are filled with further feedback minibatches?

    python benchmarks/feedback_minibatches.py --json feedback_minibatches.json

The embedded world's base model, frozen, on its hard questions, with its own reflections. Both ways take turns over the
same seeds: the same questions, split alike. What is held equal is everything generated, rollouts and reflections
alike: at a budget, a candidate has been found if the last of its dev rollouts was among the first so many completions
of the run, in the order in which they were asked for. From those candidates templates are selected as training would.

- best: dev score of the best candidate;
- covered: share of the dev questions that the selected templates solve;
- held out: success on hard questions that evolution never saw, under the selected templates, each drawn as often as
  training would draw it. A run that found nothing is as good as its base model without instruction.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.cli.compare import interval
from p2o.evolution.prompt_phase import EvolutionConfig, EvolutionResult, Question, Reflection, Rollout, evolve
from p2o.pico import model_path, world
from p2o.seeding import derive_seed
from p2o.templates import Template, select_templates

MEASURES = ("best", "covered", "held out", "templates", "iterations", "reflections")


class Evolution:
    """One run of evolution, and after how many completions each dev evaluation was done.

    `log` has, for every batch in order, how many completions had been asked for when it was complete.
    """

    def __init__(self, trainer: P2OTrainer, questions: list[Question], seed: int, config: EvolutionConfig) -> None:
        self.trainer, self.completions = trainer, 0
        self.found: dict[str, int] = {}
        self.reflected: list[int] = []
        self.began: list[int] = []
        with tempfile.TemporaryDirectory() as directory:
            self.result: EvolutionResult = evolve(
                questions,
                self._rollout,
                self._reflect,
                config,
                seed=seed,
                epoch=1,
                run_dir=Path(directory),
                special_tokens=set(trainer.processing_class.all_special_tokens),
                on_progress=lambda p: self.began.append(self.completions) if p.stage == "feedback" else None,
            )

    def _rollout(self, requests: list[tuple[Question, str]], *, seed: int, purpose: Any) -> list[Rollout]:
        for _, template in requests:
            self.completions += 1
            if purpose == "dev":
                self.found[template] = self.completions
        return self.trainer._rollouts(requests, seed)

    def _reflect(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        self.reflected += [self.completions + 1 + i for i in range(len(prompts))]
        self.completions += len(prompts)
        return self.trainer.reflect(prompts, seed=seed)

    def at(self, budget: int, held_out: "HeldOut") -> dict[str, float]:
        """What evolution had found with so many completions."""
        dev = self.result.dev_ids
        candidates = [
            candidate.as_template() for candidate in self.result.candidates if self.found[candidate.text] <= budget
        ]
        selected = select_templates(candidates)
        return {
            "best": max((c.score for c in candidates), default=0.0),
            "covered": len(frozenset().union(*(t.solves for t in selected))) / len(dev),
            "held out": held_out.success(selected),
            "templates": len(selected),
            "iterations": sum(began <= budget for began in self.began),
            "reflections": sum(position <= budget for position in self.reflected),
        }


class HeldOut:
    """Success of a template on hard questions that evolution never saw; measured once a template."""

    def __init__(self, trainer: P2OTrainer, questions: list[Question]) -> None:
        self.trainer, self.questions = trainer, questions
        self.known: dict[str, float] = {}

    def success(self, templates: list[Template]) -> float:
        """Mean over templates by the weight with which training draws them."""
        weighted = [(t.score, self._measure(t.text)) for t in templates] or [(1.0, self._measure(""))]
        return sum(w * s for w, s in weighted) / sum(w for w, _ in weighted)

    def _measure(self, text: str) -> float:
        if text not in self.known:
            requests = [(question, text) for question in self.questions]
            rollouts = self.trainer._rollouts(requests, derive_seed("held out", text))
            self.known[text] = statistics.mean(rollout.solved for rollout in rollouts)
        return self.known[text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--questions", type=int, default=72, help="of the hard set")
    parser.add_argument("--held_out", type=int, default=96, help="hard questions to measure templates on")
    parser.add_argument("--parents", type=int, default=16)
    parser.add_argument("--budgets", type=int, nargs="+", default=[250, 500, 1000, 2000], help="completions in all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        hard, unseen = arguments.questions, arguments.held_out
        trainer = P2OTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_path()),
            reward_funcs=world.accuracy_reward,
            args=P2OConfig(
                output_dir=output,
                num_generations=8,
                max_completion_length=112,
                prompt_phase_batch_size=256,
                reflection_prompt=world.REFLECTION_PROMPT,
                reflection_max_tokens=96,
                reflection_temperature=0.7,
                bf16=False,
                use_cpu=True,
                report_to="none",
            ),
            train_dataset=world.train_dataset(hard=hard + unseen, easy=0),
            processing_class=AutoTokenizer.from_pretrained(model_path()),
            feedback_func=world.feedback,
        )
        # The rows are sorted by family: each gives some to either set.
        everything = [trainer._question(index) for index in range(hard + unseen)]
        each, families = (hard + unseen) // len(world.TRAINED_FAMILIES), len(world.TRAINED_FAMILIES)
        questions = [q for q in everything if q.id % each < hard // families]
        held_out = HeldOut(trainer, [q for q in everything if q.id % each >= hard // families])
        rows: list[dict[str, Any]] = []
        for seed in range(arguments.seeds):
            for filled in (False, True) if seed % 2 else (True, False):
                config = EvolutionConfig(
                    budget=max(arguments.budgets),
                    parents_per_iteration=arguments.parents,
                    fill_iterations=filled,
                    reflection_prompt_template=world.REFLECTION_PROMPT,
                )
                evolution = Evolution(trainer, questions, seed, config)
                for budget in arguments.budgets:
                    found = evolution.at(budget, held_out)
                    rows.append({"seed": seed, "fill_iterations": filled, "budget": budget, **found})
                    print(rows[-1], flush=True)
    table = Table(title=f"{arguments.seeds} seeds, mean ± 95 % interval; the difference seed by seed")
    for heading in ("completions", "", *MEASURES):
        table.add_column(heading, justify="right" if heading else "left")
    summary = []
    for budget in arguments.budgets:
        by_way = {f: [r for r in rows if (r["budget"], r["fill_iterations"]) == (budget, f)] for f in (False, True)}
        values = {
            name: [[r[m] for r in by_way[f]] for m in MEASURES] for name, f in (("plain", False), ("filled", True))
        }
        values["filled - plain"] = [
            [b - a for a, b in zip(*both, strict=True)] for both in zip(*values.values(), strict=True)
        ]
        for name, columns in values.items():
            cells = dict(zip(MEASURES, (interval(column) for column in columns), strict=True))
            table.add_row(str(budget), name, *(f"{mean:.3g} ± {half:.2g}" for mean, half in cells.values()))
            summary.append({"budget": budget, "way": name, **cells})
    Console(width=140).print(table)
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"options": options, "rows": rows, "summary": summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
