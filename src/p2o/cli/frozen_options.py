"""Options of `p2o eval` and `p2o evolve`: a frozen model, its sampling, the questions."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from p2o.cli.defaults import EMBEDDED, EMBEDDED_RECIPE
from p2o.cli.errors import InputError
from p2o.cli.options import DataArguments, Parser, option_types, refuse_unknown
from p2o.cli.settings import checked, read_settings
from p2o.cli.words import normalized_option, take_option
from p2o.completions import Sampling
from p2o.engines.endpoint import check_base_url
from p2o.models import NAMED_MODELS
from p2o.options import check_ranges
from p2o.thoughts import HELP, THOUGHTS
from p2o.verifiers import VERIFIERS

TRUTH_VALUES = ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")

Arguments = TypeVar("Arguments", bound="FrozenArguments")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """A frozen model: a checkpoint, a name on the hub, 'pico', 'smollm2-135m', or what is served."""

    model: str = field(init=False, default="")  # positional
    shows_images: bool = field(init=False, default=False)  # whether the questions do, once they are loaded
    use_vllm: bool = _option(False, "Whether vLLM in this process runs the model instead of transformers.")
    base_url: str | None = _option(
        None, "Base URL of a server; MODEL is then openai/NAME for an OpenAI-compatible one."
    )
    served: bool = _option(False, "Whether MODEL is a name for litellm, with its key in the environment.")
    concurrency: int = _option(16, "Requests to a served model at once.")
    timeout: float = _option(600.0, "Seconds that a request to a served model may take.")
    max_retries: int = _option(3, "Retries per request to a served model.")
    dtype: str = _option("auto", "Dtype of the weights; 'auto' is the checkpoint's own, and float32 on a CPU.")
    attn_implementation: str | None = _option(None, "Attention implementation of transformers.")
    model_revision: str | None = _option(None, "Branch, tag or commit of a model on the hub.")
    trust_remote_code: bool = _option(False, "Whether to run code that comes with the model.")
    batch_size: int = _option(32, "Completions that transformers generates at once.")
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of the chat template, such as '{\"enable_thinking\": false}', for answers and for "
            "reflection by a model in this process; a server of MODEL is sent them."
        },
    )
    vllm_max_model_length: int | None = _option(None, "Tokens of prompt and completion; the model's own when not set.")
    vllm_gpu_memory_utilization: float = _option(0.9, "Share of the GPU's memory for vLLM.")
    vllm_tensor_parallel_size: int = _option(1, "GPUs that share the model.")
    vllm_data_parallel_size: int = _option(
        1,
        "Copies of vLLM on this machine that share the questions, each on GPUs of its own. On several machines, or "
        "with transformers, torchrun or accelerate starts the processes.",
    )

    def template_options(self) -> dict[str, Any]:
        """Options of the chat template.

        Raises:
            ValueError: neither a mapping nor one as JSON.
        """
        given = self.chat_template_kwargs
        try:
            options = json.loads(given) if isinstance(given, str) else given or {}
        except json.JSONDecodeError:
            options = None
        if not isinstance(options, dict):
            raise ValueError(f"chat_template_kwargs={given!r} is no mapping such as '{{\"enable_thinking\": false}}'.")
        return options


@dataclass
class SamplingArguments:
    """How answers are sampled. The defaults are the paper's."""

    max_completion_length: int = _option(12_288, "Longest completion, in tokens.")
    temperature: float = _option(0.6, "Sampling temperature; 0 is greedy.")
    top_p: float = _option(1.0, "Share of probability that is kept, in (0, 1].")
    top_k: int = _option(0, "Most probable tokens that are kept; 0 keeps all.")
    seed: int = _option(0, "Seed of sampling.")

    def sampling(self) -> Sampling:
        return Sampling(self.max_completion_length, self.temperature, self.top_p, self.top_k)


@dataclass
class QuestionArguments(DataArguments):
    """Options of the questions: named tasks, or a custom data set."""

    tasks: str | None = _option(None, "Names such as math500,aime24,gym:chain_sum,pico:hard; see p2o.tasks.named.")
    dataset_split: str = _option("train", "Split of the data.")
    solution_column: str = _option("solution", "Column with the gold answers.")
    verifier: str | None = field(
        default=None, metadata={"help": "Verifier for --dataset; 'math' when not set.", "choices": VERIFIERS}
    )
    reward_func: str | None = _option(
        None, "Reward function as `module:function` in place of the verifier; more than 0 is right."
    )
    thoughts: str = field(default="auto", metadata={"help": HELP, "choices": THOUGHTS})
    limit: int | None = _option(None, "Use only the first N questions of each task.")
    data_seed: int = _option(0, "Seed of questions that are drawn.")


