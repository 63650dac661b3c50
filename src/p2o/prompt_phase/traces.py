"""Reflection prompts that fit the reflection model: of long answers the beginning and the end. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

QUESTION, ANSWER, FEEDBACK = "Question", "Answer given", "Feedback"
"""Fields of a record: one rollout that is reflected on."""

MARK = "\n[… {:,} characters left out …]\n"
Record = Mapping[str, str]
IMAGE_TOKENS = 1500  # an image, where nobody says; providers take some hundred to two thousand
BYTES_PER_TOKEN = 3  # of UTF-8: fewer than English has, about as many as one sign of Chinese


def estimated_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand, rather too many than too few."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


@dataclass(frozen=True)
class PromptLimit:
    """The longest prompt that a reflection model takes.

    Args:
        tokens: at most so many, with the chat template's.
        count: tokens of a prompt as the model gets it.
        count_image: tokens that an image adds.
    """

    tokens: int
    count: Callable[[str], int] = estimated_tokens
    count_image: Callable[[Any], int] = lambda image: IMAGE_TOKENS


def prompt_limit(
    context_length: int | None,
    max_new_tokens: int,
    longest: int | None,
    count: Callable[[str], int] = estimated_tokens,
    count_image: Callable[[Any], int] = lambda image: IMAGE_TOKENS,
) -> PromptLimit | None:
    """The limit of a reflection model; None where there is none.

    Args:
        context_length: tokens of prompt and reflection together that the model takes; None where it is not known.
        max_new_tokens: of a reflection.
        longest: the user's own limit.

    Raises:
        ValueError: reflections so long leave no room for a prompt.
    """
    if context_length is not None and context_length <= max_new_tokens:
        raise ValueError(
            f"reflection_max_tokens={max_new_tokens} leaves no room for a prompt: the reflection model, or its engine, "
            f"holds {context_length} tokens of prompt and reflection together. Lower it, or raise "
            "vllm_max_model_length where that sets the limit."
        )
    limits = [longest, None if context_length is None else context_length - max_new_tokens]
    known = [limit for limit in limits if limit is not None]
    return PromptLimit(min(known), count, count_image) if known else None


def limit_of(reflect: Any, longest: int | None) -> PromptLimit | None:
    """The limit of a [`p2o.prompt_phase.types.ReflectionFn`]: its `prompt_limit`, or the user's where it has none."""
    if hasattr(reflect, "prompt_limit"):
        known: PromptLimit | None = reflect.prompt_limit
        return known
    return prompt_limit(None, 0, longest)


@dataclass(frozen=True)
class FittedPrompt:
    """A reflection prompt within its limit.

    Args:
        text: None where not even one question fits with its feedback.
        shortened: answers of which a part is left out.
        dropped: records that are left out.
    """

    text: str | None
    shortened: int = 0
    dropped: int = 0


def fit(
    render: Callable[[Sequence[Record]], str], records: Sequence[Record], limit: PromptLimit | None
) -> FittedPrompt:
    """The prompt of these records: whole where it fits, else with shorter answers, else with fewer records.

    Questions and feedback stay whole. Short answers do, too: what there is room for is shared out evenly, and long ones
    keep their beginning and their end, with a mark between.

    Args:
        render: the prompt of some records.
    """
    whole = render(records)
    if limit is None or limit.count(whole) <= limit.tokens:
        return FittedPrompt(whole)
    for kept in range(len(records), 0, -1):
        some = records[:kept]
        room = limit.tokens - limit.count(render([{**record, ANSWER: ""} for record in some]))
        sizes = [limit.count(record[ANSWER]) - limit.count("") for record in some]
        longest = _even_share(sizes, room)
        while longest > 0:  # tokens of parts are not tokens of the whole: closer by a tenth until it fits
            cut = [
                {**record, ANSWER: shorten(record[ANSWER], longest / size)} if size > longest else record
                for record, size in zip(some, sizes, strict=True)
            ]
            if limit.count(text := render(cut)) <= limit.tokens:
                return FittedPrompt(text, sum(size > longest for size in sizes), len(records) - kept)
            longest = longest * 9 // 10
    return FittedPrompt(None, dropped=len(records))


def _even_share(sizes: Sequence[int], room: int) -> int:
    """The largest size to which all are cut so that together they have room; 0 where there is none."""
    left, waiting = room, len(sizes)
    for size in sorted(sizes):
        if size * waiting > left:
            return max(left // waiting, 0)
        left, waiting = left - size, waiting - 1
    return max(sizes, default=0)


def shorten(text: str, share: float) -> str:
    """The beginning and the end of a text, together this share of its characters, with a mark between that says so."""
    kept = max(int(len(text) * share) - len(MARK.format(len(text))), 0)
    mark = MARK.format(len(text) - kept)
    head = kept - kept // 2
    return text[:head] + mark + text[len(text) - kept // 2 :]
