"""What is measured after training beside bare accuracy: with prompts, KL to the base, what can still be learnt."""

import json
import shlex

import pytest
from rich.console import Console

from p2o.cli import main
from p2o.cli.final_evaluation import kl_to_base, under_template
from p2o.pico import model_path, world
from p2o.reports.comparison import as_table, prompts_table
from p2o.reports.metrics import accuracy_curves
from p2o.templates import question_text
from trainers import coin, make, perturb

Z = "Go from left to right."


@pytest.fixture(scope="module")
def held_out():
    return world.eval_dataset(per_split=4)["hard"]


def test_sets_stand_behind_the_template_where_it_fits(tmp_path, held_out):
    trainer = make(tmp_path, eval_dataset={"hard": held_out})
    made = under_template({"hard": held_out}, Z, trainer.policy_rollouts)
    assert list(made) == ["with_prompts/hard"]
    for row, before in zip(made["with_prompts/hard"], held_out, strict=True):
        assert question_text(row["prompt"]) == f"{Z}\n\n{question_text(before['prompt'])}"
        assert {**row, "prompt": None} == {**before, "prompt": None}
    lengths = sorted(map(len, trainer._tokens(held_out["prompt"])))
    whole = max(map(len, trainer._tokens(made["with_prompts/hard"]["prompt"])))
    trainer.max_prompt_length = max(lengths[-1], whole - 1)
    cut = under_template({"hard": held_out}, Z, trainer.policy_rollouts)["with_prompts/hard"]
    stayed = [row["prompt"] == before["prompt"] for row, before in zip(cut, held_out, strict=True)]
    assert any(stayed) and not all(stayed)


def test_the_kl_is_that_of_a_run_with_beta_and_costs_the_loss_nothing(tmp_path, held_out):
    few = {"max_completion_length": 12, "per_device_eval_batch_size": 8, "num_generations_eval": 2}
    trainer = make(tmp_path / "a", reward=coin, eval_dataset={"hard": held_out}, **few)
    with kl_to_base(trainer, str(model_path())):
        assert trainer.evaluate()["eval_hard_kl"] == 0, "the policy is still the base"
    perturb(trainer)
    without = trainer.evaluate()
    assert not any(name.endswith("_kl") for name in without)
    with kl_to_base(trainer, str(model_path())):
        found = trainer.evaluate()
    assert trainer.beta == 0 and trainer.ref_model is None
    assert found["eval_hard_loss"] == without["eval_hard_loss"]
    assert found["eval_hard_accuracy"] == without["eval_hard_accuracy"]
    other = make(tmp_path / "b", reward=coin, eval_dataset={"hard": held_out}, beta=0.1, **few)
    perturb(other)
    with kl_to_base(other, "nowhere"):  # has its reference already
        assert other.evaluate()["eval_hard_kl"] == found["eval_hard_kl"] > 0.001


def test_a_run_says_what_prompts_add_and_how_far_it_went(tmp_path, config, capsys):
    changes = {
        "reward_funcs": ["trainers:coin"],
        "feedback_func": None,
        "learning_rate": 1e-2,
        "max_completion_length": 8,
    }
    path = config(**changes, dataset_test_split="test", dataset_name=str(tmp_path), save_strategy="no")
    out = tmp_path / "run"
    options = ["--evaluate_with_prompts", "true", "--evaluate_kl", "true", "--evolution_budget", "200"]
    assert main(["train", "--config", path, "--output_dir", str(out), *options]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["prompted_accuracy"].keys() == summary["bare_accuracy"].keys() == {"test"}
    assert summary["evaluation_template"] in {z["text"] for z in summary["templates"]}
    assert summary["kl_to_base"]["test"] > 0
    said = capsys.readouterr().out
    assert "accuracy with prompts test" in said and "KL to base" in said and "after, with prompts" in said
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert list(accuracy_curves(records)) == ["test"], "it is no point of a curve"
    assert sum("eval_with_prompts/test_accuracy" in record for record in records) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.1, "sync_ref_model": True}, "evaluate_kl does not go with sync_ref_model"),
        ({"cast_lm_head_to_fp32": True}, "evaluate_kl with cast_lm_head_to_fp32 needs a beta"),
    ],
)
def test_a_reference_that_is_no_base_is_refused(changes, message, tmp_path, config, capsys):
    command = ["train", "--config", config(**changes), "--output_dir", str(tmp_path / "run"), "--evaluate_kl", "true"]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def shown(table):
    console = Console(width=200, record=True)
    console.print(table)
    return console.export_text()


def cell(method, seed, **more):
    bare = {"hard": {"before": 0.0, "after": 0.25 + 0.5 * seed}}
    spent = {"wall_seconds": 60, "rollouts_until_half": None, "collapsed": []}
    return {"method": method, "seed": seed, "bare_accuracy": bare, **spent, **more}


def test_the_tables_show_both_and_the_kl():
    with_prompts = {"prompted_accuracy": {"hard": 0.9}, "kl_to_base": {"hard": 0.02, "easy": 0.04}}
    result = {"limit": {"total_rollouts": 100}, "methods": ["fst", "grpo"]}
    result["cells"] = [cell("fst", 0, **with_prompts), cell("fst", 1), cell("grpo", 0)]
    both = shown(prompts_table(result))
    assert "hard with prompts" in both and "grpo" not in both
    (row,) = [line for line in both.splitlines() if "fst" in line]
    assert "25.0%" in row and "90.0%" in row, "bare accuracy of the same seeds"
    (row,) = [line for line in shown(as_table(result)).splitlines() if "fst" in line]
    assert "0.0300" in row
    result["cells"] = result["cells"][1:]
    assert prompts_table(result) is None and "KL" not in shown(as_table(result))


def test_runs_start_from_finished_ones(tmp_path, capsys):
    there, out = tmp_path / "before", tmp_path / "after"
    command = ["compare", "--methods", "fst,grpo", "--seeds", "0,1", "--output_dir", str(out), "--print-commands"]
    command += ["--start_from", str(there)]
    (there / "fst-0" / "model").mkdir(parents=True)
    assert main(command) == 2
    assert f"there is no {there / 'fst-1' / 'model'}" in capsys.readouterr().err
    for name in ("fst-1", "grpo-0", "grpo-1"):
        (there / name / "model").mkdir(parents=True)
    assert main([*command, "--then", "dapo"]) == 0
    words = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    names = ["fst-then-dapo-0", "grpo-then-dapo-0", "fst-then-dapo-1", "grpo-then-dapo-1"]
    assert [line[line.index("--output_dir") + 1] for line in words] == [str(out / name) for name in names]
    for line, start in zip(words, ("fst-0", "grpo-0", "fst-1", "grpo-1"), strict=True):
        assert line[line.index("--method") + 1] == "dapo"
        assert line[line.index("--model_name_or_path") + 1] == str(there / start / "model")
    assert main(command) == 2
    assert "then was 'dapo', is 'grpo'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--then", "grpo"], "--then, the method of the runs, goes with --start_from"),
        (["--start_from", "runs", "--then", "ppo"], "Unknown method ppo of --then"),
        (["--start_from", "runs", "--sweep", "beta=0,1"], "--start_from does not go with --sweep"),
    ],
)
def test_what_does_not_go_together(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--methods", "grpo", "--seeds", "0", *arguments]) == 2
    assert message in capsys.readouterr().err
