"""Templates: applying one to a question, selecting them, and assigning them to rollouts.

Pure Python, no tensors. `T(x, z)` of the paper is [`apply_template`], its greedy selection [`select_templates`], its
assignment [`assign_templates`].
"""

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a chat."""

POSITIONS = ("user", "system")
"""Where T(x, z) has the template: in front of the last user message, or at the end of the system message."""

Tokenize = Callable[[list[Prompt]], list[list[int]]]
"""Prompts to the tokens that completions are generated from."""


@dataclass(frozen=True)
class Template:
    """A selected instruction.

    Args:
        text: the instruction, never empty.
        score: mean dev reward, the weight with which it is drawn.
        solves: ids of the dev questions it solved.
        candidate: its index in the evolution that found it (its lineage is in the run directory).
    """

    text: str
    score: float
    solves: frozenset[int] = field(default_factory=frozenset)
    candidate: int = -1

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "solves": sorted(self.solves)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Template":
        return cls(**{**data, "solves": frozenset(data["solves"])})


def last_user_message(prompt: Prompt) -> int | None:
    """Index of the message that templates touch, or None for a plain-text prompt.

    Raises:
        ValueError: a chat without any user message.
    """
    if isinstance(prompt, str):
        return None
    for index in reversed(range(len(prompt))):
        if prompt[index]["role"] == "user":
            return index
    raise ValueError(f"This chat has no user message to prepend a template to: {prompt!r}")


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row of a data set: of one without, whose question an environment asks, an empty message."""
    return cast(Prompt, row.get("prompt", [{"role": "user", "content": ""}]))


def question_text(prompt: Prompt) -> str:
    """The question as text: a plain prompt itself, or the text of a chat's last user message."""
    index = last_user_message(prompt)
    if index is None:
        return str(prompt)
    content = prompt[index]["content"]  # type: ignore[index]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def apply_template(prompt: Prompt, template: str, position: str = "user") -> Prompt:
    """T(x, z): the prompt with the stripped template and a blank line before its last user message.

    The empty template changes nothing. The given prompt is not modified. Where the message has blocks of content, texts
    and images, the template becomes a block of text before them.

    Args:
        position: "system": at the end of the system message instead, which a chat without one gets. A text has none.

    Raises:
        ValueError: a text, where the position is "system".
    """
    template = template.strip()
    if not template:
        return prompt
    if position == "system":
        return _with_system_message(prompt, template)
    prefix = template + "\n\n"
    index = last_user_message(prompt)
    if index is None:
        return prefix + str(prompt)
    messages: Any = list(prompt)  # shallow: its images are large
    content = messages[index]["content"]
    content = prefix + content if isinstance(content, str) else [{"type": "text", "text": prefix}, *content]
    messages[index] = {**messages[index], "content": content}
    return cast(Prompt, messages)


def _with_system_message(prompt: Prompt, template: str) -> Prompt:
    if isinstance(prompt, str):
        raise ValueError(f"A text has no system message for a template: {prompt!r}")
    if not prompt or prompt[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": template}, *prompt]
    before = prompt[0]["content"]
    if isinstance(before, str):
        content: Any = f"{before.rstrip()}\n\n{template}".lstrip()
    else:
        content = [*before, {"type": "text", "text": f"\n\n{template}"}]
    return [{**prompt[0], "content": content}, *prompt[1:]]


def select_templates(candidates: Sequence[Template]) -> list[Template]:
    """Greedy set cover: repeatedly selects the candidate that solves the most dev questions not yet covered.

    Ties go to the higher score, then to the earlier candidate. The empty template cannot be selected: it is the
    bare question. Returns an empty list if no dev question is solved.
    """
    covered: set[int] = set()
    selected: list[Template] = []
    # A candidate's gain can only shrink as others are selected, so one that is still first after a recount is the best;
    # few need recounting per round (Minoux 1978).
    queue = [(-len(c.solves), -c.score, index) for index, c in enumerate(candidates) if c.text.strip()]
    heapq.heapify(queue)
    while queue:
        added, score, index = heapq.heappop(queue)
        left = len(candidates[index].solves - covered)
        if left and left < -added:
            heapq.heappush(queue, (-left, score, index))
        elif left:
            covered |= candidates[index].solves
            selected.append(candidates[index])
    return selected


def best_template(selected: Mapping[int, Sequence[Template]]) -> Template | None:
    """The one template for questions of which nothing is known: of the last selected set, the one that solved the most
    dev questions, then the one with the higher score, then the one that was selected earlier.

    Args:
        selected: what each prompt phase selected, by epoch.

    Returns:
        None where no prompt phase selected any.
    """
    epochs = [epoch for epoch, found in selected.items() if found]
    return max(selected[max(epochs)], key=lambda z: (len(z.solves), z.score)) if epochs else None


def mean_similarity(texts: Sequence[str]) -> float:
    """Mean word overlap of two templates (Jaccard), in [0, 1]; 1 for fewer than two."""
    bags = [frozenset(text.lower().split()) for text in texts]
    pairs = [len(a & b) / max(len(a | b), 1) for a, b in itertools.combinations(bags, 2)]
    return sum(pairs) / len(pairs) if pairs else 1.0


def assign_templates(
    questions: Sequence[int],
    templates: Sequence[Template],
    num_generations: int,
    *,
    rng: random.Random,
    same_template_per_group: bool = False,
    bare_rollouts_per_group: int = 0,
) -> dict[int, list[int | None]]:
    """Which template each rollout of each hard question gets next epoch.

    Args:
        questions: the hard set, dev and feedback questions alike.
        templates: the selected set.
        num_generations: K, rollouts of a group.
        rng: source of random numbers.
        same_template_per_group: one draw for the whole group.
        bare_rollouts_per_group: the first N rollouts stay bare.

    Returns:
        For each question K indices into `templates`, `None` for a bare rollout. Empty when there are no templates.
        Draws are with replacement and weighted by score: among the templates that solve the question if any does
        (only dev questions can be known to be solved), else among all.
    """
    if not templates:
        return {}
    solving = defaultdict(list)
    for index, template in enumerate(templates):
        for question in template.solves:
            solving[question].append(index)
    everyone = _with_weights(range(len(templates)), templates)
    assignment: dict[int, list[int | None]] = {}
    for question in questions:
        pool, weights = _with_weights(solving[question], templates) if question in solving else everyone
        templated = num_generations - bare_rollouts_per_group
        draws: list[int | None] = rng.choices(pool, cum_weights=weights, k=1 if same_template_per_group else templated)
        if same_template_per_group:
            draws *= templated
        assignment[question] = [*[None] * bare_rollouts_per_group, *draws]
    return assignment


def _with_weights(pool: Sequence[int], templates: Sequence[Template]) -> tuple[Sequence[int], list[float]]:
    """Indices of templates and the running total of their weights."""
    weights = [templates[index].score for index in pool]
    # A template can solve a question and still have a mean reward of zero or less (negative rewards exist).
    if min(weights) <= 0:
        weights = [1.0] * len(pool)
    return pool, list(itertools.accumulate(weights))
