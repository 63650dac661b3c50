"""`p2o evolve`: the prompt phase alone. Finds what a frozen model cannot solve, and instructions under which it can."""

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2o.cli.arguments import EMBEDDED, load_function
from p2o.cli.console import Meter, share
from p2o.cli.errors import InputError
from p2o.cli.frozen import (
    add_options,
    charge,
    load_model,
    load_questions,
    model_settings,
    open_directory,
    parse,
    refuse_long_questions,
    run,
    sampling_of,
)
from p2o.completions import Sampling
from p2o.engines.endpoint import check_base_url
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.evaluate import evaluate
from p2o.evaluation.results import question_key
from p2o.evaluation.statistics import average, paired_bootstrap
from p2o.evaluation.types import RIGHT, QuestionSet, Sample
from p2o.ledger import Ledger
from p2o.prompt_phase.budget import PRESET_CANDIDATES
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.feedback import rollout_feedback
from p2o.prompt_phase.hard_samples import HardSamples
from p2o.prompt_phase.types import (
    EvolutionConfig,
    EvolutionProgress,
    EvolutionResult,
    Question,
    ReflectionFn,
    Rollout,
)
from p2o.reflection.endpoint import EndpointReflection
from p2o.reflection.model import frozen_reflection
from p2o.reflection.options import OWN_MODELS
from p2o.state import write_json
from p2o.templates import Template, apply_template, question_text, select_templates
from p2o.verifiers import Verdict


