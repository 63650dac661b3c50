"""`--help` is a page that fits on two screens, and `--help all` has every option."""

import contextlib
import io
import re
import subprocess
import sys
import time
from dataclasses import fields
from functools import cache

import pytest

from p2o.cli import main
from p2o.cli.eval import EvalArguments
from p2o.cli.evolve import EvolveArguments
from p2o.cli.features import FeatureArguments
from p2o.cli.help import PAGES, short_help
from p2o.cli.options import option_types
from p2o.cli.profile import ProfileArguments
from p2o.cli.rewrite import RewriteArguments

COMMANDS = ("train", "eval", "profile", "rewrite", "features", "evolve", "compare", "score", "report")


def options_of(arguments):
    return {field.name for field in fields(arguments) if field.init}


OPTIONS = {
    "train": {*option_types(), "config", "resume", "resume_or_start", "check_only"},
    "eval": options_of(EvalArguments),
    "profile": options_of(ProfileArguments),
    "rewrite": options_of(RewriteArguments),
    "features": options_of(FeatureArguments),
    "evolve": options_of(EvolveArguments),
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@cache
def printed(*words):
    with contextlib.redirect_stdout(text := io.StringIO()), contextlib.suppress(SystemExit):
        assert main(list(words)) == 0
    return text.getvalue()


@cache
def defaults(command):
    """The options of `--help all`, and their defaults as it prints them: None where it prints none."""
    found = {}
    for entry in re.split(r"\n  (?=-)", printed(command, "--help", "all"))[1:]:
        entry = entry.split("\n\n")[0]
        given = re.search(r"\(default: (.*)\)$", " ".join(entry.split()))
        for name in re.findall(r"--([a-z_0-9]+)(?![a-z_0-9-])", re.split(r"\n|(?<=\S)   *(?=\S)", entry)[0]):
            assert name not in found, f"--{name} is listed twice"
            found[name] = given[1] if given else None
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_on_two_screens(command):
    lines = printed(command, "--help").splitlines()
    assert lines[0].startswith(f"usage: p2o {command}")
    assert len(lines) <= 80 and max(map(len, lines)) <= 120
    assert printed(command, "-h") == printed(command, "--help")


def test_every_page_is_of_a_command():
    assert set(PAGES) == set(OPTIONS)


@pytest.mark.parametrize("command", PAGES)
def test_a_page_names_options_that_exist_with_their_defaults(command):
    page, known = printed(command, "--help"), defaults(command)
    # Of commands that begin with the same word and have parsers of their own.
    elsewhere = {"help", *{"eval": {"compare"}, "features": {"difficulty_profile"}}.get(command, ())}
    assert set(re.findall(r"--([a-z_0-9]+)", page)) <= {*known, *elsewhere}
    listed = re.findall(r"^  --(\w+) .*?(?:\[(.*)\])?$", page, re.MULTILINE)
    assert len(listed) > 15 and len(dict(listed)) == len(listed)
    # What is not set is not shown.
    true = {name: "" if known[name] in (None, "None") else known[name].lower() for name, _ in listed if name in known}
    assert {name: default for name, default in listed if name in true} == true
    assert page.splitlines()[-1].startswith(f"`p2o {command} --help all` lists every option")


@pytest.mark.parametrize("command", PAGES)
def test_help_all_has_every_option(command):
    assert OPTIONS[command] <= set(defaults(command))


def test_help_all_has_our_options_before_those_of_trl_and_transformers():
    names = list(defaults("train"))
    order = ["resume", "dataset_name", "near_hard", "context_mask", "use_peft", "num_generations", "logging_steps"]
    assert sorted(order, key=names.index) == order
    assert len(names) > 300


@pytest.mark.parametrize("words", [["--config", "nowhere.yaml"], ["--unknown", "1"], ["--resume"]])
def test_help_comes_before_any_complaint(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert printed("train", *words, "--help") == printed("train", "--help")
    assert printed("train", *words, "--help", "all") == printed("train", "--help", "all")


def test_two_evaluations_are_compared_by_options_of_their_own():
    assert "--resamples" in printed("eval", "--compare", "--help")


def test_the_page_is_there_before_torch_is_imported():
    code = "import sys; from p2o.cli import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_words_asks_for_no_help(command):
    assert short_help(command, []) is None


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"train", "compare"}))
def test_a_command_that_needs_more_says_so(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([command])
    except SystemExit as error:  # argparse's own
        code = error.code
    told = capsys.readouterr()
    assert code == 2 and "Traceback" not in told.err and told.err.strip()


@pytest.mark.slow
def test_training_without_any_option_begins(tmp_path):
    """README's first command."""
    with open(tmp_path / "log", "w") as log:
        run = subprocess.Popen([sys.executable, "-m", "p2o", "train"], cwd=tmp_path, stdout=log, stderr=log)
        while run.poll() is None and not list(tmp_path.glob("runs/*/metrics.jsonl")):
            time.sleep(0.1)
        begun = run.poll() is None
        run.kill()
        run.wait()
    assert begun, (tmp_path / "log").read_text()[-2000:]
