"""What `p2o train` is told: YAML files and options by TRL's conventions, and the data and rewards they name."""

import argparse
import importlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer
from trl import ModelConfig, TrlParser

import p2o.pico
from p2o.cli.errors import InputError
from p2o.config import P2OConfig
from p2o.methods import METHODS, with_method
from p2o.tasks import (
    NAMED_SETS,
    DataError,
    Report,
    is_task,
    load_splits,
    load_task,
    long_prompts,
    questions,
    verifier_of,
)
from p2o.templates import Prompt
from p2o.verifiers import VERIFIERS, Limits, check_solutions, set_default_limits
from p2o.verifiers.rewards import feedback_of

EMBEDDED = "pico"
EMBEDDED_FUNCTIONS = {
    "reward_funcs": "p2o.pico.world:accuracy_reward",
    "feedback_func": "p2o.pico.world:feedback",
    "reflection_func": "p2o.pico.teacher:reflect",
}
EMBEDDED_RECIPE = Path(p2o.pico.__file__).parent / "recipe.yaml"


@dataclass
class RunArguments:
    """What is trained on what; the options of training are those of [`P2OConfig`]."""

    method: str = field(
        default="p2o",
        metadata={"help": f"What is trained by, each a few settings over the same trainer: {', '.join(METHODS)}."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub name, a .json/.jsonl/.csv/.parquet file or pattern, a folder, a directory of `save_to_disk`, "
            f"a named set ({', '.join(named.name for named in NAMED_SETS)}, gym:FAMILY@LEVEL+FAMILY for "
            "reasoning-gym), or 'pico' for the embedded tasks."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the hub."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a dataset on the hub; named sets have their own."}
    )
    dataset_path: str | None = field(
        default=None, metadata={"help": "Folder with a copy of a named set, in place of the hub."}
    )
    dataset_size: int | None = field(
        default=None, metadata={"help": "Questions of a named set, when not all; of a reasoning-gym one, how many."}
    )
    prompt_column: str = field(
        default="prompt",
        metadata={"help": "Column with the questions, texts or chats. The answers' is `solution_column`."},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Put in front of chats that have none; makes chats of texts."}
    )
    answer_format: str | None = field(
        default=None, metadata={"help": "What is expected of the answer's form, put behind each question."}
    )
    prompts_as_chats: bool = field(
        default=False,
        metadata={"help": "Whether prompts that are texts become chats. As they are, they meet no chat template."},
    )
    strict_data: bool = field(
        default=False, metadata={"help": "Whether a row that would be dropped stops the run instead."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on, before, during and after. None when not set."}
    )
    evaluate_before_and_after: bool = field(
        default=True,
        metadata={"help": "Whether to evaluate in full before and after training, beside the curve during it."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: 'math' (math-verify), 'exact' or 'gym' (reasoning-gym's scorers), which verify "
            "in worker processes with limits; names from `trl.rewards`; `module:function`; or 'pico'. A file in the "
            "working directory is a module too."
        },
    )
    feedback_func: str | None = field(
        default=None,
        metadata={
            "help": "Feedback for the reflection model, as `module:function`. By default that of the reward 'math', "
            "'exact' or 'gym', if one of them decides success."
        },
    )
    verifier_timeout: float = field(
        default=Limits.seconds,
        metadata={"help": "Seconds that the rewards 'math', 'exact' and 'gym' give one completion."},
    )
    verifier_memory: int = field(
        default=Limits.memory_mb, metadata={"help": "Memory in MiB that one of their worker processes may take."}
    )
    verifier_workers: int | None = field(
        default=None, metadata={"help": "Their worker processes; as many as there are cores if unset."}
    )
    reflection_func: str | None = field(
        default=None,
        metadata={
            "help": "Reflection model as `module:function`, see `P2OTrainer(reflect=…)`; 'pico' is a teacher that "
            "knows the embedded world. It takes the place of `reflection_model`."
        },
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads for torch; its own choice if unset."})


@dataclass
class Run:
    """Everything needed to train, checked.

    Args:
        config: the settings as one YAML mapping, from which the run can be repeated; the method is named in it, what it
            implies is not.
        eval_datasets: small sets by name for the curve during training.
        final_datasets: full sets by name for before and after.
        report: what the check of the training data found; None for the embedded questions.
    """

    arguments: RunArguments
    training: P2OConfig
    model: ModelConfig
    config: dict[str, Any]
    train_dataset: Dataset
    eval_datasets: dict[str, Dataset]
    final_datasets: dict[str, Dataset]
    rewards: list[Any]
    feedback: Any
    reflect: Any
    report: Report | None


def parse(argv: list[str], output_dir: str) -> tuple[RunArguments, P2OConfig, ModelConfig, dict[str, Any]]:
    """Command line over YAML over defaults. Without `--config` the embedded world's recipe is the YAML.

    Raises:
        InputError: no such file, not a mapping, unknown names, values that do not fit.
    """
    argv = list(argv)
    path = take_option(argv, "--config") or str(EMBEDDED_RECIPE)
    settings = {**read_settings(path), **_explicit(argv), "output_dir": output_dir}
    try:
        effective = with_method(settings)
    except ValueError as error:
        raise InputError(str(error)) from None

    parser = _parser()
    unknown = parser.set_defaults_with_config(**effective)
    if unknown:
        raise InputError(f"Unknown option(s) in {path}: {', '.join(name[2:] for name in unknown[::2])}.")
    name = settings.get("dataset_name")
    if not settings.get("reward_funcs") and isinstance(name, str) and is_task(name):
        settings["reward_funcs"] = effective["reward_funcs"] = [verifier_of(name)]
    missing = [name for name in ("model_name_or_path", "dataset_name", "reward_funcs") if not settings.get(name)]
    if missing:
        raise InputError(f"The configuration names no {', no '.join(missing)}.")
    try:
        arguments, training, model = parser.parse_args_into_dataclasses(args=[], look_for_args_file=False)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    return arguments, training, model, settings


def read_settings(path: str | Path) -> dict[str, Any]:
    """A configuration.

    Raises:
        InputError: no such file, not a mapping.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a YAML mapping of option names to values.")
    return settings


def limit_verifiers(arguments: Any) -> None:
    """Sets this process's limits to the options `verifier_…`.

    Raises:
        InputError: a limit that is not positive.
    """
    try:
        set_default_limits(Limits(arguments.verifier_timeout, arguments.verifier_memory, arguments.verifier_workers))
    except ValueError as error:
        raise InputError(str(error)) from None


def spelled(word: str) -> str:
    """An option as the parser knows it: `--prompt-column` is `--prompt_column`, and `--dataset` the data's name."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return ("--dataset_name" if name == "--dataset" else name) + equals + value


def take_option(argv: list[str], name: str) -> str | None:
    """The value of `name VALUE` or `name=VALUE`, taken out of the command line; None when it is not there.

    Raises:
        InputError: the option without its value.
    """
    for index, word in enumerate(argv):
        if word.startswith(f"{name}="):
            del argv[index]
            return word.partition("=")[2]
        if word == name:
            if index + 1 >= len(argv):
                raise InputError(f"{name} needs a value.")
            value = argv[index + 1]
            del argv[index : index + 2]
            return value
    return None


def _parser() -> TrlParser:
    return TrlParser(
        [RunArguments, P2OConfig, ModelConfig],
        prog="p2o train",
        conflict_handler="resolve",
        description="Trains a model; without options, the embedded world. --config FILE.yaml sets any of the options "
        "below, which override it. --resume goes on with the run in --output_dir, or with the newest under runs/.",
    )


def _explicit(argv: list[str]) -> dict[str, Any]:
    """Only what the command line itself says."""
    parser = _parser()
    for action in parser._actions:
        action.required = False
        if action.dest != "help":
            action.default = argparse.SUPPRESS
    return vars(parser.parse_args(argv))


def prepare(argv: list[str], output_dir: str) -> Run:
    """Parses, loads and checks.

    Raises:
        InputError: whatever cannot work, before anything is trained.
    """
    arguments, training, model, settings = parse(argv, output_dir)
    if model.model_name_or_path == EMBEDDED:
        from p2o.pico import model_path

        model.model_name_or_path = model_path()
    rewards = [load_function(name, "reward_funcs") for name in arguments.reward_funcs or []]
    feedback = load_function(arguments.feedback_func, "feedback_func") if arguments.feedback_func else None
    if feedback is None:
        deciding = [training.success_reward] if training.success_reward else arguments.reward_funcs or []
        feedback = next(filter(None, map(feedback_of, deciding)), None)
    limit_verifiers(arguments)
    reflect = load_function(arguments.reflection_func, "reflection_func") if arguments.reflection_func else None
    report = None
    if arguments.dataset_name == EMBEDDED:
        from p2o.pico import world

        train_dataset = world.train_dataset(training.data_seed or 0)
        final_datasets = world.eval_dataset()
        eval_datasets = world.validation_dataset()
    else:
        train_dataset, report, final_datasets = load_questions(arguments, training, model)
        eval_datasets = final_datasets
    if not arguments.evaluate_before_and_after:
        final_datasets = {}
    return Run(
        arguments=arguments,
        training=training,
        model=model,
        config=settings,
        train_dataset=train_dataset,
        eval_datasets=eval_datasets,
        final_datasets=final_datasets,
        rewards=rewards,
        feedback=feedback,
        reflect=reflect,
        report=report,
    )


def load_questions(
    arguments: RunArguments, training: P2OConfig, model: ModelConfig
) -> tuple[Dataset, Report, dict[str, Dataset]]:
    """The training questions with what their check found, and the test questions by split.

    `training.solution_column` is that of the mapped data afterwards. Where the report stops, no test set is loaded.

    Raises:
        InputError: data that cannot be loaded, a column or a split that is not there.
    """
    name, test_split = str(arguments.dataset_name), arguments.dataset_test_split
    mapping = {
        "system_prompt": arguments.system_prompt,
        "as_chat": arguments.prompts_as_chats,
        "too_long": _too_long(training, model),
        "strict": arguments.strict_data,
        "unparsable": check_solutions if "math" in (arguments.reward_funcs or []) else None,
    }
    try:
        if is_task(name):
            if test_split and not name.startswith("gym:"):
                raise InputError(f"{name} is one set of questions; leave dataset_test_split out.")
            options: dict[str, Any] = {
                "seed": training.data_seed or 0,
                "path": arguments.dataset_path,
                "limit": arguments.dataset_size,
                "answer_format": arguments.answer_format,
            }
            train = load_task(name, split="train", **options).dataset
            test = load_task(name, split="test", **options).dataset if test_split else None
        else:
            splits = load_splits(name, arguments.dataset_config, arguments.dataset_revision)
            train = split_of(splits, arguments.dataset_train_split, name)
            test = split_of(splits, test_split, name) if test_split else None
            mapping |= {
                "prompt_column": arguments.prompt_column,
                "solution_column": training.solution_column,
                "answer_format": arguments.answer_format,
            }
        dataset, report = questions(train, name=name, **mapping)
        finals = {}
        if test is not None and not report.stops:
            tested, test_report = questions(test, name=f"{name}, {test_split}", **mapping)
            if problem := test_report.problem():
                raise InputError(problem)
            finals = {str(test_split): tested}
    except DataError as error:
        raise InputError(str(error)) from error
    training.solution_column = "solution"
    return dataset, report, finals


def _too_long(training: P2OConfig, model: ModelConfig) -> Any:
    """The prompts over the limit: `max_prompt_length`, or what the model's positions leave for one."""
    known = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, **known)
        config = AutoConfig.from_pretrained(model.model_name_or_path, **known).get_text_config()
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot load the tokenizer of {model.model_name_or_path}: {error}") from error
    positions = getattr(config, "max_position_embeddings", None)
    limit = training.max_prompt_length or (positions and positions - (training.max_completion_length or 0))

    def too_long(prompts: list[Prompt]) -> dict[int, int]:
        if not limit:
            return {}
        try:
            return long_prompts(prompts, tokenizer, limit, **(training.chat_template_kwargs or {}))
        except ValueError as error:
            raise DataError(str(error)) from error

    return too_long


def hub_name(arguments: RunArguments) -> str | None:
    """`owner/name` of the training data on the hub; None for data that is not from there."""
    name = str(arguments.dataset_name)
    if is_task(name):
        return next((named.hub_id for named in NAMED_SETS if named.name == name.lower()), None)
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def split_of(loaded: DatasetDict, split: str, name: str | None) -> Dataset:
    if split not in loaded:
        raise InputError(f"The dataset {name} has no split {split!r}; it has {', '.join(loaded)}.")
    return loaded[split]


def load_function(name: str, option: str) -> Any:
    """A function by `module:function`; for rewards also a verifier's, by its name in `trl.rewards`, or 'pico'."""
    if name == EMBEDDED:
        name = EMBEDDED_FUNCTIONS[option]
    if name in VERIFIERS and option == "reward_funcs":
        name = f"p2o.verifiers.rewards:{name}"
    if ":" not in name and "." not in name:
        name = f"trl.rewards:{name}"
    module, _, function = name.replace(":", ".").rpartition(".")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module can fail in any way
        raise InputError(f"{option}: cannot import {name!r} ({type(error).__name__}: {error}).") from error
    if not callable(found):
        raise InputError(f"{option}: {name!r} is not a function.")
    return found
