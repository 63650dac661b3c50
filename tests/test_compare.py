"""`p2o compare`: every method runs, at the same budget; finished cells are kept; the numbers are right."""

import json
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

import forked
from dictionaries import save_dictionary
from p2o.cli import main
from p2o.methods import METHODS, with_method
from p2o.pico import teacher, world
from p2o.pico.corpus import Source
from p2o.pico.instructions import HOW
from p2o.pico.methods import RIGHT_METHODS
from p2o.reports.comparison import read_metrics
from p2o.reports.metrics import accuracy_curves, by_epoch, headline
from p2o.templates import question_text


def test_a_method_is_settings_over_the_same_trainer():
    base = {"num_generations": 4, "per_device_train_batch_size": 16}
    assert with_method(base) == base
    twice = with_method({**base, "method": "grpo-2x"})
    assert (twice["num_generations"], twice["per_device_train_batch_size"], twice["prompt_phase"]) == (8, 32, False)
    assert base["num_generations"] == 4
    with pytest.raises(ValueError, match="choose one of p2o, "):
        with_method({"method": "ppo"})


def test_the_teacher_knows_the_right_methods():
    source = Source(1)
    prompts, families = [], []
    for _ in range(40):
        document, _ = source.reflection_and_failures()
        prompts.append(document.prompt)
    for row in world.train_dataset(hard=12, easy=0).filter(lambda row: row["family"] in world.TRAINED_FAMILIES):
        prompts.append(f"Examples:\n{question_text(row['prompt'])}")
        families.append(row["family"])
    answers = teacher.reflect(prompts, seed=0)
    assert [a.text for a in answers] == [a.text for a in teacher.reflect(prompts, seed=0)]
    for answer, family in zip(answers[40:], families, strict=True):
        assert any(how in answer.text.lower() for how in HOW[RIGHT_METHODS[family][0]])


def test_curves_pair_values_with_what_was_spent_and_with_epochs():
    records = [
        {"step": 0, "eval_easy_accuracy": 0.5},
        {"step": 0, "eval_hard_accuracy": 0.0},
        {"step": 1, "epoch": 0.5, "loss": 0.1, "p2o/rollouts/total": 100, "frac_reward_zero_std": 0.8},
        {"step": 2, "epoch": 1.0, "loss": 0.1, "p2o/rollouts/total": 100},
        {"step": 2, "epoch": 1.0, "eval_hard_accuracy": 0.7, "frac_reward_zero_std": 0.1},
        {"step": 3, "epoch": 1.5, "loss": 0.1, "p2o/rollouts/total": 200, "frac_reward_zero_std": 0.4},
        {"step": 4, "epoch": 2.0, "loss": 0.1, "p2o/rollouts/total": 200, "frac_reward_zero_std": 0.2},
    ]
    assert accuracy_curves(records) == {"easy": [(0, 0.5)], "hard": [(0, 0.0), (100, 0.7)]}
    assert by_epoch(records, "frac_reward_zero_std") == [(1, 0.8), (2, pytest.approx(0.3))]
    assert headline(["validation_easy", "validation_hard"]) == "validation_hard"
    assert headline(["gsm8k"]) == "gsm8k" and headline([]) is None