def evolve_alone(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: nothing was found or it failed, 2: bad input, 130)."""
    return run(_evolve, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="p2o evolve", allow_abbrev=False, description=__doc__)
    add_options(parser)
    parser.add_argument("--config", help="a training configuration in YAML: defaults for the options of the same name")
    hard = parser.add_argument_group("hard questions")
    hard.add_argument("--num_generations", type=int, default=8, help="bare rollouts a question (default: %(default)s)")
    hard.add_argument(
        "--near_hard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a question with exactly one success is hard as well (default: %(default)s)",
    )
    hard.add_argument("--min_hard_questions", type=int, default=4, help="fewer are too few (default: %(default)s)")
    evolution = parser.add_argument_group("evolution")
    evolution.add_argument(
        "--evolution_budget",
        default="light",
        help=f"rollouts, or one of {', '.join(PRESET_CANDIDATES)} (default: %(default)s)",
    )
    evolution.add_argument("--parents_per_iteration", type=int, default=16, help="(default: %(default)s)")
    evolution.add_argument("--feedback_minibatch_size", type=int, default=3, help="(default: %(default)s)")
    evolution.add_argument("--max_dev_questions", type=int, default=300, help="(default: %(default)s)")
    evolution.add_argument("--max_template_length", type=int, default=2000, help="characters (default: %(default)s)")
    evolution.add_argument("--feedback_func", help="module:function, f(completion, row) -> str")
    evolution.add_argument(
        "--confirm_samples",
        type=int,
        default=4,
        help="fresh answers to each dev question, bare and under each selected template; 0: none (%(default)s)",
    )
    reflection = parser.add_argument_group("reflection")
    reflection.add_argument(
        "--reflection_model",
        default="reference",
        help="who writes templates: MODEL itself ('reference'), a directory with another model, or a name for litellm",
    )
    reflection.add_argument("--reflection_base_url", help="where it is served")
    reflection.add_argument("--reflection_func", help="module:function instead; 'pico': the embedded world's teacher")
    reflection.add_argument("--reflection_prompt", help="wording with <curr_param> and <side_info>; GEPA's own")
    reflection.add_argument("--reflection_max_tokens", type=int, default=1024, help="(default: %(default)s)")
    reflection.add_argument("--reflection_temperature", type=float, default=1.0, help="(default: %(default)s)")
    reflection.add_argument("--reflection_token_limit", type=int, help="tokens that a server may spend on reflection")
    reflection.add_argument("--reflection_cost_limit", type=float, help="US dollars that it may")
    return parser


LEAST = {
    "num_generations": 1,
    "min_hard_questions": 2,
    "parents_per_iteration": 1,
    "feedback_minibatch_size": 1,
    "max_dev_questions": 1,
    "max_template_length": 1,
    "confirm_samples": 0,
    "reflection_max_tokens": 1,
    "reflection_temperature": 0,
    "reflection_token_limit": 1,
}


def _checked(argv: list[str]) -> tuple[argparse.Namespace, EvolutionConfig]:
    arguments = parse(_parser(), argv, LEAST.items())
    budget = str(arguments.evolution_budget)
    if budget not in PRESET_CANDIDATES and not budget.isdecimal():
        raise InputError(f"--evolution_budget {budget} is neither a number nor one of {', '.join(PRESET_CANDIDATES)}.")
    if arguments.reflection_cost_limit is not None and not arguments.reflection_cost_limit > 0:
        raise InputError(f"--reflection_cost_limit {arguments.reflection_cost_limit} must be greater than 0.")
    wording = arguments.reflection_prompt
    missing = [p for p in ("<curr_param>", "<side_info>") if wording is not None and p not in wording]
    if missing:
        raise InputError(f"--reflection_prompt lacks the placeholder(s) {', '.join(missing)}.")
    if arguments.reflection_base_url:
        try:
            check_base_url("--reflection_base_url", arguments.reflection_base_url)
        except ValueError as error:
            raise InputError(str(error)) from None
    return arguments, EvolutionConfig(
        budget=int(budget) if budget.isdecimal() else budget,
        parents_per_iteration=arguments.parents_per_iteration,
        feedback_minibatch_size=arguments.feedback_minibatch_size,
        max_dev_questions=arguments.max_dev_questions,
        max_template_length=arguments.max_template_length,
        reflection_prompt_template=wording,
    )


def _evolve(argv: list[str], console: Console) -> int:
    arguments, config = _checked(argv)
    sampling = sampling_of(arguments)
    tasks = load_questions(arguments, console.print)
    feedback = load_function(arguments.feedback_func, "feedback_func") if arguments.feedback_func else None
    asked = Asked(tasks, sampling, feedback)
    settings = {
        **model_settings(arguments),
        "sampling": asdict(sampling),
        "seed": arguments.seed,
        "questions": [question_key(row) for row in asked.rows],
        "evolution": asdict(config),
        **{
            name: getattr(arguments, name)
            for name in (
                *("num_generations", "near_hard", "min_hard_questions", "verifier", "reward_func", "feedback_func"),
                *("reflection_model", "reflection_base_url", "reflection_func", "confirm_samples"),
                *("reflection_max_tokens", "reflection_temperature"),
            )
        },
    }
    directory = open_directory(arguments.output_dir, "evolve", arguments.model, settings)
    asked.model = model = load_model(arguments)
    refuse_long_questions(tasks, model, sampling)
    ledger, spent = Ledger(), Ledger()
    reflect = _reflection(arguments, model, spent)
    console.print(f"{len(asked.rows)} questions, {arguments.model}, frozen · {directory}", markup=False)

    with Meter(console) as meter:
        samples = evaluate(
            tasks,
            model,
            sampling,
            n=arguments.num_generations,
            seed=arguments.seed,
            transcripts=directory / "bare.jsonl",
            on_progress=lambda done, total: meter.update("looking for hard questions", done, total),
        )
        groups = [group for task in tasks for group in samples[task.name]]
        charge(ledger, "policy", (s for group in groups for s in group))
        hard = _hard(groups, arguments.near_hard)
        bare = _mean_right(groups)
        console.print(f"{len(hard)} of {len(groups)} questions are hard; bare success over all {bare:.1%}.")
        if len(hard) < arguments.min_hard_questions:
            raise InputError(
                f"{len(hard)} hard questions are fewer than --min_hard_questions {arguments.min_hard_questions}. Take "
                "harder questions, more of them, or fewer rollouts each (--num_generations)."
            )
        result = evolve(
            [asked.question(index) for index in hard],
            asked.rollout,
            reflect,
            config,
            seed=arguments.seed,
            epoch=0,
            run_dir=directory / "evolution",
            special_tokens=model.special_tokens,
            spent=spent,
            on_progress=lambda p: meter.update(f"evolution, {p.stage}", *_where(p)),
        )
        ledger.merge(result.spent)
        selected = select_templates([candidate.as_template() for candidate in result.candidates])
        confirmed = None
        if selected and arguments.confirm_samples:
            confirmed = _confirm(asked, result.dev_ids, selected, arguments, directory, meter)
            charge(ledger, "evaluation", (s for groups in confirmed for group in groups for s in group))

    outcome = _outcome(arguments, hard, bare, result, selected, confirmed, ledger)
    write_json(directory / "evolution.json", {"hard_set": hard, **result.to_dict()})
    write_json(directory / "templates.json", outcome)
    (directory / "templates.txt").write_text(as_text(outcome))
    if selected:
        console.print(as_table(outcome))
    else:
        console.print(
            f"No template solved any of {len(result.dev_ids)} dev questions. {_ended(result)}Rejected reflections: "
            f"{result.rejections or 'none'}. A larger --evolution_budget or another --reflection_model may help."
        )
    counts = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in ledger.rollouts.items() if number)
    tokens = sum(ledger.prompt_tokens.values()), sum(ledger.completion_tokens.values())
    console.print(f"Spent: rollouts {counts}; {tokens[0]:,} tokens read, {tokens[1]:,} generated.")
    if ledger.reflection_cost:
        console.print(f"Reflection cost {ledger.reflection_cost:.2f} US dollars.")
    console.print(f"{directory}/templates.json, templates.txt, evolution.json", markup=False)
    return 0 if selected else 1


class Asked:
    """The questions of all tasks under one numbering, and rollouts on them."""

    def __init__(
        self, tasks: list[QuestionSet], sampling: Sampling, feedback: Callable[[str, dict[str, Any]], str] | None
    ) -> None:
        self.rows = [row for task in tasks for row in task.rows]
        self.scorers = [task.score for task in tasks for _ in task.rows]
        self.formats = [task.answer_format for task in tasks for _ in task.rows]
        self.sampling, self.feedback = sampling, feedback
        self.model: FrozenModel

    def question(self, index: int) -> Question:
        row = self.rows[index]
        return Question(index, question_text(row["prompt"]), str(row.get("solution") or ""))

    def prompts(self, requests: list[tuple[int, str]]) -> tuple[list[Any], list[str]]:
        """T(x, z) of each, and the template really used: "" where z leaves no room for the completion."""
        used = [template for _, template in requests]
        prompts = [apply_template(self.rows[index]["prompt"], template) for index, template in requests]
        for place in self.model.too_long(prompts, self.sampling.max_completion_length):
            used[place], prompts[place] = "", self.rows[requests[place][0]]["prompt"]
        return prompts, used

    def score(self, completions: list[str], rows: list[dict[str, Any]]) -> list[Verdict]:
        """Judges completions of `{"index": …}` rows, each by its own task's verifier."""
        judged: dict[int, Verdict] = {}
        by_scorer: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            by_scorer.setdefault(self.scorers[row["index"]], []).append(place)
        for scorer, places in by_scorer.items():
            verdicts = scorer([completions[p] for p in places], [self.rows[rows[p]["index"]] for p in places])
            judged.update(zip(places, verdicts, strict=True))
        return [judged[place] for place in range(len(rows))]

    def rollout(self, requests: list[tuple[Question, str]], *, seed: int) -> list[Rollout]:
        prompts, used = self.prompts([(question.id, template) for question, template in requests])
        completions = self.model.complete(prompts, sampling=self.sampling, seed=seed)
        verdicts = self.score([c.text for c in completions], [{"index": question.id} for question, _ in requests])
        return [
            Rollout(
                completion=completion.text,
                reward=float(verdict.reward),
                solved=verdict.reason == RIGHT,
                feedback=self._feedback(question, completion.text, verdict),
                prompt_tokens=completion.prompt_tokens or 0,
                completion_tokens=completion.completion_tokens or 0,
                template=template,
            )
            for (question, _), completion, verdict, template in zip(requests, completions, verdicts, used, strict=True)
        ]

    def _feedback(self, question: Question, completion: str, verdict: Verdict) -> str:
        if self.feedback is not None:
            return self.feedback(completion, {**self.rows[question.id], "reward": float(verdict.reward)})
        # A reward function extracts nothing: what it does not like is wrong, and not without an answer.
        extracted = verdict.extracted or (completion if verdict.reason == "wrong" else None)
        return rollout_feedback(
            reward=verdict.reward,
            extracted=extracted,
            solution=question.solution,
            answer_format=self.formats[question.id],
        )


