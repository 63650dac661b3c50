"""`p2o compare` with runs that a scheduler runs: by a launcher of the user's, or by printed commands."""

import json
import shlex
import subprocess
import sys

import pytest

from p2o.cli import main

LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
seen, name, *command = sys.argv[1:]
first = not (Path(seen) / name).exists()
(Path(seen) / name).touch()
time.sleep(0.5)  # in a queue
if name.endswith("1") and first:
    sys.exit(0)  # a queue that says it is done, and has lost the run
once = subprocess.run(command)
twice = subprocess.run(command)  # put back into the queue
assert once.returncode == twice.returncode == 0
sys.exit(3)  # trouble after the run
"""


@pytest.mark.slow
def test_a_launcher_may_delay_fail_and_repeat(tmp_path, config, capsys):
    path, out, seen = config(dataset_test_split=None, num_train_epochs=None), tmp_path / "compare", tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    launcher = shlex.join([sys.executable, str(tmp_path / "launcher.py"), str(seen), "{name}", "{command}"])
    command = ["compare", "--config", path, "--methods", "grpo", "--seeds", "0,1", "--steps", "1"]
    command += ["--output_dir", str(out), "--save_strategy", "no"]
    assert main([*command, "--collect"]) == 1, "nothing is there yet"
    assert main([*command, "--launcher", launcher]) == 1
    said = capsys.readouterr().out
    assert "2 at once" in said and "grpo-0: done" in said and "grpo-1: not finished" in said
    result = json.loads((out / "compare.json").read_text())
    assert result["missing"] == ["grpo-1"] and [cell["seed"] for cell in result["cells"]] == [0]
    assert (out / "grpo-0" / "log.txt").read_text().count("This run is finished.") == 1, "the repetition does nothing"

    assert main([*command, "--print-commands"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "grpo-1" in line
    assert subprocess.run(line, shell=True, capture_output=True).returncode == 0
    assert main([*command, "--collect"]) == 0
    assert json.loads((out / "compare.json").read_text())["missing"] == []
    capsys.readouterr()
    assert main([*command, "--print-commands"]) == 0 and not capsys.readouterr().out


def test_printed_commands_go_through_the_launcher_and_a_sweep_comes_first(tmp_path, capsys):
    command = ["compare", "--methods", "grpo,p2o", "--seeds", "0", "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--print-commands", "--launcher", "accelerate launch -m p2o {arguments}"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines] == [["accelerate", "launch", "-m", "p2o", "train"]] * 2
    assert [line[line.index("--method") + 1] for line in lines] == ["grpo", "p2o"]
    within = ["--launcher", "sbatch -J {name} --wait --wrap 'cd here; {command}'"]
    assert main([*command, "--print-commands", *within]) == 0
    (words, _) = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert words[:5] == ["sbatch", "-J", "grpo-0", "--wait", "--wrap"] and len(words) == 6
    inner = shlex.split(words[5].removeprefix("cd here; "))
    assert inner[:4] == [sys.executable, "-m", "p2o", "train"]
    swept = ["compare", "--methods", "grpo", "--seeds", "0", "--sweep", "learning_rate=1e-4,1e-3"]
    assert main([*swept, "--output_dir", str(tmp_path / "swept"), "--print-commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("sweep/grpo-1e-" in line for line in lines), "the runs need what the trials choose"
    assert main([*swept, "--output_dir", str(tmp_path / "swept"), "--collect"]) == 2
    assert "Trials of the sweep are not finished: sweep/grpo-1e-4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("srun -N1", "has to have either {command} or {arguments}"),
        ("srun {command} {command}", "once"),
        ("srun '{command}", "cannot be read"),
        ("/nowhere/srun {command}", "Cannot run /nowhere/srun"),
    ],
)
def test_launchers_that_cannot_work(launcher, message, tmp_path, capsys):
    command = ["compare", "--methods", "grpo", "--seeds", "0", "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--launcher", launcher]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_started_or_resumed_needs_a_directory(capsys):
    assert main(["train", "--resume_or_start"]) == 2
    assert "--resume_or_start needs --output_dir" in capsys.readouterr().err
