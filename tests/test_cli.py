"""`p2o train` as its users meet it: whole runs in small, what they leave behind, and what they say to bad input."""

import io
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import forked
from p2o.cli import main
from p2o.cli.console import Pace, Watch, by_set, clock
from p2o.cli.run_directory import check_writable
from p2o.prompt_phase.types import EvolutionProgress
from small_run import write_config, write_data


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_explains_itself(tmp_path, config, capsys):
    run = tmp_path / "run"
    assert main(["train", "--config", config(), "--output_dir", str(run), "--learning_rate", "2e-3"]) == 0
    said = capsys.readouterr().out
    for happening in ("prompt phase · ", "evolution iteration", "collapsed groups", "templates cover", "left"):
        assert happening in said

    assert yaml.safe_load((run / "config.yaml").read_text())["learning_rate"] == 2e-3
    assert {"trl", "gepa", "torch", "p2o-rl"} <= json.loads((run / "versions.json").read_text()).keys()
    metrics = lines(run / "metrics.jsonl")
    assert [m["step"] for m in metrics if "loss" in m] == list(range(1, 9))
    assert {"p2o/hard_set", "p2o/rollouts/total", "frac_reward_zero_std", "reward"} <= metrics[4].keys()
    hard = json.loads((run / "hard_sets" / "epoch-001.json").read_text())["rows"]
    templates = json.loads((run / "templates" / "epoch-001.json").read_text())
    evolution = templates["evolution"]
    assert set(evolution["feedback_ids"]) | set(evolution["dev_ids"]) == set(hard)
    assert evolution["candidates"][0]["text"] == "" and all("parents" in c for c in evolution["candidates"])
    assert {t["text"] for t in templates["selected"]} <= {c["text"] for c in evolution["candidates"]}
    samples = lines(run / "samples.jsonl")
    assert {s["sampled_epoch"] for s in samples} == {0, 1}
    assert all(s["question"] and isinstance(s["completion"], str) and "reward" in s for s in samples)

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 8 and summary["epochs"] == 2 and summary["method"] == "p2o"
    assert summary["rollouts"]["policy"] == 8 * 16
    for purpose in ("evolution_dev", "evolution_feedback", "reflection"):
        assert summary["rollouts"][purpose] == evolution["spent"]["rollouts"][purpose] > 0
        assert summary["tokens"]["completion_tokens"][purpose] > 0
    assert summary["rollouts"]["total"] == sum(
        summary["rollouts"][p] for p in ("policy", "evolution_dev", "evolution_feedback", "reflection")
    )
    assert summary["wall_seconds"] > 0 and summary["peak_rss_bytes"] > 1e8
    assert metrics[-1]["p2o/rollouts/total"] <= summary["rollouts"]["total"]

    page = (run / "report.html").read_text()
    assert "Templates: run" in page and "incomplete run directory" not in page

    # Any user of transformers can load what came out.
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    chat = [{"role": "user", "content": "Calculate 3 + 4."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**ids, max_new_tokens=4).shape[1] > ids["input_ids"].shape[1]


def test_grpo_is_the_same_run_without_prompt_phases(tmp_path, config, capsys):
    run = tmp_path / "run"
    options = ["--output_dir", str(run), "--method", "grpo", "--num_train_epochs", "9", "--max_rollouts", "100"]
    assert main(["train", "--config", config(), *options]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"] == "grpo" and summary["templates"] == []
    # It stops at the end of the step that spends the budget.
    assert summary["rollouts"]["policy"] == summary["rollouts"]["total"] == 112
    assert not (run / "evolution").exists()


def test_own_data_own_rewards_and_evaluation(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(completions, **kwargs):\n    return [float(len(c[0]['content']) < 20) for c in completions]\n"
    )
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").rename(data / f"{name}.jsonl")
    path = config(
        dataset_name=str(data),
        dataset_test_split="test",
        reward_funcs=["my_rewards:brevity", "p2o.pico.world.accuracy_reward"],
        reward_weights=[0.1, 1.0],
        success_reward="brevity",
        feedback_func=None,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
    )
    assert main(["train", "--config", path, "--output_dir", "run"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    accuracy = summary["bare_accuracy"]["test"]
    for when in ("before", "after"):
        answers = lines(tmp_path / "run" / f"answers-{when}.jsonl")
        assert len(answers) == 4 and {a["dataset"] for a in answers} == {"test"}
    assert 0 < accuracy["before"] <= 1 and 0 < accuracy["after"] <= 1
    evaluated = [m for m in lines(tmp_path / "run" / "metrics.jsonl") if "eval_test_accuracy" in m]
    assert len(evaluated) == 3, "before, at step 1, after"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A small run that nobody interrupts, and the configuration of it."""
    place = tmp_path_factory.mktemp("straight")
    write_data(place)
    path = write_config(place, num_train_epochs=3)
    assert main(["train", "--config", path, "--output_dir", str(place / "run")]) == 0
    return path, place / "run"


@pytest.mark.parametrize("awaited", ["metrics.jsonl", "evolution/epoch-001/journal.jsonl"])
def test_interrupted_by_the_user_and_resumed(tmp_path, straight, capsys, awaited):
    path, whole = straight
    run, logs = tmp_path / "run", tmp_path / "logs"
    logs.mkdir()
    (process,) = forked.start_command("train", "--config", path, "--output_dir", str(run), logs=logs)
    deadline = time.monotonic() + 300
    while not ((run / awaited).exists() and (run / awaited).read_bytes().count(b"\n") >= 2):
        assert process.is_alive() and time.monotonic() < deadline, forked.printed(logs)
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    said = forked.printed(logs)
    assert process.exitcode == 130, said
    assert f"p2o train --resume --output_dir {run}" in said
    assert list(run.glob("checkpoint-*")), "what was done is saved"

    assert main(["train", "--resume", "--output_dir", str(run)]) == 0
    assert "resumed from step" in capsys.readouterr().out
    weights = [(d / "model" / "model.safetensors").read_bytes() for d in (whole, run)]
    assert weights[0] == weights[1]
    steps = [[m["step"] for m in lines(d / "metrics.jsonl") if "loss" in m] for d in (whole, run)]
    assert steps[0] == steps[1], "nothing is written twice"
    summaries = [json.loads((d / "summary.json").read_text()) for d in (whole, run)]
    assert summaries[0]["rollouts"] == summaries[1]["rollouts"], "nothing is counted twice"
    sampled = [[s["completion"] for s in lines(d / "samples.jsonl")] for d in (whole, run)]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "missing.yaml"], "Cannot read the configuration missing.yaml"),
        (["--config"], "--config needs a value"),
        (["--method", "ppo"], "choose one of p2o, "),
        (["--resume"], "No run to resume in runs/"),
        (["--resume", "--output_dir", "nowhere"], "nowhere holds no run"),
        (["--dataset_name", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--reward_funcs", "no_such_module:f"], "cannot import 'no_such_module:f'"),
        (["--reward_funcs", "p2o.pico.world:no_such"], "no_such"),
        (["--context_mask", "sharp"], "choose one of hard, soft, off"),
        (["--num_generations", "1"], "2"),
        (["--num_generations", "5"], "num_generations=5 does not"),
        (["--evolution_budget", "much"], "evolution_budget='much'"),
        (["--output_dir", "/proc/nowhere"], "Cannot write to /proc/nowhere"),
        (["--model_name_or_path", "/nowhere/model"], "/nowhere/model"),
        (["--max_completion_length", "2040"], "longer than 8 tokens"),
    ],
)
def test_bad_input_is_one_clear_error_before_training(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.glob("runs/*/config.yaml")), "training was not started"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "must be a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("model_name: pico\n", "Unknown option(s)"),
        ("model_name_or_path: pico\n", "Missing in the configuration: dataset_name"),
        ("", "is empty"),
        ("learning_rate: 1\nlearning_rate: 2\n", "line 2, column 1: learning_rate is set twice"),
        ("a:\n\tb: 1\n", "never with tabs"),
        ("1: 2\n", "1 is not an option name"),
        ("learning_rate: fast\n", "learning_rate: 'fast' is not a number"),
        ("num_generations: 2.5\n", "num_generations: 2.5 is not a whole number"),
        ("bf16: maybe\n", "bf16: 'maybe' is not true or false"),
        ("conflicts: last\n", "conflicts: 'last' is not one of stop, first, drop"),
        ("seed:\n", "seed: None is not a whole number"),
        ("loss_type: gspo\n", "loss_type: 'gspo' is not one of grpo, "),
        ("system_prompt: [a]\n", "system_prompt: ['a'] is not a string"),
        ("model_name_or_path: pico\ndataset_name: a\nnum_generations: 0\n", "num_generations=0 must be at least 2"),
        ("reflection_model: no\n", "quote it to get a string"),
        ("reward_func: [math]\n", "reward_func (perhaps reward_funcs)"),
        ("dataset_prompt_column: q\n", "dataset_prompt_column (here: prompt_column)"),
        ("warmup_ratio: 0.1\n", "warmup_ratio (here: warmup_steps"),
        ("do_eval: true\n", "Options without effect in"),
        ("resume_from_checkpoint: x\n", "use --resume"),
        (
            "dataset_name: a.jsonl\ndataset_size: 5\n",
            "Options without effect: dataset_size (a.jsonl is not a named set)",
        ),
        ("dataset_name: gym:gcd\nprompt_column: q\n", "Options without effect: prompt_column (gym:gcd is a named set)"),
    ],
)
def test_bad_configurations(tmp_path, capsys, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    assert main(["train", "--config", str(tmp_path / "bad.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"question": "a"}\n', "no `prompt` column"),
        ('{"prompt": "a", "solution": "1"}\n{"prompt": "b", "solution": "1"}\n', "needs the column family, entry"),
        ('{"prompt": "a", "solution": "1"}\n{"prompt": "a", "solution": "2"}\n', "different"),
        ('{"prompt": \n', "Cannot load the dataset"),
    ],
)
def test_bad_data(tmp_path, config, capsys, rows, message):
    (tmp_path / "bad.jsonl").write_text(rows)
    path = config(dataset_name=str(tmp_path / "bad.jsonl"))
    assert main(["train", "--config", path, "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_check_only_tells_what_it_found_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = ['{"question": "2+2?", "answer": 4}', '{"question": " ", "answer": 4}', '{"question": "2+2?", "answer": 4}']
    mapped = ["--prompt-column", "question", "--solution-column=answer", "--prompts-as-chats", "true"]
    rows += [json.dumps({"question": f"{n}+1?", "answer": n + 1}) for n in range(20)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    assert main(["train", "--check-only", "--dataset", "own.jsonl", *mapped]) == 0
    said = capsys.readouterr().out
    assert "23 rows, 21 kept" in said and "row 1" in said and "row 2: of row 0" in said
    assert main(["train", "--check-only", "--dataset", "own.jsonl", *mapped, "--strict-data", "true"]) == 2
    (tmp_path / "own.jsonl").write_text("\n".join([*rows, '{"question": "2+2?", "answer": 5}']))
    assert main(["train", "--check-only", "--dataset", "own.jsonl", *mapped]) == 2
    assert "stops the run" in capsys.readouterr().out
    assert main(["train", "--check-only", "--dataset", "own.jsonl", "--prompt-column", "qestion"]) == 2
    assert "perhaps question" in capsys.readouterr().err
    assert main(["train", "--check-only", "--dataset", "gym:chain_sum@1+gcd", "--dataset-size", "20"]) == 0
    assert "20 rows, 20 kept" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def test_what_a_run_trains_on_is_mapped_and_recorded(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brief.py").write_text(
        "def reward(completions, solution, **rest): return [float(len(s)) for s in solution]"
    )
    rows = [json.dumps({"question": f"{n}+1?", "answer": n + 1}) for n in range(8)]
    (tmp_path / "own.jsonl").write_text("\n".join([*rows, rows[0]]))
    path = config(
        dataset_name=str(tmp_path / "own.jsonl"),
        prompt_column="question",
        solution_column="answer",
        system_prompt="Be brief.",
        reward_funcs=["brief:reward"],
        feedback_func=None,
        reflection_func=None,
        max_steps=1,
    )
    assert main(["train", "--config", path, "--output-dir", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (found["rows"], found["kept"]) == (9, 8)
    # A resumed run reads the mapping from its own configuration.
    assert main(["train", "--resume", "--output_dir", str(tmp_path / "run")]) == 0


def test_a_run_is_not_overwritten(tmp_path, config, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert main(["train", "--config", config(), "--output_dir", str(tmp_path / "run")]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert main([]) == 0
    assert "train" in capsys.readouterr().out


def test_time_left():
    assert [clock(s) for s in (0, 59.6, 61, 3700)] == ["0:00", "1:00", "1:01", "1:01:40"]
    pace = Pace()
    assert pace.left(5, 1) is None
    pace.add("step", 2.0)
    pace.add("step", 4.0)
    assert pace.left(10, 3) == 30
    pace.add("prompt phase", 7.0)
    assert pace.left(10, 3) == 30 + 21


def test_accuracies_by_dataset():
    metrics = {"eval_hard_accuracy": 0.5, "eval_hard_loss": 1.0, "eval_accuracy": 0.25, "eval_x_accuracy": None}
    assert by_set(metrics) == {"hard": 0.5, "all": 0.25}
    assert by_set({"eval_hard_kl": 0.1, "eval_hard_accuracy": 0.5}, "kl") == {"hard": 0.1}


def test_the_panel_shows_everything_that_is_promised():
    console = Console(width=120, record=True, force_terminal=True, file=io.StringIO())
    watch = Watch(console, "P²O", started=time.monotonic() - 65)
    watch.phase, watch.epoch, watch.epochs, watch.step, watch.steps = "prompt", 1, 4, 12, 48
    watch.pace.add("step", 2.0)
    watch.accuracy = {"easy": [0.7, 0.8], "hard": [0.01, 0.25]}
    watch.metrics = {"reward": 0.5, "frac_reward_zero_std": 0.75, "p2o/hard_so_far": 3, "p2o/questions_so_far": 16}
    watch.evolution = EvolutionProgress("dev", 3, 120, 240, 5, 0.6, "Go step by step.", 2)
    watch.template = "Go step by step."
    console.print(watch.panel())
    text = console.export_text()
    for part in (
        "prompt phase · epoch 2/4 · step 12/48",
        "1:05 elapsed · about 1:",
        "easy 80.0% (first 70.0%)",
        "hard 25.0% (first 1.0%)",
        "collapsed groups 75%",
        "hard so far 3 of 16",
        "rollouts 120/240 · candidates 5 · rejected 2 · best dev score 0.60",
        "“Go step by step.”",
    ):
        assert part in text, text


def test_processes_that_check_a_directory_at_once_do_not_get_in_each_others_way(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: check_writable(tmp_path, 0), range(2000))) == {None}
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    assert "Cannot write to" in check_writable(tmp_path / "file", 0)


@pytest.mark.parametrize(("every", "lines"), [(0.0, 3), (1000.0, 1)])
def test_a_prompt_phase_that_finds_nothing_goes_on_saying_how_far_it_is(every, lines):
    console = Console(width=200, record=True, file=io.StringIO())
    watch = Watch(console, "P²O", started=time.monotonic(), every=every)
    for iteration in range(3):
        progress = EvolutionProgress("feedback", iteration, 12 + iteration, 200, 1, 0.0, "", iteration)
        watch.on_prompt_phase_progress(None, None, None, progress=progress)
    text = console.export_text()
    assert text.count("evolution iteration") == lines
    assert ("rollouts 14/200" in text) is (lines == 3)
