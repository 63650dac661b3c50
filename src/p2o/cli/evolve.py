"""`p2o evolve`: the prompt phase alone, for the questions that a frozen model cannot solve."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2o.cli.console import Meter, share
from p2o.cli.errors import InputError
from p2o.cli.frozen import charge, load_model, model_settings, open_directory, refuse_long_questions, run
from p2o.cli.frozen_options import FrozenArguments, parse
from p2o.cli.frozen_questions import load_questions, reading_thoughts
from p2o.cli.functions import load_function
from p2o.cli.options import FunctionArguments
from p2o.completions import Sampling
from p2o.engines.frozen import FrozenModel
from p2o.evaluation.evaluate import evaluate
from p2o.evaluation.results import question_key, success
from p2o.evaluation.types import RIGHT, QuestionSet
from p2o.files import write_whole
from p2o.ledger import Ledger
from p2o.models import NAMED_MODELS
from p2o.options import check_ranges
from p2o.prompt_phase.evolve import evolve
from p2o.prompt_phase.frozen_policy import FrozenPolicy, Groups, gains, hard_questions
from p2o.prompt_phase.options import EvolutionOptions
from p2o.prompt_phase.traces import limit_of
from p2o.prompt_phase.types import EvolutionConfig, EvolutionProgress, EvolutionResult, ReflectionFn
from p2o.ranks import Ranks
from p2o.reflection.make import make_reflection
from p2o.reflection.model import frozen_reflection
from p2o.reflection.options import OWN_MODELS, ReflectionOptions
from p2o.state import write_json
from p2o.templates import Template


@dataclass
class EvolveArguments(FrozenArguments, EvolutionOptions, ReflectionOptions, FunctionArguments):
    """Options of `p2o evolve`; those of evolution and reflection are the same as for training."""

    num_generations: int = field(default=8, metadata={"help": "Bare rollouts per question, to find the hard ones."})
    min_hard_questions: int = field(
        default=4, metadata={"help": "Minimum number of hard questions; with fewer the command stops."}
    )
    confirm_samples: int = field(
        default=4,
        metadata={"help": "New answers to each dev question, bare and under each selected template; 0: none."},
    )

    def check(self) -> None:
        super().check()
        check_ranges(self, {"num_generations": 1, "confirm_samples": 0})
        self.check_evolution()
        self.check_reflection()

    @property
    def reflection_endpoint(self) -> bool:
        """Whether reflections come from an endpoint: the model may be a directory here as well."""
        return self.reflection_model not in (*OWN_MODELS, *NAMED_MODELS) and not Path(self.reflection_model).is_dir()


def evolve_alone(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: nothing was found or it failed, 2: bad input, 130)."""
    return run(_evolve, argv)


