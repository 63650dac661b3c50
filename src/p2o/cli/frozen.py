"""Shared by `p2o eval` and `p2o evolve`: loading a frozen model, the output directory, errors as messages."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from p2o.cli.errors import InputError
from p2o.cli.frozen_options import FrozenArguments
from p2o.cli.models import path_of_model
from p2o.completions import GenerationError, Sampling
from p2o.continuation import differences
from p2o.engines.endpoint import Endpoint, OptionNames
from p2o.engines.frozen import FrozenModel, served_model, transformers_model, vllm_model
from p2o.engines.frozen_seeing import seeing_model
from p2o.engines.loading import weights_digest
from p2o.engines.shared import load_together, serve, take_own_devices
from p2o.evaluation.scorers import ScoringError
from p2o.evaluation.types import QuestionSet, Sample
from p2o.files import UNWRITABLE
from p2o.ledger import Ledger, Purpose
from p2o.ranks import Ranks
from p2o.state import write_json
from p2o.verifiers import SolutionError

# -- the model ---------------------------------------------------------------------------------------------------------


def model_settings(arguments: FrozenArguments) -> dict[str, Any]:
    """Settings that change completions, besides sampling; a directory is only resumed under the same ones."""
    engine = "served" if arguments.served else "vllm" if arguments.use_vllm else "transformers"
    settings: dict[str, Any] = {"model": arguments.model, "engine": engine}
    if options := arguments.template_options():
        settings["chat_template_kwargs"] = options
    if arguments.thoughts != "auto":
        settings["thoughts"] = arguments.thoughts
    if engine == "served":
        return {**settings, "base_url": arguments.base_url}
    settings |= {"dtype": arguments.dtype, "model_revision": arguments.model_revision}
    settings["weights"] = weights_digest(Path(path_of_model(arguments.model)))
    if engine == "transformers":
        settings |= {"attn_implementation": arguments.attn_implementation, "batch_size": arguments.batch_size}
    return settings


def load_model(arguments: FrozenArguments, ranks: Ranks) -> FrozenModel:
    """The model that the options name; one in these processes is loaded by all of them, which share its work.

    Raises:
        InputError: no such model, no engine for it, or nothing that is served under that name.
    """
    if arguments.served:
        return _load(arguments, ranks)
    engines = arguments.vllm_data_parallel_size
    if engines > 1 and arguments.use_vllm and not ranks.started:
        if ranks.count > 1:
            raise InputError("--vllm_data_parallel_size starts processes by itself: leave it out under a launcher.")
        ranks.start(engines, [sys.executable, "-m", "p2o", "eval"])  # which waits for what the first one says
    return load_together(ranks, partial(_load, ranks=ranks), arguments)


def _load(arguments: FrozenArguments, ranks: Ranks) -> FrozenModel:
    try:
        if not arguments.served:
            take_own_devices(ranks, arguments.vllm_tensor_parallel_size if arguments.use_vllm else 1)
        if arguments.served:
            make = _endpoint(arguments)
            make(arguments.sampling())  # names and keys are checked here
            return served_model(arguments.model, make)
        common: dict[str, Any] = {
            "revision": arguments.model_revision,
            "trust_remote_code": arguments.trust_remote_code,
            "template_options": arguments.template_options(),
        }
        if arguments.use_vllm:
            return vllm_model(
                path_of_model(arguments.model),
                dtype=arguments.dtype,
                max_model_length=arguments.vllm_max_model_length,
                gpu_memory_utilization=arguments.vllm_gpu_memory_utilization,
                tensor_parallel_size=arguments.vllm_tensor_parallel_size,
                **common,
            )
        return (seeing_model if arguments.shows_images else transformers_model)(
            path_of_model(arguments.model),
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            **common,
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"Cannot use the model {arguments.model}: {error}") from error


def _endpoint(arguments: FrozenArguments) -> Callable[[Sampling], Endpoint]:
    """Makes the endpoint of a served MODEL for a sampling."""

    def make(sampling: Sampling) -> Endpoint:
        return Endpoint(
            arguments.model,
            base_url=arguments.base_url,
            max_tokens=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            concurrency=arguments.concurrency,
            timeout=arguments.timeout,
            max_retries=arguments.max_retries,
            empty_answers=True,
            template_options=arguments.template_options(),
            options=OptionNames("MODEL", "--base_url", "--max_completion_length", "not"),
        )

    return make


def refuse_long_questions(tasks: Sequence[QuestionSet], model: FrozenModel, sampling: Sampling) -> None:
    """
    Raises:
        InputError: questions that leave no room for an answer, or that the chat template refuses.
    """
    for task in tasks:
        try:
            prompts = task.prompts(task.rows)
            refused = model.refused(prompts)
            long = {} if refused else model.too_long(prompts, sampling.max_completion_length)
        except ValueError as error:
            raise InputError(f"{task.name}: {error}") from None
        if refused:
            first, why = next(iter(refused.items()))
            raise InputError(
                f"{task.name}: the model's chat template refuses {len(refused)} of {len(prompts)} questions, question "
                f"{first} the first: {why}."
            )
        if long:
            first, length = next(iter(long.items()))
            room = (model.context_length or 0) - max(long.values())
            raise InputError(
                f"{task.name}: {len(long)} of {len(task.rows)} questions are too long (e.g. question {first}: {length} "
                f"tokens) for a context of {model.context_length} tokens with --max_completion_length "
                f"{sampling.max_completion_length}. "
                + (f"Lower it to at most {room}." if room > 0 else "Shorten the questions.")
            )


# -- output directory -------------------------------------------------------------------------------------------------


def open_directory(output_dir: str | None, kind: str, model: str, settings: dict[str, Any]) -> Path:
    """The output directory: an existing one with the same settings is resumed. Default name: a hash of the settings.

    Raises:
        InputError: it holds results made with other settings, naming the differences; it cannot be written to.
    """
    path = Path(output_dir) if output_dir else None
    if path is None:
        name = Path(model).name if Path(model).name != "model" else Path(model).absolute().parent.name
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = Path("runs") / kind / f"{name}-{digest}"
    kept = path / "settings.json"
    try:
        there = [*path.iterdir()] if path.exists() else []
        if kept in there and there != [kept]:  # alone it is left by a command that was refused
            changed = differences(json.loads(kept.read_text()), settings)
            if changed:
                raise InputError(
                    f"{path} holds results made with other settings: {changed}. Choose another --output_dir."
                )
            return path
        if there and kept not in there:
            raise InputError(f"{path} is not empty and has no results of `p2o {kind}`. Choose another --output_dir.")
        path.mkdir(parents=True, exist_ok=True)
        write_json(kept, settings)
    except OSError as error:
        raise InputError(f"Cannot write to {path}: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{kept} is damaged ({error}). Choose another --output_dir.") from None
    return path


def charge(ledger: Ledger, purpose: Purpose, samples: Iterable[Sample]) -> None:
    """Adds the tokens of the samples to the ledger."""
    for sample in samples:
        ledger.add(purpose, 1, sample.prompt_tokens or 0, sample.completion_tokens or 0)


def run(command: Callable[[list[str], Console, Ranks], int], argv: list[str]) -> int:
    """The exit code of `command(argv, standard output, processes)`; an error that ends it is one message.

    Where a launcher started several processes, the first one runs the command, writes and prints, and the others
    generate with it.
    """
    disable_progress_bar()
    ranks = Ranks.launched()
    if ranks.is_first:
        try:
            return _run(command, argv, ranks)
        finally:
            ranks.finish()
    try:
        serve(ranks, partial(_load, ranks=ranks))
    except (InputError, GenerationError, KeyboardInterrupt):
        return 1  # the first process says why
    return 0


def _run(command: Callable[[list[str], Console, Ranks], int], argv: list[str], ranks: Ranks) -> int:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180  # for tables
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    # Hide library warnings that would break our output.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return command(argv, console, ranks)
    except (InputError, ScoringError) as error:
        errors.print(f"Error: {error}")
        return 2
    except SolutionError as error:
        errors.print(f"Error: A gold answer cannot be read: {error}")
        return 2
    except GenerationError as error:
        errors.print(f"Error: {error}\nFinished results are saved. Run the same command again to continue.")
        return 1
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = f" {error.filename}" if error.filename else ""
        errors.print(
            f"Error: Cannot write{where}: {error.strerror}.\nFinished results are saved. Make room and run the "
            "same command again to continue."
        )
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished results are saved. Run the same command again to continue.")
        return 130
