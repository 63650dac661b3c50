"""P²O's section of TRL's model card: prompt phases, templates, ledger."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import TrainerState

from p2o import __version__
from p2o.config import P2OConfig
from p2o.ledger import PURPOSES, Ledger
from p2o.prompt_phase.phase import reflector
from p2o.prompt_phase.types import ReflectionFn
from p2o.state import P2OState
from p2o.templates import Template

# The paper, as TRL's card cites it.
PAPER = {
    "title": "P²O: Joint Policy and Prompt Optimization",
    "id": "2603.21877",
    "citation": (
        "@article{lu2026p2o,\n"
        "    title  = {{P²O: Joint Policy and Prompt Optimization}},\n"
        "    author = {Lu and others},\n"
        "    year   = 2026,\n"
        "    eprint = {arXiv:2603.21877},\n"
        "}"
    ),
}

# P²O's section comes before this heading of TRL's card, or at the end if the heading is missing.
NEXT_HEADING = "### Framework versions"


def with_section(card: str, section: str) -> str:
    """The text of TRL's card with P²O's section in its training procedure."""
    before, heading, after = card.partition(NEXT_HEADING)
    return f"{before.rstrip()}\n\n{section}\n\n{heading}{after}"


def without_none(card: str, name: str) -> str:
    """The text of TRL's card without its links to `None`, where the base is on disk or `name` on no hub."""
    card = card.replace("[None](https://huggingface.co/None)", "a model on disk")
    return card.replace('model="None"', f'model="{name}"')


def add_section(
    args: P2OConfig, model_name: str | None, p2o: P2OState, state: TrainerState, reflect: ReflectionFn
) -> None:
    """Adds P²O's section to the card that TRL has written into `output_dir`, in the process that writes it."""
    if not state.is_world_process_zero:
        return
    path = Path(args.output_dir) / "README.md"
    card = ModelCard.load(path)
    section = p2o_section(
        p2o,
        epochs=round(state.epoch or 0.0, 2),
        steps=state.global_step,
        reflection=reflector(args, reflect),
        distilled=args.context_distillation,
        hard_only=args.template_questions == "hard",
        hinted=args.hint_column is not None,
    )
    card.text = with_section(without_none(card.text, args.hub_model_id or model_name or ""), section)
    card.save(path)


def p2o_section(
    state: P2OState,
    *,
    epochs: float,
    steps: int,
    reflection: str | None,
    distilled: bool = True,
    hard_only: bool = True,
    hinted: bool = False,
) -> str:
    """The section as Markdown.

    Args:
        state: at the end of training.
        epochs: of the policy phase, fractions too.
        steps: updates.
        reflection: the reflection model; None if the configuration has no prompt phase.
        distilled: whether the loss was on the bare question.
        hard_only: whether templates were for hard questions.
        hinted: whether these had hints from worked solutions instead.
    """
    done = f"Epochs: {epochs:g} · updates: {steps} · prompt phases: {state.prompt_phases}."
    if hinted:
        loss = "trained on as answers to the bare question" if distilled else "trained on under them"
        story = (
            f"{done} Rollouts of questions that the model could not solve were sampled under hints, the beginnings of "
            f"their worked solutions, and {loss}."
        )
        return "\n\n".join([f"### What P²O {__version__} did", story, _ledger(state.ledger)])
    if reflection is None:
        story = f"{done} Plain reinforcement learning on P²O's trainer, for comparison."
        return "\n\n".join([f"### What P²O {__version__} did", story, _ledger(state.ledger)])
    training = (
        "and trained on as answers to the bare question. **At inference no instruction is needed**; those below are a "
        "record."
        if distilled
        else "and trained on under them: at inference the model lacks what it was trained with, unless an instruction "
        "stands in front of the question."
    )
    of = "questions that the model could not solve" if hard_only else "all questions"
    story = (
        f"{done} Rollouts of {of} were sampled under instructions that "
        f"[GEPA](https://github.com/gepa-ai/gepa) evolved between epochs, {training} The instructions were proposed by "
        f"{_reflector(reflection)}."
    )
    found = [_templates(epoch, templates) for epoch, templates in sorted(state.selected.items())]
    return "\n\n".join([f"### What P²O {__version__} did", story, *found, _ledger(state.ledger)])


def _reflector(reflection: str) -> str:
    own = {"reference": "the model as it was before training", "policy": "the model itself, in training"}
    return own.get(reflection, f"`{reflection}`")


def _templates(epoch: int, templates: Sequence[Template]) -> str:
    covered = len(frozenset().union(*(template.solves for template in templates)))
    lines = [f"#### Templates selected before epoch {epoch + 1} (dev questions solved under them: {covered})"]
    for template in templates:
        lines.append(f"Mean dev reward {template.score:.2f}, dev questions solved {len(template.solves)}:")
        # Indented text is shown verbatim, also fences and tables.
        lines.append("\n".join(f"    {line}" for line in template.text.splitlines()))
    return "\n\n".join(lines)


def _ledger(ledger: Ledger) -> str:
    rows = ["| spent on | rollouts | prompt tokens | completion tokens |", "|---|---:|---:|---:|"]
    for purpose in PURPOSES:
        counts = (ledger.rollouts[purpose], ledger.prompt_tokens[purpose], ledger.completion_tokens[purpose])
        rows.append(f"| {purpose.replace('_', ' ')} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    paid = f" Reflection cost {ledger.reflection_cost:.2f} US dollars." if ledger.reflection_cost else ""
    return "\n".join(rows) + (
        f"\n\nTraining took {ledger.total_rollouts:,} rollouts, all but evaluation's; {ledger.forward_tokens:,} tokens "
        f"were read without a gradient, evaluation's among them, and {ledger.forward_backward_tokens:,} with one.{paid}"
    )
