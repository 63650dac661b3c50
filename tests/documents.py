"""Code blocks and commands of README, docs/ and recipes/, and what stands in for models and data that they name."""

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from datasets import Dataset
from trl import TrlParser

from p2o.difficulty.buckets import Cutoffs
from p2o.difficulty.profile import PROFILE, Profile, profiled, reward_identity
from p2o.evaluation.results import questions_digest
from p2o.evaluation.types import Sample
from p2o.pico import model_path, world
from p2o.tasks import NAMED_SETS
from random_model import save_random_model

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "recipes").rglob("*.md"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PROGRAMS = ("p2o", "python", "pip", "accelerate", "pytest")
FENCE = re.compile(
    r"(?:<!-- *not run: *(?P<reason>[^>]*?) *-->\n)?^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block, or a command in the text of a page.

    Args:
        language: "inline" for a command in the text.
        reason: why it is not run, by the comment `<!-- not run: … -->` above it; None where it is.
    """

    file: str
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self):
        return f"{self.file}:{self.line}"

    def side(self, sign):
        """Of a diff the program before it ("-") or after it ("+")."""
        lines = self.text.splitlines(keepends=True)
        assert all(line[0] in "+- \n" for line in lines), f"{self}: a line of a diff begins with +, - or a space"
        text = "".join(line if line == "\n" else line[1:] for line in lines if line[0] in f" {sign}\n")
        return replace(self, language="python", text=text)


def blocks_of(page):
    """The code blocks of a page in Markdown, and after them the commands in its text."""
    text, file = page.read_text(), str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name

    def line(place):
        return text.count("\n", 0, place) + 1

    found = []
    for fence in FENCE.finditer(text):
        code = re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
        found.append(Block(file, line(fence.start("language")), fence["language"], code, fence["reason"]))
    prose = FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)
    for span in re.finditer(r"`([^`]+)`", prose):
        words = span[1].split()
        if next((word for word in words if "=" not in word), "") in PROGRAMS and len(words) > 1:
            found.append(Block(file, line(span.start()), "inline", " ".join(words)))
    return found


def blocks_of_recipe(recipe):
    """The commands in the comments on top of a recipe: what is indented there."""
    lines = recipe.read_text().splitlines()
    code = [(number, line[4:]) for number, line in enumerate(lines, 1) if re.match(r"#   \s*\S", line)]
    text = "".join(f"{line}\n" for _, line in code)
    return [Block(str(recipe.relative_to(ROOT)), code[0][0], "sh", text)] if code else []


def all_blocks():
    return [b for page in PAGES for b in blocks_of(page)] + [b for recipe in RECIPES for b in blocks_of_recipe(recipe)]


def commands(text):
    """The commands of a shell block, each as its words; without what it sets in the environment."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while re.match(r"[A-Z_0-9]+=", command[0]):
                command = command[1:]
            found.append(command)
    return found


# -- stand-ins ---------------------------------------------------------------------------------------------------------

# Data that blocks name and that is none of our named sets: a row in the layout that it has on the hub.
ROWS = {
    "trl-lib/DeepMath-103K": lambda i: {
        "prompt": [{"role": "user", "content": f"What is {i}+1?"}],
        "solution": f"${i + 1}$",
    },
    "my.jsonl": lambda i: {"question": f"What is {i} + 1?", "answer": str(i + 1)},
}
MODELS = re.compile(r"(?:model(?:_name_or_path)?\s*[=:]\s*\"?|p2o (?:eval|evolve|profile|features) )([\w.-]+/[\w./-]+)")
# What `my.yaml` stands for: a user's own configuration, which fits whatever number of processes.
MY_YAML = (
    "model_name_or_path: my/model\ndataset_name: my.jsonl\nprompt_column: question\nsolution_column: answer\n"
    "num_generations: 4\nper_device_train_batch_size: 4\nmax_completion_length: 8\nreport_to: none\n"
)


def make_stand_ins(directory, blocks):
    """Fills a directory with all that blocks name, as files and folders of the same names, which win over the hub.

    Models are one of Qwen3's architecture and a few thousand parameters, with the embedded model's tokenizer.
    """
    for name in ("recipes", "benchmarks", "examples", "docs", "constraints.txt", "pyproject.toml"):
        (directory / name).symlink_to(ROOT / name)
    for file in ROOT.glob("requirements*.txt"):
        (directory / file.name).symlink_to(file)
    (directory / "my.yaml").write_text(MY_YAML)
    (directory / "instructions.txt").write_text("Do the products first.\nWrite every step.\n")
    for name in sorted({name for block in blocks for name in re.findall(r"runs/(?:p2o|grpo)-run", block.text)}):
        shutil.copytree(model_path(), directory / name / "model")
        (directory / name / "config.yaml").write_text("model_name_or_path: pico\n")
    for name, row in ROWS.items():
        path = directory / name if name.endswith(".jsonl") else directory / name / "train.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(200)))
    for named in NAMED_SETS:
        folder = directory / named.hub_id
        if not folder.exists():
            folder.mkdir(parents=True)
            rest = {"difficulty": 8.0, "topic": "Mathematics -> Algebra"}
            rows = [{named.prompt: f"What is {i}+1?", named.solution: str(i + 1), **rest} for i in range(named.rows)]
            Dataset.from_list(rows).to_parquet(folder / f"{named.split}.parquet")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    save_random_model(directory / "tiny", max_position_embeddings=40_960, **shape, **heads)
    texts = [block.text for block in blocks] + [recipe.read_text() for recipe in RECIPES]
    for name in {name for text in texts for name in MODELS.findall(text)} | {"my/model"}:
        if not name.startswith("openai/"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(directory / "tiny", directory / name)


def save_profile(directory):
    """A profile of the embedded training questions with all pass rates from 0 of 8 to 8 of 8, in turns."""
    rows = list(world.train_dataset())
    samples = [
        [Sample("pico", row, i, "", None, float(i < row % 9), "", 9, 9, False) for i in range(8)]
        for row in range(len(rows))
    ]
    questions = profiled("pico", rows, samples, 0.0, 0)
    settings = {"n": 8, "sampling": {}, "questions": {"pico": questions_digest([q.key for q in questions])}}
    rewards = {"pico": reward_identity(world.accuracy_reward)}
    directory.mkdir(parents=True, exist_ok=True)
    profile = Profile("pico", settings, 0.0, rewards, Cutoffs(), tuple(questions))
    (directory / PROFILE).write_text(json.dumps(profile.to_dict()))


def run_to_its_parser(words, monkeypatch):
    """`python FILE` or `python -m MODULE`, as far as its parser; fails where that refuses the command line."""
    parse_args = argparse.ArgumentParser.parse_args

    into_dataclasses = TrlParser.parse_args_and_config

    class Parsed(Exception):
        pass

    def parsed_into_dataclasses(parser):
        into_dataclasses(parser, [*sys.argv[1:], "--use_cpu", "true", "--bf16", "false"])  # this machine has no GPU
        raise Parsed

    def parsed(parser, args=None, namespace=None):
        parse_args(parser, args, namespace)
        raise Parsed

    module = words[0] == "-m"
    monkeypatch.setattr("sys.argv", words[module:])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(TrlParser, "parse_args_and_config", parsed_into_dataclasses)
    with pytest.raises(Parsed):
        runpy.run_module(words[1], run_name="__main__") if module else runpy.run_path(words[0], run_name="__main__")