def _reflection(arguments: argparse.Namespace, model: FrozenModel, spent: Ledger) -> ReflectionFn:
    """
    Args:
        spent: what reflection has cost so far, for its limits.

    Raises:
        InputError: no such model or function.
    """
    if arguments.reflection_func:
        function: ReflectionFn = load_function(arguments.reflection_func, "reflection_func")
        return function
    name = arguments.reflection_model
    sampling = Sampling(arguments.reflection_max_tokens, arguments.reflection_temperature)
    served = name not in (*OWN_MODELS, EMBEDDED) and not Path(name).is_dir()
    if not served:
        if arguments.reflection_base_url:
            raise InputError("--reflection_base_url needs --reflection_model, such as openai/NAME.")
        if name not in OWN_MODELS:
            model = load_model(argparse.Namespace(**{**vars(arguments), "model": name, "served": False}))
        return frozen_reflection(model, sampling)
    tokens, cost = arguments.reflection_token_limit or math.inf, arguments.reflection_cost_limit or math.inf

    def left() -> tuple[float, float]:
        used = spent.prompt_tokens["reflection"] + spent.completion_tokens["reflection"]
        return tokens - used, cost - spent.reflection_cost

    try:
        endpoint = EndpointReflection(
            name,
            base_url=arguments.reflection_base_url,
            max_tokens=sampling.max_completion_length,
            temperature=sampling.temperature,
            concurrency=arguments.concurrency,
            timeout=arguments.timeout,
            max_retries=arguments.max_retries,
            left=left,
        )
    except (ValueError, ImportError) as error:
        raise InputError(str(error)) from None
    if cost < math.inf and not endpoint.priced:
        raise InputError(
            f"--reflection_cost_limit cannot be kept: litellm knows no price for {name}. Set --reflection_token_limit."
        )
    return endpoint


