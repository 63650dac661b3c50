"""Commands over several processes: the files, counts and answers of one process, whoever generates what."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forked
from p2o.cli import main
from p2o.completions import Call, Sampling
from p2o.engines.shared import parts_of


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 4), st.integers(1, 5))
def test_processes_share_whole_batches_evenly(lengths, at_once, processes):
    calls = [Call([f"{n}-{i}" for i in range(length)], Sampling(1), n) for n, length in enumerate(lengths)]
    shares = parts_of(calls, at_once, processes)
    assert len(shares) == processes
    got = [[] for _ in calls]
    batches = []
    for share in shares:
        batches.append(0)
        for number, first, prompts in share:
            assert first % at_once == 0 and first == len(got[number]), "in order, and from where a batch begins"
            whole = first + len(prompts) == len(calls[number].prompts)
            assert len(prompts) % at_once == 0 or whole
            got[number] += prompts
            batches[-1] += -(-len(prompts) // at_once)
    assert got == [call.prompts for call in calls]
    assert max(batches) - min(batches) <= 1


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--", "p2o"]


def launched(*command):
    """The command in two processes, started as srun or mpirun do: no launcher holds the store."""
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory)
        started = forked.start_command(*map(str, command), logs=logs, processes=2, launched=True)
        for process in started:
            process.join(300)
            assert process.exitcode is not None
        (out, others_out), (errors, others_errors) = (
            [path.read_text() for path in sorted(logs.glob(f"{kind}-*"))] for kind in ("out", "log")
        )
    assert not others_out and "rror" not in others_errors, others_errors
    return subprocess.CompletedProcess(command, started[0].exitcode, out, errors)


def contents(directory, *left_out):
    files = {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return {str(name): content for name, content in files.items() if name.name not in left_out}


EVAL = ["eval", "pico", "--tasks", "pico:hard,pico:easy", "--limit", "9", "--n", "3", "--batch_size", "4"]
EVAL += ["--questions_per_batch", "2"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "eval"
    assert main([*EVAL, "--output_dir", str(out)]) == 0
    return out


@pytest.mark.slow
def test_an_evaluation_is_that_of_one_process_also_resumed(tmp_path, one_process):
    """Two processes; and one goes on from where two were killed, and two from where one was."""
    out = tmp_path / "two"
    done = launched(*EVAL, "--output_dir", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(out) == contents(one_process)
    assert done.stdout.count("questions ×") == done.stdout.count("avg@3") == 1, "one process speaks"
    transcripts = out / "transcripts.jsonl"
    whole = transcripts.read_bytes()
    transcripts.write_bytes(whole[: len(whole) // 3])
    (out / "eval.json").unlink()
    assert launched(*EVAL, "--output_dir", out).returncode == 0
    assert contents(out) == contents(one_process)
    transcripts.write_bytes(whole[: len(whole) // 2])
    assert main([*EVAL, "--output_dir", str(out)]) == 0
    assert contents(out) == contents(one_process)


@pytest.mark.slow
def test_a_killed_evaluation_of_two_processes_goes_on(tmp_path, one_process):
    out = tmp_path / "killed"
    words = [*TORCHRUN, *EVAL, "--output_dir", str(out)]
    running = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    transcripts = out / "transcripts.jsonl"
    for _ in range(1200):
        if running.poll() is not None or (transcripts.exists() and transcripts.stat().st_size):
            break
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert main([*EVAL, "--output_dir", str(out)]) == 0
    assert contents(out) == contents(one_process)


def test_a_run_of_several_processes_needs_a_directory(config, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--config", config()]) == 2
    assert "Several processes need --output_dir" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tmp_path):
    done = launched("eval", tmp_path / "nowhere", "--tasks", "pico:hard", "--output_dir", tmp_path / "out")
    assert done.returncode != 0
    assert done.stderr.count("Error: Cannot use the model") == 1 and "Traceback" not in done.stdout


@pytest.mark.slow
def test_templates_are_those_of_one_process(tmp_path):
    command = ["evolve", "pico", "--limit", "24", "--num_generations", "2", "--evolution_budget", "40"]
    command += ["--min_hard_questions", "2", "--confirm_samples", "1", "--batch_size", "4"]
    code = main([*command, "--output_dir", str(tmp_path / "one")])
    done = launched(*command, "--output_dir", tmp_path / "two")
    assert (done.returncode == 0) == (code == 0), done.stderr[-3000:]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert "templates.json" in contents(tmp_path / "two")


@pytest.mark.slow
def test_verdicts_are_those_of_one_process(tmp_path, monkeypatch):
    pairs = [{"completion": f"\\boxed{{{i % 7}}}", "solution": str(i % 5)} for i in range(700)]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert main(["score", str(file), "--output", str(tmp_path / "one.jsonl")]) == 0
    done = launched("score", file, "--output", tmp_path / "two.jsonl")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [{**json.loads(line), "milliseconds": 0} for line in (tmp_path / name).read_text().splitlines()]
        for name in ("one.jsonl", "two.jsonl")
    )
    assert two == one and len(one) == 700
    assert done.stdout.count("700 completions") == 1