@dataclass
class FrozenArguments(ModelArguments, SamplingArguments, QuestionArguments):
    """What `p2o eval` and `p2o evolve` have in common."""

    output_dir: str | None = _option(None, "Output directory; the same command resumes there.")

    def check(self) -> None:
        """
        Raises:
            ValueError: an option out of its range, or options that do not go together.
        """
        ranges: dict[str, float | str] = {
            **dict.fromkeys(("temperature", "top_k", "max_retries"), 0),
            **dict.fromkeys(("max_completion_length", "batch_size", "concurrency", "limit"), 1),
            **dict.fromkeys(("vllm_tensor_parallel_size", "vllm_data_parallel_size", "vllm_max_model_length"), 1),
            **{"top_p": "(0, 1]", "timeout": "(0, inf)", "vllm_gpu_memory_utilization": "(0, 1]"},
        }
        check_ranges(self, ranges)
        if bool(self.tasks) == bool(self.dataset_name):
            raise ValueError("Name the questions: either --tasks, such as math500,aime24, or --dataset with your own.")
        if self.verifier is not None and self.verifier not in VERIFIERS:
            raise ValueError(f"verifier={self.verifier!r} is unknown; choose one of {', '.join(VERIFIERS)}.")
        if self.thoughts not in THOUGHTS:
            raise ValueError(f"thoughts={self.thoughts!r} is unknown; choose one of {', '.join(THOUGHTS)}.")
        if self.verifier and not self.dataset_name:
            raise ValueError("--verifier is for --dataset; a task brings its own.")
        self.template_options()
        if self.base_url:
            check_base_url("base_url", self.base_url)
            self.served = True
        if self.vllm_data_parallel_size > 1 and not self.use_vllm:
            raise ValueError(
                "--vllm_data_parallel_size is of --use_vllm. With transformers, start several processes: torchrun "
                "--nproc_per_node 8 -m p2o …"
            )
        if self.served and (self.use_vllm or self.top_k):
            raise ValueError("A served model cannot be combined with --use_vllm or --top_k.")


def parse(
    kind: type[Arguments],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    takes_dataset: bool = False,
    needs_model: bool = True,
) -> Arguments:
    """Parses the options of a command, which override those of `--config`, a training configuration.

    Without a configuration, the embedded model has the settings of its recipe.

    Args:
        kind: dataclass of the options.
        takes_dataset: whether the configuration's data is taken where the command line names no tasks.
        needs_model: whether MODEL is the first word of the command line, or an option, "" where it is not given.

    Raises:
        InputError: an unknown option, a value that no option can have, a configuration that cannot be read.
    """
    argv = [normalized_option(word) for word in argv]
    path = take_option(argv, "--config")
    parser = Parser(
        kind,
        prog=prog,
        usage=f"%(prog)s {'MODEL ' if needs_model else ''}[--config FILE.yaml] [--OPTION VALUE ...]",
        allow_abbrev=False,
        description=description,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        default=argparse.SUPPRESS,
        help="A configuration of training: sets options of the same name; those on the command line override it.",
    )
    named = ", ".join(map(repr, NAMED_MODELS))
    about: dict[str, Any] = {} if needs_model else {"default": ""}
    parser.add_argument(
        "model" if needs_model else "--model",
        metavar="MODEL",
        help=f"a checkpoint, a name on the hub, {named}, or what is served",
        **about,
    )
    argv = _with_explicit_flags(argv, parser)
    named, rest = parser.parse_known_args(argv)
    refuse_unknown(rest, {action.dest for action in parser._actions})
    path = path or (str(EMBEDDED_RECIPE) if named.model == EMBEDDED else None)
    if path is not None:
        _set_defaults(parser, path, own_data=takes_dataset and not named.tasks)
    try:
        arguments, positional = parser.parse_args_into_dataclasses(args=argv, look_for_args_file=False)
        arguments.model = positional.model
        arguments.check()
    except ValueError as error:
        raise InputError(str(error)) from None
    return arguments


def _with_explicit_flags(argv: list[str], parser: Parser) -> list[str]:
    """The words with `true` after flags without a value: argparse would take the next word, MODEL perhaps, as it."""
    flags = {name for action in parser._actions if action.nargs == "?" for name in action.option_strings}
    words = []
    for word, following in pairwise([*argv, "--"]):
        words.append(word)
        if word in flags and not following.startswith("-") and following.lower() not in TRUTH_VALUES:
            words.append("true")
    return words


def _set_defaults(parser: Parser, path: str, own_data: bool) -> None:
    """Uses the settings of a training configuration as defaults, except those that only training has."""
    names = {action.dest for action in parser._actions} - {"config"}
    settings = checked(read_settings(path), {**dict.fromkeys(names, Any), **option_types()}, path)
    left_out = {"seed", "output_dir", *(() if own_data else ("dataset_name",))}
    parser.set_defaults_with_config(**{k: v for k, v in settings.items() if k in names - left_out})
