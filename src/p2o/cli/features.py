"""`p2o features`: a dictionary of what a model does inside, and how training moves it."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from p2o.cli.console import Meter
from p2o.cli.errors import InputError
from p2o.cli.features_apply import apply
from p2o.cli.features_contexts import ask_endpoint, contexts_by_kind, label_endpoint
from p2o.cli.features_options import FeatureArguments
from p2o.cli.features_source import is_embedded, source_of, span_rules
from p2o.cli.frozen import open_directory, run
from p2o.cli.frozen_answers import answer_settings
from p2o.cli.frozen_options import parse
from p2o.cli.frozen_questions import load_questions
from p2o.cli.models import path_of_model
from p2o.engines.endpoint import Endpoint
from p2o.engines.frozen import encode
from p2o.evaluation.types import QuestionSet
from p2o.features.activations import completion_loss, read_activations
from p2o.features.autoencoder import Dictionary, DictionaryError, Shape
from p2o.features.collecting import Instruct, Source, collect
from p2o.features.labels import Labelled, Labels, check_labels, label_by_contrast, top_contexts
from p2o.features.quality import Quality, measure
from p2o.features.saved import Origin, SavedDictionary, architecture
from p2o.features.shards import Activations, Passage
from p2o.features.spans import KINDS, SpanFn, token_kinds
from p2o.features.training import train_dictionary
from p2o.pico.spans import pico_spans, right_instruction, true_documents
from p2o.ranks import Ranks
from p2o.reports.features import contexts_table, draw_quality, labels_table, quality_table
from p2o.reports.features_data import CONTEXTS, SUMMARY
from p2o.state import write_json

PICTURE, DICTIONARY, SHARDS = "features.svg", "dictionary", "shards"
MEASURED = 400  # passages, at most, on which quality is measured
LABELLED = 4000  # passages, at most, by which features are labelled
TRUE = 400  # documents of the corpus

OWN = tuple(name for name in FeatureArguments.__annotations__ if name not in ("n", "spans", "baseline"))


def features(argv: list[str]) -> int:
    """Runs the command; returns its exit code (0: done, 1: failed, 2: bad input, 130: interrupted)."""
    command = apply if argv[:1] == ["apply"] else _train
    return run(_as_message(command), argv[command is apply :])


def _as_message(command: Callable[..., int]) -> Callable[[list[str], Console, Ranks], int]:
    def said(argv: list[str], console: Console, ranks: Ranks) -> int:
        if ranks.count > 1:
            raise InputError("p2o features runs in one process: start it without a launcher.")
        try:
            return command(argv, console)
        except DictionaryError as error:
            raise InputError(str(error)) from None

    return said


class _Read(NamedTuple):
    """What was read of the model: what a dictionary is trained on, and what it is measured on."""

    kept: Activations
    held_out: Activations


def _train(argv: list[str], console: Console) -> int:
    arguments = parse(
        FeatureArguments,
        argv,
        prog="p2o features",
        description="Trains a temporal sparse autoencoder on residual-stream activations of a model's own rollouts, "
        "and says how good it is and what its features are about.",
        takes_dataset=True,
    )
    endpoint = label_endpoint(arguments)
    tasks = load_questions(arguments, console.print)
    source, tasks = source_of(arguments, path_of_model(arguments.model), tasks, arguments.layer)
    embedded = is_embedded(tasks)
    spans = span_rules(arguments.spans, embedded)
    instruct = _instruct(arguments, embedded)
    settings = {
        **answer_settings(arguments, tasks),
        **{name: getattr(arguments, name) for name in OWN},
        "layer": source.layer,
    }
    directory = open_directory(arguments.output_dir, "features", arguments.model, settings)
    count = sum(len(task.rows) for task in tasks)
    said = f"{count} questions × {arguments.n} rollouts by {arguments.model} · {source.layer} · {directory}"
    console.print(said, markup=False)
    read = _collect(arguments, tasks, source, instruct, directory, console)
    width = read.kept.width
    size = arguments.features or 8 * width
    shape = Shape(width, size, max(int(size * arguments.high_share), 1), arguments.k)
    found = _fit(arguments, "T-SAE", shape, read, directory, console)
    quality = {"T-SAE": _quality(found, read.held_out, source)}
    if arguments.baseline:
        plain = replace(shape, high=shape.features)
        other = _fit(arguments, "plain BatchTopK", plain, read, directory, console)
        quality["plain BatchTopK"] = _quality(other, read.held_out, source)
    labels, report = _label(arguments, found, read.kept, source, spans)
    origin = Origin(arguments.model, source.layer, architecture(source.model.config))
    SavedDictionary(found, origin, labels).save(directory / DICTIONARY)
    _write(directory, found, quality, report, console)
    return _contexts(arguments, directory, found, labels, read.kept, source, endpoint, console)


def _instruct(arguments: FeatureArguments, embedded: bool) -> Instruct | None:
    """Who instructs; None where all rollouts are bare.

    Raises:
        InputError: a file that cannot be read, or has no instruction.
    """
    if not arguments.instructed_share:
        return None
    if arguments.instructions is None:
        return right_instruction if embedded else None
    try:
        lines = Path(arguments.instructions).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the instructions in {arguments.instructions}: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{arguments.instructions} has no instruction: write one in each line.")
    return lambda row, rng: rng.choice(texts)


def _collect(
    arguments: FeatureArguments,
    tasks: Sequence[QuestionSet],
    source: Source,
    instruct: Instruct | None,
    directory: Path,
    console: Console,
) -> _Read:
    with Meter(console) as meter:
        collect(
            directory / SHARDS,
            tasks,
            source,
            instruct=instruct,
            instructed=round(arguments.n * arguments.instructed_share) if instruct else 0,
            questions_per_shard=arguments.questions_per_batch,
            on_progress=lambda done, total: meter.update("rollouts", done, total),
        )
    read = _Read(*(Activations(directory / SHARDS, held_out=held_out) for held_out in (False, True)))
    of_which = f"{read.kept.tokens:,} tokens to train on, {read.held_out.tokens:,} held out"
    console.print(f"Activations of width {read.kept.width}: {of_which}.", markup=False)
    return read


def _fit(
    arguments: FeatureArguments, name: str, shape: Shape, read: _Read, directory: Path, console: Console
) -> Dictionary:
    options = arguments.training()
    if shape.high == shape.features:
        options = replace(options, objective=replace(options.objective, contrastive=0.0))
    checkpoint = directory / f"training-{name.split()[0].lower()}.pt"
    with Meter(console) as meter:

        def on_step(step: int, losses: Any) -> None:
            meter.update(name, step, options.steps, f" · {float(losses.reconstruction.detach()):.3f} unexplained")

        return train_dictionary(read.kept, shape, options, checkpoint, on_step).eval()


def _quality(dictionary: Dictionary, held_out: Activations, source: Source) -> Quality:
    few = held_out.sample(MEASURED)

    def loss(number: int, splice: Any) -> float:
        return completion_loss(source.model, source.layer, few.passages[number], splice)

    return measure(dictionary, few, loss)


def _label(
    arguments: FeatureArguments, dictionary: Dictionary, kept: Activations, source: Source, spans: SpanFn
) -> tuple[Labels, dict[str, dict[str, Any]]]:
    """The labels, and of each kind of span how many tokens and features; of the embedded world compared with truth."""
    strict = (arguments.label_share, arguments.label_tokens)
    passages = kept.spread(LABELLED)
    labels = label_by_contrast(
        dictionary, ((kept.of_passage(n), _kinds(source, kept.passages[n], spans)) for n in passages), *strict
    )
    report: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        group = labels.group(kind)
        high = sum(feature < dictionary.shape.high for feature in group)
        report[kind] = {"tokens": labels.tokens[kind], "high": high, "low": len(group) - high}
    if spans is pico_spans:
        for kind, found in check_labels(dictionary, labels, _truth(source), *strict).items():
            report[kind] |= {name: found[name] for name in ("judged", "agreeing", "auroc")}
    return labels, report


def _kinds(source: Source, passage: Passage, spans: SpanFn) -> list[str | None]:
    """Of each token of a passage; the first is of the prompt."""
    return [None, *token_kinds(source.tokenizer, passage.ids[1:], passage.text, spans(passage.text))]


def _truth(source: Source) -> list[Labelled]:
    """Documents of the embedded world's corpus as the model reads them, with spans that are known."""
    passages, kinds = [], []
    for document in true_documents(TRUE):
        chat = [{"role": "user", "content": document.question}]
        (prompt,) = encode(source.tokenizer, [chat], **source.template_options)
        said = source.tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False)
        passages.append(Passage([prompt[-1], *said["input_ids"]], prompt[:-1], 0, document.text))
        own = [
            next((span.kind for span in document.spans if span.start <= start < span.end), None)
            for start, _ in said["offset_mapping"]
        ]
        kinds.append([None, *own])
    read = read_activations(source.model, source.layer, passages, source.batch_size)
    return list(zip(read, kinds, strict=True))


