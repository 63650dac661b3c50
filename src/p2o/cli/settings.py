"""Reads a configuration file: strict YAML; unknown names and values of a wrong type are errors."""

import difflib
import re
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from p2o.cli.errors import InputError

Settings = dict[str, Any]

# Names that other trainers use for an option, and ours. 'nothing: …' if there is no counterpart.
OTHER_NAMES = {
    "attn_impl": "attn_implementation",
    "benchmarks": "dataset_test_split",
    "dataset": "dataset_name",
    "dataset_configs": "dataset_config",
    "dataset_id_or_path": "dataset_name",
    "dataset_mixture": "dataset_name, one data set",
    "dataset_num_proc": "nothing: leave it out",
    "dataset_prompt_column": "prompt_column",
    "dataset_solution_column": "solution_column",
    "dataset_split": "dataset_train_split",
    "dataset_streaming": "nothing: leave it out",
    "env": "nothing: set the environment where the command is given",
    "eval_dataset": "dataset_test_split",
    "evaluation_strategy": "eval_strategy",
    "lr": "learning_rate",
    "max_new_tokens": "max_completion_length",
    "max_response_length": "max_completion_length",
    "max_seq_length": "max_completion_length and max_prompt_length",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "n_gpus_per_node": "nothing: accelerate launch --num_processes",
    "no_cuda": "use_cpu",
    "num_rollouts": "num_generations",
    "overwrite_output_dir": "nothing: runs are never overwritten; use --resume",
    "rollout_n": "num_generations",
    "test_split": "dataset_test_split",
    "torch_dtype": "dtype",
    "total_epochs": "num_train_epochs",
    "train_batch_size": "per_device_train_batch_size",
    "train_split": "dataset_train_split",
    "use_lora": "use_peft",
    "wandb_entity": "nothing: set WANDB_ENTITY",
    "wandb_log": "report_to",
    "wandb_project": "project",
    "warmup_ratio": "warmup_steps; a value below 1 is a fraction of all steps",
}
# transformers options that `p2o train` ignores, and what to use.
UNHEEDED = {
    "do_train": "p2o train always trains",
    "do_eval": "use eval_strategy and dataset_test_split",
    "do_predict": "use dataset_test_split",
    "resume_from_checkpoint": "use --resume",
    "local_rank": "set by accelerate launch",
    "hub_strategy": "use push_to_hub, which uploads the model at the end",
    "hub_always_push": "use push_to_hub, which uploads the model at the end",
}


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name that is no text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# As in YAML 1.2: 1e-6 is a number, also inside a mapping; YAML 1.1 reads it as a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


def read_settings(path: str | Path) -> Settings:
    """The settings of a file by name, as YAML has them.

    Raises:
        InputError: no such file, not YAML, not a mapping of names.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        settings = yaml.load(text, _Loader)
    except OSError as error:
        raise InputError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}).") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {_yaml_problem(error)}.") from None
    if settings is None:
        raise InputError(f"{path} is empty; it must be a YAML mapping of option names to values.")
    if not isinstance(settings, dict):
        raise InputError(f"{path} must be a YAML mapping of option names to values.")
    odd = [name for name in settings if not isinstance(name, str)]
    if odd:
        raise InputError(f"{path}: {odd[0]!r} is not an option name.")
    return settings


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return str(error).strip().rstrip(".")
    hint = "; YAML is indented with blanks, never with tabs" if "'\\t'" in problem else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"


def checked(settings: Mapping[str, Any], types_of: Mapping[str, Any], where: str) -> Settings:
    """The settings with every value converted to its option's type: `1e-6`, a string in YAML, to a number.

    Args:
        settings: by name.
        types_of: the type of every option.
        where: source of the settings, for error messages.

    Raises:
        InputError: unknown names, with what was probably meant; names without effect; values of another type.
    """
    unknown = [name for name in settings if name not in types_of]
    if unknown:
        raise InputError(f"Unknown option(s) in {where}: {'; '.join(_suggested(n, types_of) for n in unknown)}.")
    refuse_unheeded(settings, where)
    made = {}
    for name, value in settings.items():
        try:
            made[name] = converted(value, types_of[name])
        except ValueError as error:
            raise InputError(f"{where}: {name}: {value!r} is {error}.") from None
    return made


def refuse_unheeded(settings: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        InputError: an option that would have no effect.
    """
    unheeded = [f"{name} ({UNHEEDED[name]})" for name in settings if name in UNHEEDED]
    if unheeded:
        raise InputError(f"Options without effect in {where}: {'; '.join(unheeded)}.")


def _suggested(name: str, known: Mapping[str, Any]) -> str:
    plain = name.replace("-", "_")
    if plain in OTHER_NAMES:
        return f"{name} (here: {OTHER_NAMES[plain]})"
    near = [plain] if plain in known else difflib.get_close_matches(plain, known, 1)
    return f"{name} (perhaps {near[0]})" if near else name


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """An unknown option, as it was given, with the one that was probably meant."""
    return _suggested(name.lstrip("-").partition("=")[0], known)


def converted(value: Any, kind: Any) -> Any:
    """The value converted to an option's type.

    Raises:
        ValueError: not possible; the message completes "… is ".
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, args)
    if origin is Literal:
        for allowed in args:
            if value == allowed or str(value) == str(allowed):
                return allowed
        raise ValueError(f"not one of {', '.join(map(str, args))}")
    if origin is list or kind is list:
        items = value if isinstance(value, list) else [value]
        return [converted(item, args[0]) if args else item for item in items]
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise ValueError("not a mapping")
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        # YAML reads the word no as false, and `eval_strategy: no` is what everybody writes.
        return kind("no" if value is False else value).value
    return _plain(value, kind)


def _one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None:
        if type(None) in kinds:
            return None
        raise ValueError("empty")
    exact = [kind for kind in kinds if kind is type(value) or get_origin(kind) is type(value)]
    problems = []
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in [*exact, *(k for k in kinds if k is not str), *(k for k in kinds if k is str)]:
        try:
            return converted(value, kind)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0])


def _plain(value: Any, kind: Any) -> Any:
    truth = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if kind is bool:
        if str(value).lower() not in truth:
            raise ValueError("not true or false")
        return truth[str(value).lower()]
    if kind in (int, float):
        wanted = "a whole number" if kind is int else "a number"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"not {wanted}")
        try:
            number = value if isinstance(value, int) else float(value)
            if kind is int and number != int(number):
                raise ValueError
        except (ValueError, OverflowError):
            raise ValueError(f"not {wanted}") from None
        return kind(number)
    if kind is str:
        if value is None:
            raise ValueError("empty")
        if isinstance(value, bool):
            raise ValueError("read by YAML as true or false; quote it to get a string")
        if not isinstance(value, str | int | float):
            raise ValueError("not a string")
        return str(value)
    return value