# -- what came out -----------------------------------------------------------------------------------------------------


def _hard(groups: list[list[Sample]], near_hard: bool) -> list[int]:
    mined = HardSamples(near_hard)
    for index, group in enumerate(groups):
        mined.record(index, [float(s.reason == RIGHT) for s in group])
    return mined.hard_set()


def _mean_right(groups: list[list[Sample]]) -> float:
    return average([[float(s.reason == RIGHT) for s in group] for group in groups])[0]


def _where(progress: EvolutionProgress) -> tuple[int, int, str]:
    note = f" rollouts · candidates {progress.candidates} · best dev score {progress.best_dev_score:.2f}"
    return progress.metric_calls, max(progress.max_metric_calls, progress.metric_calls), note


def _confirm(
    asked: Asked,
    dev_ids: list[int],
    selected: list[Template],
    arguments: argparse.Namespace,
    directory: Path,
    meter: Meter,
) -> list[list[list[Sample]]]:
    """Fresh answers to the dev questions: bare, then under each template. Those of evolution chose the templates."""
    conditions = []
    for name, text in [("bare", ""), *((f"template {i}", t.text) for i, t in enumerate(selected, 1))]:
        prompts, _ = asked.prompts([(index, text) for index in dev_ids])
        rows = [{"prompt": prompt, "index": index} for prompt, index in zip(prompts, dev_ids, strict=True)]
        conditions.append(QuestionSet(name, rows, asked.score))
    samples = evaluate(
        conditions,
        asked.model,
        asked.sampling,
        n=arguments.confirm_samples,
        seed=arguments.seed,
        transcripts=directory / "confirmation.jsonl",
        on_progress=lambda done, total: meter.update("measuring the templates", done, total),
    )
    return [samples[condition.name] for condition in conditions]


