"""Prepares a run of `p2o train`: settings, data, rewards and feedback, all checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from trl import ModelConfig

from p2o.cli.data import load_questions
from p2o.cli.defaults import EMBEDDED, EMBEDDED_WITH_TOOLS, WORKED, with_defaults
from p2o.cli.errors import InputError
from p2o.cli.functions import load_function, load_tools, refuse_missing_columns
from p2o.cli.models import path_of_model
from p2o.cli.options import LEAST, Parser, RunArguments, explicit, option_types
from p2o.cli.secrets import refuse_nested_secrets
from p2o.cli.settings import Settings, checked, read_settings
from p2o.cli.words import take_option
from p2o.config import P2OConfig
from p2o.difficulty.profile import ProfileError
from p2o.difficulty.training import evaluation_by_bucket
from p2o.input_checks import check_evaluation
from p2o.methods import with_method
from p2o.tasks import Report, is_task
from p2o.verifiers import Limits, set_default_limits
from p2o.verifiers.rewards import feedback_of


@dataclass
class Run:
    """Everything needed to train, checked.

    Args:
        config: the settings as one YAML mapping, from which the run can be repeated; includes the method's name, not
            the options that it presets.
        eval_datasets: small sets by name for the curve during training.
        final_datasets: full sets by name for before and after.
        report: what the check of the training data found; None for the embedded questions.
        default_messages: what was chosen for settings that were not given.
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
    tools: list[Any]
    report: Report | None
    default_messages: list[str]


class Parsed(NamedTuple):
    """The parsed command line and configuration file; see [`Run`]."""

    arguments: RunArguments
    training: P2OConfig
    model: ModelConfig
    config: Settings
    default_messages: list[str]


def given_settings(argv: list[str]) -> tuple[Settings, bool]:
    """What the command line and its configuration file set, converted; and whether there is such a file.

    Raises:
        InputError: no such file, not a mapping, unknown names, values that do not fit, a secret that would be saved.
    """
    path = take_option(argv, "--config")
    settings = checked(read_settings(path), option_types(), path) if path else {}
    settings |= checked(explicit(argv), option_types(), "the command line")
    refuse_nested_secrets(settings, path or "the command line")
    return settings, path is not None


