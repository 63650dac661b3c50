"""Where a file cannot be written: a message, and what was finished before is still there."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o.cli import main
from p2o.cli.run_directory import RunDirectory
from p2o.files import append_whole, failed_write, unwritable, write_whole
from p2o.journal import JsonLines
from p2o.prompt_phase.journal import Journal
from p2o.reports.page import write_report
from p2o.reports.run_data import load_run
from p2o.state import write_json


@pytest.fixture
def limit():
    """`limit(bytes)`: no file of this process may become longer; undone at the end."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


LONG = ["x" * 5000]


def run_directory(path):
    directory = RunDirectory(path)
    directory.create({"text": "y"})
    directory.append("metrics.jsonl", {"step": 1})
    return directory


def append_to_journal(path):
    with Journal(path / "journal.jsonl", {}) as journal:
        journal.call("dev", [1], lambda n: "one")
        journal.call("dev", [2], lambda n: LONG)


def rewind(path):
    (path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 1, "x": LONG}) + "\n")
    RunDirectory(path).rewind(1)


# What writes a file that becomes too long, with the file.
WRITERS = {
    "summary.json": lambda path: write_json(path / "summary.json", LONG),
    "journal.jsonl": append_to_journal,
    "config.yaml": lambda path: RunDirectory(path).create({"text": LONG[0]}),
    "metrics.jsonl": lambda path: run_directory(path).append("metrics.jsonl", {"step": 2, "text": LONG}),
    "report.html": lambda path: write_report([load_run(path)], path / "report.html"),
    "templates.txt": lambda path: write_whole(path / "templates.txt", LONG[0]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_stays_as_it_was(tmp_path, limit, name):
    """Each writer fails within its file: the file is named, and holds what it held before."""
    run_directory(tmp_path)
    before = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
    limit(4096)
    with pytest.raises(OSError, match="File too large") as failed:
        WRITERS[name](tmp_path)
    assert failed.value.filename == str(tmp_path / name)
    assert f"Cannot write {tmp_path / name}: File too large" in unwritable(failed.value)
    if name == "journal.jsonl":
        assert [record.get("result") for record in JsonLines(tmp_path / name).records] == [None, "one"]
    elif name == "metrics.jsonl":
        lines = (tmp_path / name).read_text().splitlines()
        assert lines and all(json.loads(line) == {"step": 1} for line in lines)
    else:
        assert ((tmp_path / name).read_bytes() if (tmp_path / name).exists() else None) == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_journal_cannot_be_shortened_by_a_rewrite_that_fails(tmp_path, limit):
    path = tmp_path / "a.jsonl"
    with JsonLines(path) as lines:
        lines.append(["one", "two"])
        content = path.read_bytes()
        limit(len(content) + 10)
        with pytest.raises(OSError, match="File too large"):
            lines.replace(["one", LONG])
        assert path.read_bytes() == content
        with pytest.raises(OSError, match="File too large"):
            lines.append([LONG])
        assert path.read_bytes() == content
        lines.append([3])  # there is room for this one
    assert JsonLines(path).records == ["one", "two", 3]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(0, 60))
def test_lines_are_added_whole_or_not_at_all(tmp_path_factory, texts, room):
    path = tmp_path_factory.mktemp("lines") / "a"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    written = []
    try:
        for text in texts:
            line = json.dumps(text) + "\n"
            try:
                append_whole(path, line)
                written.append(line)
            except OSError:
                assert len("".join([*written, line])) > room
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (path.read_text() if path.exists() else "") == "".join(written)


def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path, limit):
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    limit(4096)
    for save in (torch.save, lambda tensors, path: save_file(tensors, path)):
        with pytest.raises((OSError, RuntimeError, SafetensorError)) as failed:
            save({"a": torch.zeros(5000)}, tmp_path / "weights")
        assert "Cannot write" in unwritable(failed_write(failed.value, tmp_path))
    assert failed_write(RuntimeError("CUDA error"), tmp_path) is None
    assert unwritable(FileNotFoundError(2, "No such file")) is None


def test_devices_are_written_to_as_they_are(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_whole(Path("/dev/full"), "x" * 100_000)
    write_whole(Path("/dev/null"), "x")
    assert not Path("/dev/null.tmp").exists()


# -- whole commands ----------------------------------------------------------------------------------------------------


def test_training_on_a_disk_that_is_full_says_so_and_goes_on_later(tmp_path, config, limit, capsys):
    """The first checkpoint is too long for it; with room, the run is trained to its end."""
    run = tmp_path / "run"
    words = ["--config", config(max_steps=1, save_strategy="steps", save_steps=1, prompt_phase=False)]
    words += ["--output_dir", str(run), "--evaluate_before_and_after", "false"]
    limit(1_000_000)
    assert main(["train", *words]) == 1
    limit(resource.RLIM_INFINITY)
    said = capsys.readouterr().err
    assert f"Cannot write {run / 'checkpoint-1'}: File too large" in said and "Traceback" not in said
    assert (run / "config.yaml").exists() and not list(run.glob("checkpoint-*")) and not (run / ".incomplete").exists()
    assert main(["train", "--resume", "--output_dir", str(run)]) == 0
    assert (run / "summary.json").exists() and (run / "checkpoint-1").exists()


@pytest.mark.parametrize("name", ["versions.json", "metrics.jsonl", "summary.json"])
def test_each_file_of_a_run_on_a_full_device_ends_it_with_a_message(tmp_path, config, capsys, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to("/dev/full")
    changes = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "prompt_phase": False, "logging_steps": 1}
    words = ["--config", config(**changes), "--output_dir", str(run), "--evaluate_before_and_after", "false"]
    assert main(["train", *words]) == 1
    said = capsys.readouterr().err
    assert f"Cannot write {run / name}: No space left on device" in said and "Traceback" not in said
    assert (run / "config.yaml").exists() and (name != "summary.json" or (run / "model" / "model.safetensors").exists())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_place_is_said_to_be_one(tmp_path, capsys):
    place = tmp_path / "place"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
        assert main(["report", str(tmp_path / "run"), "--output", str(place / "report.html")]) in (1, 2)
        said = capsys.readouterr().err
        assert "report.html" in said and "Read-only file system" in said
    finally:
        subprocess.run(["umount", place], check=True)
