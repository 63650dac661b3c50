"""What both commands of `p2o features` need: a model that is read from inside, its questions, the rules of spans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p2o.cli.errors import InputError
from p2o.cli.frozen import refuse_long_questions
from p2o.cli.frozen_answers import AnswerArguments
from p2o.cli.frozen_questions import reading_thoughts
from p2o.cli.functions import load_function
from p2o.engines.frozen import transformers_frozen
from p2o.engines.loading import load_transformers
from p2o.evaluation.types import QuestionSet
from p2o.features.activations import find_layer
from p2o.features.collecting import Source
from p2o.features.spans import SpanFn, text_spans
from p2o.pico.spans import pico_spans


def refuse_other_engines(arguments: AnswerArguments) -> None:
    """
    Raises:
        ValueError: vLLM or a server, whose models cannot be read from inside.
    """
    if arguments.use_vllm or arguments.served:
        raise ValueError(
            "p2o features reads a model from inside, which only transformers allows: leave out --use_vllm, --served "
            "and --base_url."
        )


def source_of(
    arguments: AnswerArguments, model: str | Path, tasks: list[QuestionSet], layer: str | None
) -> tuple[Source, list[QuestionSet]]:
    """The model, how it is sampled, and the questions with scorers that read its answers.

    Args:
        model: as `from_pretrained` takes it.

    Raises:
        InputError: no such model, or questions that it cannot be asked.
        DictionaryError: no such layer.
    """
    where: dict[str, Any] = {"revision": arguments.model_revision, "trust_remote_code": arguments.trust_remote_code}
    how: dict[str, Any] = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    try:
        loaded, tokenizer = load_transformers(str(model), **how, **where)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"Cannot use the model {model}: {error}") from error
    options = arguments.template_options()
    frozen = transformers_frozen(loaded, tokenizer, arguments.batch_size, options)
    tasks, _ = reading_thoughts(tasks, arguments, frozen)
    refuse_long_questions(tasks, frozen, arguments.sampling())
    how_sampled = (arguments.sampling(), arguments.n, arguments.batch_size, arguments.seed, options)
    return Source(loaded, tokenizer, find_layer(loaded, layer), *how_sampled), tasks


def is_embedded(tasks: Sequence[QuestionSet]) -> bool:
    """Whether all questions are the embedded world's, whose corpus says what is what."""
    return all({"family", "level", "entry"} <= row.keys() for task in tasks for row in task.rows)


def span_rules(name: str | None, embedded: bool) -> SpanFn:
    """The user's rules by `module:function`, else those of the embedded world or of text.

    Raises:
        InputError: they cannot be imported.
    """
    if name is not None:
        found: SpanFn = load_function(name, "spans")
        return found
    return pico_spans if embedded else text_spans