def _evolve(argv: list[str], console: Console, ranks: Ranks) -> int:
    arguments = parse(
        EvolveArguments,
        argv,
        prog="p2o evolve",
        description="Finds questions that a frozen model cannot solve, and instructions under which it solves them.",
        takes_dataset=True,
    )
    config = arguments.evolution_config(wording=arguments.reflection_prompt)
    tasks = load_questions(arguments, console.print, takes_images=True)
    feedback = load_function(arguments.feedback_func, "feedback_func") if arguments.feedback_func else None
    directory = open_directory(arguments.output_dir, "evolve", arguments.model, _settings(arguments, config, tasks))
    model = load_model(arguments, ranks)
    tasks, reading = reading_thoughts(tasks, arguments, model)
    refuse_long_questions(tasks, model, arguments.sampling())
    policy = FrozenPolicy(tasks, model, arguments.sampling(), *reading.given_to(feedback))
    ledger, spent = Ledger(), Ledger()
    reflect = _reflection(arguments, model, ranks, spent)
    console.print(f"{len(policy.rows)} questions, {arguments.model}, frozen · {directory}", markup=False)

    with Meter(console) as meter:
        groups = _bare_rollouts(arguments, policy, directory, meter)
        charge(ledger, "policy", (s for group in groups for s in group))
        hard, bare = hard_questions(groups, arguments.near_hard), _mean_right(groups)
        console.print(f"{len(hard)} of {len(groups)} questions are hard; bare success over all {bare:.1%}.")
        _refuse_too_few(hard, arguments.min_hard_questions)
        result = evolve(
            [policy.question(index) for index in hard],
            policy.rollout,
            reflect,
            config,
            seed=arguments.seed,
            epoch=0,
            run_dir=directory / "evolution",
            special_tokens=model.special_tokens,
            prompt_limit=limit_of(reflect, arguments.reflection_max_prompt_tokens),
            images=policy.images,
            spent=spent,
            on_progress=lambda p: meter.update(f"evolution, {p.stage}", *_where(p)),
        )
        ledger.merge(result.spent)
        selected = result.selected
        measured = None
        if selected and arguments.confirm_samples:
            measured = policy.measure(
                result.dev_ids,
                selected,
                n=arguments.confirm_samples,
                seed=arguments.seed,
                transcripts=directory / "confirmation.jsonl",
                on_progress=lambda done, total: meter.update("measuring the templates", done, total),
            )
            charge(ledger, "evaluation", (s for groups in measured for group in groups for s in group))

    outcome = _outcome(arguments, hard, bare, result, selected, measured, ledger)
    write_json(directory / "evolution.json", {"hard_set": hard, **result.to_dict()})
    write_json(directory / "templates.json", outcome)
    write_whole(directory / "templates.txt", as_text(outcome))
    _print_outcome(outcome, result, ledger, directory, console)
    return 0 if selected else 1


def _settings(arguments: EvolveArguments, config: EvolutionConfig, tasks: list[QuestionSet]) -> dict[str, Any]:
    """Settings that change the outcome; a directory is only resumed under the same ones."""
    names = (
        *("num_generations", "near_hard", "min_hard_questions", "verifier", "reward_func", "feedback_func"),
        *("reflection_model", "reflection_base_url", "reflection_func", "confirm_samples"),
        *("reflection_max_prompt_tokens", "reflection_max_tokens", "reflection_temperature"),
    )
    return {
        **model_settings(arguments),
        "sampling": asdict(arguments.sampling()),
        "seed": arguments.seed,
        "questions": [question_key(row) for task in tasks for row in task.rows],
        "evolution": asdict(config),
        **{name: getattr(arguments, name) for name in names},
    }


def _bare_rollouts(arguments: EvolveArguments, policy: FrozenPolicy, directory: Path, meter: Meter) -> Groups:
    """Samples of every question without a template, to find the hard ones."""
    samples = evaluate(
        policy.tasks,
        policy.model,
        policy.sampling,
        n=arguments.num_generations,
        seed=arguments.seed,
        transcripts=directory / "bare.jsonl",
        on_progress=lambda done, total: meter.update("looking for hard questions", done, total),
    )
    return [group for task in policy.tasks for group in samples[task.name]]


def _reflection(arguments: EvolveArguments, model: FrozenModel, ranks: Ranks, spent: Ledger) -> ReflectionFn:
    """The reflection model that the options name.

    Args:
        spent: the cost of reflection so far, for its limits.

    Raises:
        InputError: no such model or function.
    """

    def own() -> ReflectionFn:
        sampling = Sampling(arguments.reflection_max_tokens, arguments.reflection_temperature)
        longest = arguments.reflection_max_prompt_tokens
        if arguments.reflection_model in OWN_MODELS:
            return frozen_reflection(model, sampling, longest_prompt=longest)
        other = replace(arguments, served=False, base_url=None)
        other.model = arguments.reflection_model
        return frozen_reflection(load_model(other, ranks), sampling, longest_prompt=longest)

    function = None
    if arguments.reflection_func:
        function = load_function(arguments.reflection_func, "reflection_func")
    try:
        return make_reflection(arguments, function=function, own=own, spent=lambda: [spent])
    except (ValueError, ImportError) as error:
        raise InputError(str(error)) from None