def _write(
    directory: Path,
    dictionary: Dictionary,
    quality: dict[str, Quality],
    report: dict[str, dict[str, Any]],
    console: Console,
) -> None:
    """Writes and prints quality and labels."""
    qualities = {name: found.to_dict() for name, found in quality.items()}
    write_json(directory / SUMMARY, {"quality": qualities, "labels": report, "shape": asdict(dictionary.shape)})
    draw_quality(qualities, report, directory / PICTURE)
    console.print(quality_table(qualities))
    console.print(labels_table(report))
    there = [kind for kind, found in report.items() if found["tokens"]]
    if len(there) < 2:
        only = there[0] if there else "nothing that the rules know"
        console.print(
            f"The answers have spans of one kind ({only}), so nothing can be told by contrast. Sample more, harder or "
            "instructed rollouts (--instructions), or name your own --spans.",
            markup=False,
        )


def _contexts(
    arguments: FeatureArguments,
    directory: Path,
    dictionary: Dictionary,
    labels: Labels,
    kept: Activations,
    source: Source,
    endpoint: Endpoint | None,
    console: Console,
) -> int:
    """Writes and prints where features are most active, with what an endpoint says of them; returns the exit code."""
    contexts = top_contexts(
        dictionary,
        [(kept.of_passage(number), kept.passages[number].ids) for number in kept.spread(LABELLED)],
        lambda ids: str(source.tokenizer.decode(ids)),
    )
    if endpoint is not None:  # whatever it does
        write_json(directory / CONTEXTS, contexts_by_kind(labels, dictionary.shape.high, contexts))
    said, failed = ask_endpoint(arguments, endpoint, labels, contexts, directory, console)
    by_kind = contexts_by_kind(labels, dictionary.shape.high, contexts, said)
    write_json(directory / CONTEXTS, by_kind)
    console.print(contexts_table(by_kind, shown=3))
    files = " · ".join(str(directory / name) for name in (SUMMARY, CONTEXTS, PICTURE))
    console.print(files, markup=False, soft_wrap=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    console.print(f"{time.process_time():.0f} seconds of processor time, peak memory {memory / 1e9:.1f} GB.")
    advice = f"See how training moves them: p2o features apply {directory} RUN [RUN ...]"
    console.print(advice, markup=False, soft_wrap=True)
    return int(failed and not said)
