"""Secrets among options are written nowhere and stand in no command line of a child process."""

import dataclasses
import shlex
import sys

import pytest
from trl import ModelConfig

from p2o import P2OConfig
from p2o.cli import compare as command
from p2o.cli import main
from p2o.cli.options import RunArguments
from p2o.cli.secrets import VARIABLES, is_secret
from trainers import make

SECRET = "hf_verysecret"


def test_every_option_that_is_a_secret_has_a_variable():
    options = {field.name for kind in (P2OConfig, RunArguments, ModelConfig) for field in dataclasses.fields(kind)}
    assert {name for name in options if is_secret(name)} == VARIABLES.keys()


@pytest.mark.parametrize(
    ("name", "secret"),
    [(n, True) for n in ("hub_token", "token", "api_key", "openai_api_key", "password", "client_secret", "HF_TOKEN")]
    + [(n, False) for n in ("eos_token", "pad_token", "max_tokens", "reflection_token_limit", "data_seed", "keys")],
)
def test_names_of_secrets(name, secret):
    assert is_secret(name) is secret


@pytest.mark.parametrize("given", [["--hub_token", SECRET], [f"--hub-token={SECRET}"]])
def test_compare_gives_its_runs_a_token_in_their_environment_alone(tmp_path, monkeypatch, given):
    seen = tmp_path / "seen.txt"
    child = (
        f"import os, sys; open({str(seen)!r}, 'a').write(os.environ['HF_TOKEN'] + '\\n' + ' '.join(sys.argv) + '\\n')"
    )
    monkeypatch.delenv("HF_TOKEN", raising=False)
    launcher = f"{shlex.join([sys.executable, '-c', child])} {{arguments}}"
    words = ["compare", "--methods", "grpo", "--seeds", "0", "--output_dir", str(tmp_path / "out"), "--jobs", "1"]
    words += ["--launcher", launcher]
    main([*words, *given, "--learning_rate", "1e-4"])
    token, argv = seen.read_text().splitlines()
    assert token == SECRET and SECRET not in argv and "hub_token" not in argv and "--learning_rate 1e-4" in argv
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes()
    assert (tmp_path / "out" / "settings.json").exists()


def test_a_scripts_token_is_in_no_file_of_its_checkpoints(tmp_path):
    trainer = make(tmp_path, hub_token=SECRET, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert trainer.args.hub_token == SECRET, "uploads still need it"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in written].count("training_args.bin") == 2
    assert [file for file in written if SECRET.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("where", ["file", "command line"])
def test_a_secret_within_a_mapping_is_refused_before_it_is_saved(tmp_path, config, capsys, where):
    if where == "file":
        words = ["--config", config(model_init_kwargs={"token": SECRET})]
    else:
        words = ["--config", config(), "--model_init_kwargs", f'{{"token": "{SECRET}"}}']
    assert main(["train", *words, "--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "model_init_kwargs.token is a secret" in said and "HF_TOKEN" in said and SECRET not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "on_cpu"),
    [
        ([], False),
        (["--use_cpu"], True),
        (["--use_cpu=true"], True),
        (["--use_cpu", "yes"], True),
        (["--use_cpu", "no"], False),
        (["--use_cpu", "--seed", "1"], True),
    ],
)
def test_runs_at_once_reads_use_cpu_as_the_parser_does(monkeypatch, words, on_cpu):
    monkeypatch.setattr(command.torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(command, "with_defaults", lambda settings, has_file: (settings, []))
    monkeypatch.setattr(command.os, "cpu_count", lambda: 7)
    assert command._runs_at_once(words) == (7 if on_cpu else 1)