@pytest.fixture
def forked_runs(monkeypatch):
    """Runs are forked, by the words that start them: importing TRL takes longer than such a small run."""

    def run(words, stdout, stderr, env):
        assert words[:3] == [sys.executable, "-m", "p2o"] and stdout is stderr
        with tempfile.TemporaryDirectory() as logs:
            (process,) = forked.start_command(*words[3:], logs=Path(logs), environment=env)
            process.join()
            stdout.write(forked.printed(Path(logs)))
        return CompletedProcess(words, process.exitcode)

    monkeypatch.setattr("subprocess.run", run)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_all_methods_at_one_budget(tmp_path, config, capsys):
    path = config(dataset_test_split=None, max_steps=None, num_train_epochs=None)
    out = tmp_path / "compare"
    command = ["compare", "--config", path, "--methods", ",".join(METHODS), "--seeds", "0", "--total_rollouts", "170"]
    command += ["--output_dir", str(out), "--save_strategy", "no"]
    command += ["--feature_dictionary", save_dictionary(tmp_path / "dictionary")]
    assert main(command) == 0
    for method in METHODS:
        summary = json.loads((out / f"{method}-0" / "summary.json").read_text())
        assert summary["method"] == method
        # Every method spends the budget and at most one step or one last iteration of evolution more.
        assert 170 <= summary["rollouts"]["total"] < 170 + 64
        evolved = summary["rollouts"]["evolution_dev"] > 0
        assert evolved == (method.startswith("p2o") or method in ("prompt-then-policy", "fst"))
    result = json.loads((out / "compare.json").read_text())
    assert result["missing"] == [] and len(result["cells"]) == len(METHODS)
    assert (out / "compare.png").stat().st_size > 10_000 and (out / "compare.svg").exists()

    written = (out / "grpo-0" / "summary.json").stat().st_mtime_ns
    assert main(command) == 0, "finished cells are not run again"
    assert (out / "grpo-0" / "summary.json").stat().st_mtime_ns == written
    capsys.readouterr()
    assert main([*command, "--learning_rate", "1e-5"]) == 2
    assert "holds a comparison with other settings: options was" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_sweep_chooses_each_methods_value(tmp_path, config):
    path = config(dataset_test_split="train", num_train_epochs=None, learning_rate=None)
    out = tmp_path / "compare"
    command = ["compare", "--config", path, "--methods", "p2o-nomask,p2o,grpo", "--seeds", "0", "--steps", "1"]
    assert main([*command, "--output_dir", str(out), "--sweep", "learning_rate=1e-5,5e-3"]) == 0
    result = json.loads((out / "compare.json").read_text())
    assert set(result["sweep"]["methods"]) == {"p2o", "grpo"}, "an ablation takes what was chosen for p2o"
    for method, choice in result["sweep"]["methods"].items():
        trials = {v: out / "sweep" / f"{method}-{v}" for v in ("1e-5", "5e-3")}
        scores = {v: accuracy_curves(read_metrics(trial))["train"][-1][1] for v, trial in trials.items()}
        assert choice == {"value": max(scores, key=scores.get), "scores": scores}
        for name in {"p2o": ("p2o", "p2o-nomask"), "grpo": ("grpo",)}[method]:
            used = yaml.safe_load((out / f"{name}-0" / "config.yaml").read_text())
            assert used["learning_rate"] == float(choice["value"]) and used["seed"] == 0


@pytest.mark.parametrize(
    ("settings", "options", "gpu", "expected"),
    [
        (None, [], True, 5),  # the embedded world, which trains on the CPU
        (None, [], False, 5),
        (None, ["--use_cpu", "false"], True, 1),
        ({"model_name_or_path": "some/model"}, [], True, 1),
        ({"model_name_or_path": "some/model"}, ["--use_cpu"], True, 5),
        ({"model_name_or_path": "some/model"}, ["--use_cpu=true"], True, 5),
        ({"model_name_or_path": "some/model", "use_cpu": True}, ["--learning_rate", "1e-4"], True, 5),
        ({"model_name_or_path": "some/model"}, [], False, 5),
    ],
)
def test_runs_share_cores_and_no_gpu(settings, options, gpu, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    if settings is not None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        options = ["--config", str(tmp_path / "config.yaml"), *options]
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: CompletedProcess(args, 1))
    main(["compare", "--methods", "grpo", "--seeds", "0", "--output_dir", str(tmp_path / "out"), *options])
    assert f"1 runs, {expected} at once" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "p2o,ppo"], "Unknown method(s) ppo; choose among p2o, "),
        (["--methods", ""], "Unknown method(s) (none)"),
        (["--seeds", "one"], "not a list of integers"),
        (["--seeds", "1,1"], "named twice"),
        (["--sweep", "learning_rate=1e-4"], "two different values or more"),
        (["--sweep", "seed=1,2", "--seed=3"], "both swept and set"),
        (["--sweep", "beta=0,1", "--sweep_seed", "2"], "--sweep_seed 2 is also one of --seeds"),
        (["--output_dir", "/proc/nowhere"], "Cannot write to /proc/nowhere"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