def _outcome(
    arguments: argparse.Namespace,
    hard: list[int],
    bare: float,
    result: EvolutionResult,
    selected: list[Template],
    confirmed: list[list[list[Sample]]] | None,
    ledger: Ledger,
) -> dict[str, Any]:
    """What `templates.json` says; success is the share of right answers on dev questions, freshly sampled."""
    templates: list[dict[str, Any]] = [template.to_dict() for template in selected]
    dev: dict[str, Any] = {"questions": len(result.dev_ids)}
    if confirmed is not None:
        rates = [[[float(s.reason == RIGHT) for s in group] for group in groups] for groups in confirmed]
        means = [[sum(group) / len(group) for group in groups] for groups in rates]
        dev |= {"samples": arguments.confirm_samples, "bare": _measured(rates[0])}
        for template, own, mean in zip(templates, rates[1:], means[1:], strict=True):
            changes = [b - a for a, b in zip(means[0], mean, strict=True)]
            difference = paired_bootstrap(changes, seed=arguments.seed)
            template |= {"measured": _measured(own), "difference": asdict(difference)}
        solved = [
            sum(any(any(groups[i]) for groups in some) for i in range(len(means[0]))) for some in (rates[:1], rates[1:])
        ]
        dev |= {"solved_bare": solved[0], "solved_under_some_template": solved[1]}
    return {
        "model": arguments.model,
        "hard_questions": len(hard),
        "bare_success": bare,
        "dev": dev,
        "templates": templates,
        "rejections": result.rejections,
        "ended_early": result.ended_early,
        "ledger": asdict(ledger),
    }


def _measured(rates: list[list[float]]) -> dict[str, float | None]:
    middle, error = average(rates)
    return {"success": middle, "standard_error": None if math.isnan(error) else error}


def _ended(result: EvolutionResult) -> str:
    return f"Evolution ended early: {result.ended_early} " if result.ended_early else ""


def as_table(outcome: dict[str, Any]) -> Table:
    dev = outcome["dev"]
    table = Table(title=f"Templates, and success on {dev['questions']} hard dev questions")
    for heading in ("", "in evolution", "measured", "against bare", "template"):
        table.add_column(heading, justify="left" if heading == "template" else "right")
    if "bare" in dev:
        table.add_row("bare", "", _pm(dev["bare"]), "", "")
    for number, template in enumerate(outcome["templates"], 1):
        difference = template.get("difference")
        shown = "–"
        if difference:
            low, middle, high = (100 * difference[name] for name in ("low", "mean", "high"))
            shown = f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
        measured = _pm(template["measured"]) if "measured" in template else "–"
        table.add_row(str(number), share(template["score"]), measured, shown, Text(template["text"]))
    caption = f"± standard error, 95 % interval by paired bootstrap; {dev.get('samples')} fresh answers a question"
    if "bare" in dev:
        caption += f"; solved by any: bare {dev['solved_bare']}, templates {dev['solved_under_some_template']}"
        table.caption = caption
    return table


def _pm(measured: dict[str, Any]) -> str:
    error = measured["standard_error"]
    return share(measured["success"]) + ("" if error is None else f" ± {100 * error:.1f}")


def as_text(outcome: dict[str, Any]) -> str:
    """The templates for people, one after the other, with a heading each; best first, as they were selected."""
    parts = [f"Templates for {outcome['model']}: put one in front of a question, with a blank line between."]
    for number, template in enumerate(outcome["templates"], 1):
        measured = f", measured {_pm(template['measured'])}" if "measured" in template else ""
        parts.append(f"--- {number}: dev score {share(template['score'])}{measured}\n\n{template['text']}")
    return "\n\n".join(parts) + "\n"
