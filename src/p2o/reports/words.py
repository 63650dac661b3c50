"""What happened in a run, in sentences. Pure."""

from collections.abc import Iterator
from typing import Any

from p2o.reports.run_data import RunData


def in_words(run: RunData) -> list[str]:
    """The sentences on top of a run's report; empty where nothing was finished yet."""
    return [*_accuracy(run), *_hard_sets(run), *_templates(run), *_spent(run)]


def _accuracy(run: RunData) -> Iterator[str]:
    sets = run.summary.get("bare_accuracy", {})
    known = {name: v for name, v in sets.items() if v.get("before") is not None and v.get("after") is not None}
    changes = [f"on {name.replace('_', ' ')} from {v['before']:.1%} to {v['after']:.1%}" for name, v in known.items()]
    if changes:
        yield f"Without any instruction, accuracy went {', '.join(changes)}."


def _hard_sets(run: RunData) -> Iterator[str]:
    """An epoch's hard set is named after the next one, which it is made for."""
    if run.hard_sets:
        ends = sorted({min(run.hard_sets), max(run.hard_sets)})
        yield f"Hard training questions: {', '.join(f'{len(run.hard_sets[e])} in epoch {e - 1}' for e in ends)}."


def _templates(run: RunData) -> Iterator[str]:
    phases = [record for record in run.templates.values() if record["evolution"].get("candidates")]
    if not phases:
        return
    if (best := highest_scored(run)) is None:
        yield f"{_count(len(phases), 'prompt phase')} brought no instruction into use."
        return
    used = _count(len(_used(run)), "instruction")
    yield (
        f"{_count(len(phases), 'prompt phase')} brought {used} into use. The one with the "
        f"best mean dev score, {best.get('score', 0.0):.2f}: “{' '.join(best['text'].split())}”"
    )


def highest_scored(run: RunData) -> dict[str, Any] | None:
    """The one in use with the best mean dev score; None where a run had none."""
    return max(_used(run), key=lambda template: template.get("score", 0.0), default=None)


def _used(run: RunData) -> list[dict[str, Any]]:
    return [t for record in run.templates.values() for t in record["selected"] if t.get("text")]


def _spent(run: RunData) -> Iterator[str]:
    rollouts = run.summary.get("rollouts", {})
    if total := rollouts.get("total"):
        evolved = total - rollouts.get("policy", total)
        shared = f", {evolved / total:.0%} of them to find instructions" if evolved else ""
        yield f"It took {total:,} rollouts{shared}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
