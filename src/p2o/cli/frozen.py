"""What `p2o eval` and `p2o evolve` share: a frozen model, questions, and who judges the answers, by options."""

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from p2o.cli.arguments import (
    EMBEDDED,
    EMBEDDED_RECIPE,
    limit_verifiers,
    load_function,
    read_settings,
    spelled,
)
from p2o.cli.errors import InputError
from p2o.completions import GenerationError, Sampling
from p2o.engines.endpoint import Endpoint, OptionNames, check_base_url
from p2o.engines.frozen import FrozenModel, served_model, transformers_model, vllm_model
from p2o.evaluation.types import QuestionSet, Sample, ScoreFn
from p2o.ledger import Ledger, Purpose
from p2o.pico import model_path, world
from p2o.state import differences, write_json
from p2o.tasks import DataError, load_splits, load_task, questions
from p2o.tasks.named import Verifier
from p2o.verifiers import VERIFIERS, Limits, SolutionError, Verdict, check_solutions, verify
from p2o.verifiers.rewards import ANSWER_FORMATS

BLOCK = 2**20  # bytes


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the model, of sampling, and of the questions, with the names that training has for them."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, a name on the hub, 'pico', or what is served")
    model = parser.add_argument_group("the model")
    model.add_argument("--use_vllm", action="store_true", help="by vLLM in this process instead of transformers")
    model.add_argument("--base_url", help="MODEL is served here: openai/NAME for an OpenAI-compatible server")
    model.add_argument("--served", action="store_true", help="MODEL is what litellm reaches, key in the environment")
    model.add_argument("--concurrency", type=int, default=16, help="requests at once (default: %(default)s)")
    model.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take (default: %(default)s)")
    model.add_argument("--max_retries", type=int, default=3, help="further attempts (default: %(default)s)")
    model.add_argument("--dtype", default="auto", help="of weights; auto: the checkpoint's, on a CPU float32")
    model.add_argument("--attn_implementation", help="of transformers")
    model.add_argument("--model_revision", help="on the hub")
    model.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    model.add_argument("--batch_size", type=int, default=32, help="completions at once, transformers' (%(default)s)")
    model.add_argument("--vllm_max_model_length", type=int, help="tokens of prompt and completion; the model's own")
    model.add_argument("--vllm_gpu_memory_utilization", type=float, default=0.9, help="(default: %(default)s)")
    model.add_argument("--vllm_tensor_parallel_size", type=int, default=1, help="(default: %(default)s)")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max_completion_length", type=int, default=12_288, help="tokens (default: %(default)s)")
    sampling.add_argument(
        "--temperature", type=float, default=0.6, help="0: greedy (default: %(default)s, the paper's)"
    )
    sampling.add_argument("--top_p", type=float, default=1.0, help="(default: %(default)s)")
    sampling.add_argument("--top_k", type=int, default=0, help="0: off (default: %(default)s)")
    sampling.add_argument("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    asked = parser.add_argument_group("questions")
    asked.add_argument("--tasks", help="names such as math500,aime24,gym:chain_sum,pico:hard; see p2o.tasks.named")
    asked.add_argument(
        "--dataset_name", "--dataset", help="your own: file, folder, hub name; 'pico': the embedded training questions"
    )
    asked.add_argument("--dataset_config", help="configuration on the hub")
    asked.add_argument("--dataset_revision", help="on the hub")
    asked.add_argument("--dataset_split", default="train", help="of --dataset (default: %(default)s)")
    asked.add_argument("--prompt_column", default="prompt", help="of --dataset (default: %(default)s)")
    asked.add_argument("--solution_column", default="solution", help="of --dataset (default: %(default)s)")
    asked.add_argument("--prompts_as_chats", action="store_true", help="texts of --dataset become chats")
    asked.add_argument("--system_prompt", help="in front of the chats of --dataset")
    asked.add_argument("--answer_format", help="behind every question, in place of a task's own")
    asked.add_argument("--verifier", choices=VERIFIERS, help="for --dataset (default: math)")
    asked.add_argument(
        "--verifier_timeout", type=float, default=Limits.seconds, help="seconds for one answer (%(default)s)"
    )
    asked.add_argument("--verifier_memory", type=int, default=Limits.memory_mb, help="MiB of a process (%(default)s)")
    asked.add_argument("--verifier_workers", type=int, help="processes; one a core if not given")
    asked.add_argument("--reward_func", help="module:function by TRL's convention instead; more than 0 is right")
    asked.add_argument("--limit", type=int, help="the first so many questions of each task")
    asked.add_argument("--data_seed", type=int, default=0, help="of questions that are drawn (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, help="where it is kept; the same command goes on there")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str], at_least: Iterable[tuple[str, float]]) -> Any:
    """The options; those that a configuration names, given by `--config` or the embedded world's, are defaults.

    Args:
        at_least: options with their least values, beside those of this module.

    Raises:
        InputError: what no value can be.
    """
    argv = [spelled(word) for word in argv]
    known, _ = parser.parse_known_args(argv)
    path = getattr(known, "config", None) or (EMBEDDED_RECIPE if known.model == EMBEDDED else None)
    if path is not None:
        settings = read_settings(path)
        # What else training has to be told is not asked here.
        options = {action.dest for action in parser._actions} - {"seed", "output_dir"}
        if known.tasks or not hasattr(known, "config"):
            options.remove("dataset_name")
        parser.set_defaults(**{name: value for name, value in settings.items() if name in options})
    arguments = parser.parse_args(argv)
    common = [("max_completion_length", 1), ("temperature", 0), ("top_k", 0), ("batch_size", 1), ("concurrency", 1)]
    for name, least in [*common, ("max_retries", 0), ("limit", 1), *at_least]:
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise InputError(f"--{name} {value} must be at least {least}.")
    if not 0 < arguments.top_p <= 1:
        raise InputError(f"--top_p {arguments.top_p} must be greater than 0 and at most 1.")
    if not arguments.timeout > 0:
        raise InputError(f"--timeout {arguments.timeout} must be greater than 0.")
    if bool(arguments.tasks) == bool(arguments.dataset_name):
        raise InputError(
            "Say what is asked: either --tasks, such as math500,aime24, or --dataset with data of your own."
        )
    if arguments.base_url:
        try:
            check_base_url("--base_url", arguments.base_url)
        except ValueError as error:
            raise InputError(str(error)) from None
        arguments.served = True
    if arguments.served and (arguments.use_vllm or arguments.top_k):
        raise InputError("A served model goes with neither --use_vllm nor --top_k.")
    return arguments


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    return Sampling(arguments.max_completion_length, arguments.temperature, arguments.top_p, arguments.top_k)


# -- the model ---------------------------------------------------------------------------------------------------------


def model_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides what the model says, beside sampling: another value and work that was begun cannot go on."""
    engine = "served" if arguments.served else "vllm" if arguments.use_vllm else "transformers"
    settings: dict[str, Any] = {"model": arguments.model, "engine": engine}
    if engine == "served":
        return {**settings, "base_url": arguments.base_url}
    settings |= {"dtype": arguments.dtype, "model_revision": arguments.model_revision}
    settings["weights"] = weights_digest(Path(_path(arguments.model)))
    if engine == "transformers":
        settings |= {"attn_implementation": arguments.attn_implementation, "batch_size": arguments.batch_size}
    return settings


def weights_digest(path: Path) -> str | None:
    """Tells the weights in a directory from others by samples of every file; None where it is none (a hub name)."""
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), *path.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as opened:
            for start in range(0, size, max(size // 16, BLOCK)):
                opened.seek(start)
                digest.update(opened.read(BLOCK))
    return digest.hexdigest()[:16]


def load_model(arguments: argparse.Namespace) -> FrozenModel:
    """
    Raises:
        InputError: no such model, no engine for it, or nothing that is served under that name.
    """
    try:
        if arguments.served:
            make = endpoint(arguments, empty_answers=True)
            make(sampling_of(arguments))  # complains of names and keys now
            return served_model(arguments.model, make)
        common = {"revision": arguments.model_revision, "trust_remote_code": arguments.trust_remote_code}
        if arguments.use_vllm:
            return vllm_model(
                _path(arguments.model),
                dtype=arguments.dtype,
                max_model_length=arguments.vllm_max_model_length,
                gpu_memory_utilization=arguments.vllm_gpu_memory_utilization,
                tensor_parallel_size=arguments.vllm_tensor_parallel_size,
                **common,
            )
        return transformers_model(
            _path(arguments.model),
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            **common,
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"Cannot use the model {arguments.model}: {error}") from error


def endpoint(arguments: argparse.Namespace, *, empty_answers: bool = False) -> Any:
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
            empty_answers=empty_answers,
            options=OptionNames("MODEL", "--base_url", "--max_completion_length", "not"),
        )

    return make


def _path(name: str) -> str:
    return model_path() if name == EMBEDDED else name


# -- questions and who judges the answers ------------------------------------------------------------------------------


def scorer(verifier: Verifier) -> ScoreFn:
    """The verifier of this name, the same as in training."""
    if verifier == "pico":
        return _score_embedded

    def score(completions: list[str], rows: list[dict[str, Any]]) -> Sequence[Verdict]:
        try:
            return verify(completions, rows, verifier)
        except SolutionError as error:
            raise InputError(f"A gold answer cannot be read: {error}") from None

    return score


def _score_embedded(completions: list[str], rows: list[dict[str, Any]]) -> list[Verdict]:
    judged: list[Verdict] = []
    for completion, row in zip(completions, rows, strict=True):
        answer = world.extract_answer(completion)
        right = world.is_correct(completion, row["family"], row["entry"])
        judged.append(Verdict(float(right), answer, "right" if right else "wrong" if answer else "no answer", 0.0))
    return judged


def reward_scorer(name: str) -> ScoreFn:
    """A reward function by TRL's convention as a verifier: more than 0 is right, None is not scored and an error.

    Raises:
        InputError: no such function; when called, rewards that are none.
    """
    function = load_function(name, "reward_funcs")

    def score(completions: list[str], rows: list[dict[str, Any]]) -> list[Verdict]:
        columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
        prompts = [row["prompt"] for row in rows]
        said: list[Any] = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for text, prompt in zip(completions, prompts, strict=True)
        ]
        rewards = function(prompts=prompts, completions=said, **columns)
        if len(rewards) != len(rows) or any(not isinstance(r, int | float) or r != r for r in rewards):
            raise InputError(
                f"--reward_func {name}: {len(rows)} numbers are wanted, one a completion; got {rewards!r:.200}"
            )
        return [Verdict(float(reward), None, "right" if reward > 0 else "wrong", 0.0) for reward in rewards]

    return score


def load_questions(arguments: argparse.Namespace, say: Any) -> list[QuestionSet]:
    """
    Args:
        say: told in a line what was dropped.

    Raises:
        InputError: no such task or data, or data that cannot be used.
    """
    limit_verifiers(arguments)
    own = reward_scorer(arguments.reward_func) if arguments.reward_func else None
    if arguments.verifier and not arguments.dataset_name:
        raise InputError("--verifier is for --dataset; a task brings its own.")
    try:
        if arguments.dataset_name:
            loaded = [_own_questions(arguments, own, say)]
        else:
            loaded = []
            for name in dict.fromkeys(part.strip() for part in arguments.tasks.split(",") if part.strip()):
                task = load_task(
                    name, seed=arguments.data_seed, limit=arguments.limit, answer_format=arguments.answer_format
                )
                rows = list(task.dataset)
                if task.verifier == "math" and own is None:
                    rows = _readable(task.name, rows, say)
                loaded.append(QuestionSet(task.name, rows, own or scorer(task.verifier), _format(own, task.verifier)))
    except DataError as error:
        raise InputError(str(error)) from error
    if not loaded:
        raise InputError(f"--tasks {arguments.tasks!r} names none.")
    return loaded


def _format(own: ScoreFn | None, verifier: Verifier) -> str:
    return "" if own is not None else ANSWER_FORMATS.get(verifier, "")


def _own_questions(arguments: argparse.Namespace, own: ScoreFn | None, say: Any) -> QuestionSet:
    if arguments.dataset_name == EMBEDDED:
        rows = list(world.train_dataset(arguments.data_seed))
        return QuestionSet(EMBEDDED, rows[: arguments.limit], own or scorer("pico"))
    verifier: Verifier = arguments.verifier or "math"
    splits = load_splits(arguments.dataset_name, arguments.dataset_config, arguments.dataset_revision)
    if arguments.dataset_split not in splits:
        raise InputError(
            f"{arguments.dataset_name} has no split {arguments.dataset_split!r}; it has {', '.join(splits)}."
        )
    dataset, report = questions(
        splits[arguments.dataset_split],
        prompt_column=arguments.prompt_column,
        solution_column=arguments.solution_column,
        system_prompt=arguments.system_prompt,
        answer_format=arguments.answer_format,
        as_chat=arguments.prompts_as_chats,
        unparsable=check_solutions if own is None and verifier == "math" else None,
        name=arguments.dataset_name,
    )
    if problem := report.problem():
        raise InputError(problem)
    if report.findings:
        say(report.line())
    if own is None and "solution" not in dataset.column_names:
        raise InputError(
            f"{arguments.dataset_name} has no gold answers to verify by; name them with --solution_column."
        )
    return QuestionSet(
        arguments.dataset_name, list(dataset)[: arguments.limit], own or scorer(verifier), _format(own, verifier)
    )


def _readable(name: str, rows: list[dict[str, Any]], say: Any) -> list[dict[str, Any]]:
    """The rows whose gold answers can be verified against; `say` is told which others are left out."""
    bad = set(check_solutions([row["solution"] for row in rows]))
    if bad:
        shown = ", ".join(map(str, sorted(bad)[:5])) + (", …" if len(bad) > 5 else "")
        say(f"{name}: {len(bad)} of {len(rows)} questions left out, their answers are unreadable (rows {shown}).")
    return [row for index, row in enumerate(rows) if index not in bad]


def refuse_long_questions(tasks: Sequence[QuestionSet], model: FrozenModel, sampling: Sampling) -> None:
    """
    Raises:
        InputError: questions that leave no room for an answer, or that the model cannot be asked at all.
    """
    for task in tasks:
        try:
            long = model.too_long([row["prompt"] for row in task.rows], sampling.max_completion_length)
        except ValueError as error:
            raise InputError(str(error)) from None
        if long:
            first, length = next(iter(long.items()))
            room = (model.context_length or 0) - max(long.values())
            raise InputError(
                f"{task.name}: {len(long)} of {len(task.rows)} questions are too long, question {first} with {length} "
                f"tokens the first: the model holds {model.context_length}, and --max_completion_length is "
                f"{sampling.max_completion_length}. "
                + (f"Lower that, to {room} at most." if room > 0 else "Shorten the questions.")
            )


# -- where it is kept --------------------------------------------------------------------------------------------------


def open_directory(path: Path | None, kind: str, model: str, settings: dict[str, Any]) -> Path:
    """The directory of this very work, where it goes on, or a new one. Without a name it is named after its settings.

    Raises:
        InputError: it holds other work, named by what differs; it cannot be written to.
    """
    if path is None:
        name = Path(model).name if Path(model).name != "model" else Path(model).absolute().parent.name
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = Path("runs") / kind / f"{name}-{digest}"
    kept = path / "settings.json"
    try:
        if kept.exists():
            changed = differences(json.loads(kept.read_text()), settings)
            if changed:
                raise InputError(f"{path} holds other work: {changed}. Choose another --output_dir.")
            return path
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path} is not empty and holds nothing of `p2o {kind}`. Choose another --output_dir.")
        path.mkdir(parents=True, exist_ok=True)
        write_json(kept, settings)
    except OSError as error:
        raise InputError(f"Cannot write to {path}: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{kept} is damaged ({error}). Choose another --output_dir.") from None
    return path


def charge(ledger: Ledger, purpose: Purpose, samples: Iterable[Sample]) -> None:
    """Adds what the samples cost."""
    for sample in samples:
        ledger.add(purpose, 1, sample.prompt_tokens or 0, sample.completion_tokens or 0)


def run(command: Callable[[list[str], Console], int], argv: list[str]) -> int:
    """The exit code of `command(argv, standard output)`; what ends it early is told in one message."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180  # for tables
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    # What the libraries say to programmers is not for a watcher.
    disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return command(argv, console)
    except InputError as error:
        errors.print(f"Error: {error}")
        return 2
    except GenerationError as error:
        errors.print(f"Error: {error}\nWhat is finished is kept. The same command goes on from there.")
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted; nothing that was finished is lost. The same command goes on from there.")
        return 130