def parse(argv: list[str], output_dir: str) -> Parsed:
    """Command line over YAML over defaults.

    Raises:
        InputError: no such file, not a mapping, unknown names, values that do not fit.
    """
    settings, has_file = given_settings(list(argv))
    _refuse_options_without_effect(settings)
    settings, messages = with_defaults(settings, has_file=has_file)
    missing = [name for name in ("model_name_or_path", "dataset_name") if not settings.get(name)]
    if missing:
        raise InputError(f"Missing in the configuration: {', '.join(missing)}.")
    # Not saved with the settings, which may be used to repeat the run in another directory.
    settings.pop("output_dir", None)
    try:
        effective = with_method(settings)
    except ValueError as error:
        raise InputError(str(error)) from None
    small = [name for name, least in LEAST.items() if effective.get(name) is not None and effective[name] < least]
    if small:
        raise InputError(f"{'; '.join(f'{name}={effective[name]} must be at least {LEAST[name]}' for name in small)}.")
    parser = Parser()
    parser.set_defaults_with_config(**effective, output_dir=output_dir)
    try:
        arguments, training, model = parser.parse_args_into_dataclasses(args=[], look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(str(error)) from error
    return Parsed(arguments, training, model, settings, messages)


def _refuse_options_without_effect(settings: Settings) -> None:
    """
    Raises:
        InputError: an option for another kind of data, which would have no effect.
    """
    name = str(settings.get("dataset_name") or EMBEDDED)
    if is_task(name) or name == EMBEDDED_WITH_TOOLS:
        sort, without = "a named set", ["prompt_column", "solution_column", "image_column", "dataset_config"]
        without += ["dataset_revision"]
        if name in (EMBEDDED, EMBEDDED_WITH_TOOLS):
            without += ["dataset_path", "dataset_size", "dataset_test_split"]
    else:
        sort, without = "not a named set", ["dataset_path", "dataset_size"]
    found = [option for option in without if settings.get(option) is not None]
    if found:
        raise InputError(f"Options without effect: {', '.join(found)} ({name} is {sort}).")


def limit_verifiers(arguments: Any) -> None:
    """Sets this process's limits to the options `verifier_…`.

    Raises:
        InputError: a limit that is not positive.
    """
    try:
        set_default_limits(Limits(arguments.verifier_timeout, arguments.verifier_memory, arguments.verifier_workers))
    except ValueError as error:
        raise InputError(str(error)) from None


def prepare(argv: list[str], output_dir: str) -> Run:
    """Parses, loads and checks.

    Raises:
        InputError: settings or data that cannot be trained on.
    """
    arguments, training, model, settings, messages = parse(argv, output_dir)
    model.model_name_or_path = path_of_model(str(model.model_name_or_path))
    _refuse_without_weights(model.model_name_or_path)
    names = arguments.reward_funcs or []
    rewards = [load_function(name, "reward_funcs") for name in names]
    feedback = load_function(arguments.feedback_func, "feedback_func") if arguments.feedback_func else None
    if feedback is None:
        deciding = [training.success_reward] if training.success_reward else names
        feedback = next(filter(None, map(feedback_of, deciding)), None)
    limit_verifiers(arguments)
    reflect = load_function(arguments.reflection_func, "reflection_func") if arguments.reflection_func else None
    tools = load_tools(arguments.tools or [])
    report = None
    if arguments.dataset_name in (EMBEDDED, EMBEDDED_WITH_TOOLS):
        train_dataset, final_datasets, eval_datasets = _embedded(arguments, training)
    else:
        train_dataset, report, final_datasets = load_questions(arguments, training, model)
        eval_datasets = final_datasets
    if report is None or not report.stops:
        for where, data in {str(arguments.dataset_name): train_dataset, **final_datasets}.items():
            refuse_missing_columns(rewards, names, data.column_names, where)
        if training.eval_strategy != "no" and not eval_datasets:
            raise InputError(
                f"eval_strategy is {training.eval_strategy}, but there are no evaluation questions: set "
                "dataset_test_split, or leave eval_strategy out."
            )
    if not arguments.evaluate_before_and_after:
        final_datasets = {}
    elif arguments.eval_difficulty_profile:
        final_datasets = _by_bucket(final_datasets, arguments.eval_difficulty_profile)
    if final_datasets:
        _refuse_cut_groups(training)
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
        tools=tools,
        report=report,
        default_messages=messages,
    )


def _embedded(arguments: RunArguments, training: P2OConfig) -> tuple[Dataset, dict[str, Dataset], dict[str, Dataset]]:
    """Questions of an embedded world: for training, for before and after, and for the curve.

    Raises:
        InputError: questions that take tools, and none are given.
    """
    from p2o.pico import world
    from p2o.pico.tools import world as tools_world

    seed = training.data_seed or 0
    if arguments.dataset_name == EMBEDDED:
        questions = world.train_dataset(seed)
        if training.hint_column != WORKED:  # or reward functions would be given it
            questions = questions.remove_columns(WORKED)
        return questions, world.eval_dataset(), world.validation_dataset()
    if not arguments.tools:
        raise InputError(f"{EMBEDDED_WITH_TOOLS} takes tools: start from recipes/embedded-tools.yaml, or set `tools`.")
    return tools_world.train_dataset(seed), tools_world.eval_dataset(), tools_world.validation_dataset()


def _by_bucket(sets: dict[str, Dataset], profile: str) -> dict[str, Dataset]:
    """
    Raises:
        InputError: no evaluation questions, or a profile that is not one of them.
    """
    if not sets:
        raise InputError("eval_difficulty_profile needs evaluation questions: set dataset_test_split.")
    try:
        return evaluation_by_bucket(sets, profile)
    except ProfileError as error:
        raise InputError(str(error)) from None


def _refuse_cut_groups(training: P2OConfig) -> None:
    """
    Raises:
        InputError: evaluation batches that no question's answers fit into.
    """
    try:
        check_evaluation(training)
    except ValueError as error:
        raise InputError(str(error)) from None


def _refuse_without_weights(name: str) -> None:
    """
    Raises:
        InputError: a directory without a model in it.
    """
    if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")) and not any(Path(name).glob("*.bin")):
        raise InputError(f"{name} is not a model directory: it has no .safetensors or .bin file.")
