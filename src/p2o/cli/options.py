"""The options of `p2o train`, and the parser of its command line."""

import argparse
import dataclasses
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, TrlParser

from p2o.cli.errors import InputError
from p2o.cli.settings import Settings, nearest
from p2o.config import P2OConfig
from p2o.methods import METHODS
from p2o.tasks import NAMED_SETS
from p2o.verifiers import Limits


@dataclass
class DataArguments:
    """Options of the data: source, columns, layout; and the limits of verifiers."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub name, a .json/.jsonl/.csv/.tsv/.parquet file or pattern, a folder, a directory of "
            f"`save_to_disk`, a named set ({', '.join(named.name for named in NAMED_SETS)}, "
            "gym:FAMILY@LEVEL+FAMILY for reasoning-gym), or 'pico' and 'pico-tools' for the embedded tasks."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the hub."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Commit, tag or branch of a dataset on the hub; named sets have their own."}
    )
    prompt_column: str = field(
        default="prompt",
        metadata={
            "help": "Column with the questions, texts or chats; `solution_column` is that of the answers. Part of a "
            "column of mappings: `column.part`, such as reward_model.ground_truth."
        },
    )
    image_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the images of a question: one, a list or none; paths are those beside the data file. "
            "When not set: `image` or `images`, if the data has one."
        },
    )
    system_prompt: str | None = field(
        default=None,
        metadata={"help": "System prompt for chats that have none; turns plain-text prompts into chats."},
    )
    answer_format: str | None = field(
        default=None, metadata={"help": "Answer-format instruction, appended to each question."}
    )
    prompts_as_chats: bool = field(
        default=False,
        metadata={
            "help": "Whether to turn plain-text prompts into chats. Plain text is not passed through the chat template."
        },
    )
    cut_last_answer: bool | None = field(
        default=None,
        metadata={
            "help": "If a chat ends with an assistant message: true removes it, false lets the model continue it. When "
            "not set, such rows are dropped."
        },
    )
    conflicts: Literal["stop", "first", "drop"] | None = field(
        default=None,
        metadata={
            "help": "What to do about a prompt with different gold answers: 'stop' the run, use the 'first', or 'drop' "
            "it. When not set: 'drop' in a named set, 'stop' in other data."
        },
    )
    verifier_timeout: float = field(
        default=Limits.seconds,
        metadata={"help": "Time limit per completion of the rewards 'math', 'exact' and 'gym', in seconds."},
    )
    verifier_memory: int = field(
        default=Limits.memory_mb, metadata={"help": "Memory limit of one verifier process, in MiB."}
    )
    verifier_workers: int | None = field(
        default=None, metadata={"help": "Number of verifier processes; one per core when not set."}
    )


@dataclass
class FunctionArguments:
    """Custom functions that replace the built-in feedback and the reflection model."""

    feedback_func: str | None = field(
        default=None,
        metadata={
            "help": "Feedback for the reflection model, as `module:function`. By default that of the reward 'math', "
            "'exact' or 'gym', if one of them decides success."
        },
    )
    reflection_func: str | None = field(
        default=None,
        metadata={
            "help": "Reflection model as `module:function`, see `P2OTrainer(reflect=…)`; 'pico' is a teacher that "
            "knows the embedded world. It replaces `reflection_model`."
        },
    )


@dataclass
class RunArguments(DataArguments, FunctionArguments):
    """Options of a run: data, rewards and method. Training options are in [`P2OConfig`]."""

    method: str = field(
        default="p2o",
        metadata={"help": f"Training method; each is a preset of options for the same trainer: {', '.join(METHODS)}."},
    )
    dataset_path: str | None = field(
        default=None, metadata={"help": "Folder with a copy of a named set, in place of the hub."}
    )
    dataset_size: int | None = field(
        default=None, metadata={"help": "Number of questions to use from a named set; for reasoning-gym, to generate."}
    )
    strict_data: bool = field(default=False, metadata={"help": "Stop with an error instead of dropping faulty rows."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on, before, during and after. None when not set."}
    )
    evaluate_before_and_after: bool = field(
        default=True,
        metadata={"help": "Whether to evaluate in full before and after training, in addition to the curve during it."},
    )
    evaluate_with_prompts: bool = field(
        default=False,
        metadata={
            "help": "Whether to evaluate after training once more, with a template in front of every question: of the "
            "last prompt phase that selected any, the one that solved the most dev questions."
        },
    )
    evaluate_kl: bool = field(
        default=False,
        metadata={
            "help": "Whether to estimate, in the evaluation after training, the KL divergence of the policy from the "
            "model that it started from: mean over the tokens of bare completions. It is loaded a second time for it, "
            "unless `beta` has done so or an adapter is trained."
        },
    )
    eval_difficulty_profile: str | None = field(
        default=None,
        metadata={
            "help": "Profile of the evaluation questions that `p2o profile` wrote: before and after training they are "
            "evaluated by bucket, and no longer by set."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: 'math' (math-verify), 'exact' or 'gym' (reasoning-gym's scorers), which verify "
            "in worker processes with limits; names from `trl.rewards`; `module:function`; or 'pico'. A file in the "
            "working directory is a module too. When not set: the verifier of a named set, 'math' for other data."
        },
    )
    tools: list[str] | None = field(
        default=None,
        metadata={
            "help": "Functions that the model may call in its answer, each as `module:function`, with type hints and a "
            "docstring. The model's chat template has to render calls and what they return."
        },
    )
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads for torch; torch's default when not set."}
    )


USAGE = "%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]"


def _sections() -> dict[str, set[str]]:
    """Titles of `p2o train --help all`, in their order, and the names of the options below each."""
    kinds = (RunArguments, P2OConfig, ModelConfig, GRPOConfig, TrainingArguments)
    run, p2o, model, grpo, training = ({option.name for option in dataclasses.fields(kind)} for kind in kinds)
    return {
        "the command itself": {"config", "resume", "resume_or_start", "check_only"},
        "data, rewards and method": run,
        "P²O": p2o - grpo,
        "model and adapter (TRL's ModelConfig)": model,
        "policy phase (TRL's GRPOConfig)": grpo - model - training,
        "training (transformers' TrainingArguments)": training - model,
    }


class Parser(TrlParser):
    """A parser of options, by default of those of `p2o train`, which raises instead of printing its usage.

    Args:
        kinds: dataclasses whose fields are the options.
        settings: of `argparse.ArgumentParser`.

    Raises:
        InputError: an unknown option, with what was probably meant; a value that does not fit.
    """

    def __init__(self, *kinds: type, **settings: Any) -> None:
        if not kinds:
            kinds = (RunArguments, P2OConfig, ModelConfig)
            settings = {
                "prog": "p2o train",
                "usage": USAGE,
                "description": "Trains a model; without options, the embedded world.",
            }
        super().__init__(list(kinds), conflict_handler="resolve", **settings)
        self._trains = RunArguments in kinds
        if self._trains:
            self._add_options_of_the_command()

    def _add_options_of_the_command(self) -> None:
        """For `--help` only: they are taken from the command line before the others are parsed."""
        command = self.add_argument_group("the command itself")
        flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
        command.add_argument(
            "--config",
            metavar="FILE.yaml",
            default=argparse.SUPPRESS,
            help="Sets any of the options in this list; those on the command line override it.",
        )
        command.add_argument(
            "--resume", **flag, help="Continues the run in --output_dir, or the newest one under runs/."
        )
        command.add_argument(
            "--resume_or_start",
            "--resume-or-start",
            **flag,
            help="Starts the run in --output_dir, continues it or, if it is finished, does nothing, so that a "
            "scheduler may run the command again.",
        )
        command.add_argument(
            "--check_only",
            "--check-only",
            **flag,
            help="Checks options, data and, with --resume, the checkpoint; trains nothing and writes nothing.",
        )

    def format_help(self) -> str:
        """Every option with its description; of `p2o train` ours first, then TRL's and transformers'."""
        if not self._trains:
            return super().format_help()
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        for title, names in _sections().items():
            formatter.start_section(title)
            formatter.add_arguments([action for action in self._actions if action.dest in names])
            formatter.end_section()
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}.")


# Options that accept booleans besides their declared type, and choices that TRL checks late.
ALSO_BOOLEANS = ("fsdp", "scale_rewards")
CHOICES = {
    "importance_sampling_level": ("token", "sequence"),
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "vllm_mode": ("colocate", "server"),
}
# Minimum of options that would otherwise fail in a division or do nothing.
LEAST = {
    "gradient_accumulation_steps": 1,
    "max_completion_length": 1,
    "num_generations": 2,
    "num_threads": 1,
    "per_device_eval_batch_size": 1,
    "per_device_train_batch_size": 1,
    "steps_per_generation": 1,
    "top_k": 0,
    "temperature": 0,
}


def option_types() -> dict[str, Any]:
    """The type of every option by name; where only some values are allowed, these as a `Literal`."""
    kinds: dict[str, Any] = {}
    for owner in (ModelConfig, P2OConfig, RunArguments):
        hints = typing.get_type_hints(owner)
        for option in dataclasses.fields(owner):
            choices = CHOICES.get(option.name) or option.metadata.get("choices")
            kind = Literal[tuple(choices)] if choices else hints[option.name]
            kinds[option.name] = kind | bool if option.name in ALSO_BOOLEANS else kind
    return kinds


def explicit(argv: list[str]) -> Settings:
    """Only the options given on the command line.

    Raises:
        InputError: as [`Parser`].
    """
    parser = Parser()
    for action in parser._actions:
        action.required = False
        if action.dest != "help":
            action.default = argparse.SUPPRESS
    given, rest = parser.parse_known_args(argv)
    refuse_unknown(rest, option_types())
    return vars(given)


def refuse_unknown(rest: list[str], known: Iterable[str]) -> None:
    """
    Args:
        rest: words of a command line that are neither options nor their values.
        known: the options.

    Raises:
        InputError: there are such words; each unknown option is named with what was probably meant.
    """
    names = dict.fromkeys(known)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        raise InputError(f"Unknown option(s): {'; '.join('--' + nearest(word, names) for word in unknown)}.")
    if rest:
        raise InputError(f"Not an option nor the value of one: {' '.join(rest)}.")
