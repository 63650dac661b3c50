"""examples/answer_forms: what the evidence on a real model was made with."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from p2o.cli import main
from random_model import save_random_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "answer_forms"
RIGHT = {
    "page": "<<The capital>>\n\nParis is the capital of France.",
    "chat": "Paris.",
}
SMALL = {
    "max_steps": 7,  # six batches are an epoch
    "max_completion_length": 8,
    "min_hard_questions": 2,
    "evolution_budget": 24,
    "use_vllm": False,
    "bf16": False,
    "dtype": "float32",
    "num_threads": 1,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(EXAMPLE, tmp_path / "example", ignore=shutil.ignore_patterns("data", "runs", "__pycache__"))
    monkeypatch.chdir(tmp_path / "example")
    subprocess.run([sys.executable, "forms.py"], check=True)
    monkeypatch.delitem(sys.modules, "forms", raising=False)
    return tmp_path / "example"


def test_an_answer_needs_its_capital_and_its_form(folder):
    forms = runpy.run_path(str(folder / "forms.py"))
    rows = [json.loads(line) for split in ("train", "test") for line in (folder / f"data/{split}.jsonl").open()]
    assert len(rows) == 40 and len({row["prompt"][0]["content"] for row in rows}) == 40
    for form, text in RIGHT.items():
        said = [[{"role": "assistant", "content": text}]]
        judged = {wanted: forms["accuracy"](said, ["Paris"], [wanted]) for wanted in RIGHT}
        assert judged[form] == [1.0] and forms["accuracy"](said, ["Rome"], [form]) == [0.0]
        assert [wanted for wanted in RIGHT if judged[wanted] == [1.0]] in ([form], [form, "chat"])
        assert forms["feedback"](text, {"solution": "Paris", "form": form}) == "Right."
        told = forms["feedback"]("Rome.", {"solution": "Paris", "form": form})
        assert forms["FORMS"][form][2] in told and "Paris" not in told


def test_the_example_trains_through_a_prompt_phase(folder, capfd):
    save_random_model(folder / "model", hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    words = [w for name, value in SMALL.items() for w in (f"--{name}", str(value))]
    command = ["train", "--config", "smollm2.yaml", "--output_dir", "run", "--model_name_or_path", "model", *words]
    assert main([*command, "--evaluate_before_and_after", "false"]) == 0, capfd.readouterr().err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] == 7 and summary["rollouts"]["evolution_dev"] > 0