def _refuse_too_few(hard: list[int], wanted: int) -> None:
    if len(hard) < wanted:
        raise InputError(
            f"{len(hard)} hard questions are fewer than --min_hard_questions {wanted}. Use harder questions, more "
            "questions, or fewer rollouts per question (--num_generations)."
        )


def _mean_right(groups: Groups) -> float:
    """Mean over questions of the share of right answers among those that were scored."""
    rates = [[float(s.reason == RIGHT) for s in group if s.reward is not None] for group in groups]
    return float(success([rate for rate in rates if rate] or [[0.0]])["success"] or 0.0)


def _where(progress: EvolutionProgress) -> tuple[int, int, str]:
    note = f" rollouts · candidates {progress.candidates} · best dev score {progress.best_dev_score:.2f}"
    return progress.metric_calls, max(progress.max_metric_calls, progress.metric_calls), note


# -- the outcome -------------------------------------------------------------------------------------------------------


def _outcome(
    arguments: EvolveArguments,
    hard: list[int],
    bare: float,
    result: EvolutionResult,
    selected: list[Template],
    measured: list[Groups] | None,
    ledger: Ledger,
) -> dict[str, Any]:
    """The content of `templates.json`."""
    templates: list[dict[str, Any]] = [template.to_dict() for template in selected]
    dev: dict[str, Any] = {"questions": len(result.dev_ids)}
    if measured is not None:
        found = gains(measured, arguments.seed)
        templates = [{**template, **own} for template, own in zip(templates, found.pop("templates"), strict=True)]
        dev |= {"samples": arguments.confirm_samples, **found}
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


def _print_outcome(
    outcome: dict[str, Any], result: EvolutionResult, ledger: Ledger, directory: Path, console: Console
) -> None:
    if outcome["templates"]:
        console.print(as_table(outcome))
    else:
        ended = f"Evolution ended early: {result.ended_early} " if result.ended_early else ""
        than = "more than none by --selection_margin" if result.trials else "any"
        console.print(
            f"No template solved {than} of {len(result.dev_ids)} dev questions. {ended}Rejected reflections: "
            f"{result.rejections or 'none'}. A larger --evolution_budget or another --reflection_model may help."
        )
    if result.within_noise:
        console.print(
            "Warning: in evolution, these templates solved no more dev questions than no template, but by chance. "
            "--selection_margin selects only templates with a better solve rate in repeated rollouts."
        )
    counts = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in ledger.rollouts.items() if number)
    tokens = sum(ledger.prompt_tokens.values()), sum(ledger.completion_tokens.values())
    console.print(f"Spent: rollouts {counts}; {tokens[0]:,} tokens read, {tokens[1]:,} generated.")
    if ledger.reflection_cost:
        console.print(f"Reflection cost {ledger.reflection_cost:.2f} US dollars.")
    console.print(f"{directory}/templates.json, templates.txt, evolution.json", markup=False)


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
    caption = f"± standard error, 95 % interval by paired bootstrap; {dev.get('samples')} new answers per question"
    if "bare" in dev:
        caption += f"; solved by any: bare {dev['solved_bare']}, templates {dev['solved_under_some_template']}"
        table.caption = caption
    return table


def _pm(measured: dict[str, Any]) -> str:
    error = measured["standard_error"]
    return share(measured["success"]) + ("" if error is None else f" ± {100 * error:.1f}")


def as_text(outcome: dict[str, Any]) -> str:
    """The templates for people, one after the other, with a heading each; best first, as they were selected."""
    parts = [f"Templates for {outcome['model']}: prepend one to a question, separated by a blank line."]
    for number, template in enumerate(outcome["templates"], 1):
        measured = f", measured {_pm(template['measured'])}" if "measured" in template else ""
        parts.append(f"--- {number}: dev score {share(template['score'])}{measured}\n\n{template['text']}")
    return "\n\n".join(parts) + "\n"
