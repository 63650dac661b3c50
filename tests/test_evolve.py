"""`p2o evolve` on the embedded world: instructions are found for a model that nobody trains."""

import json
import re
import time
from typing import get_args, get_type_hints

import pytest
from trl import ModelConfig

import forked
from endpoints import completion, serve
from p2o import P2OConfig
from p2o.cli import main
from p2o.cli.errors import InputError
from p2o.cli.eval import EvalArguments
from p2o.cli.evolve import EvolveArguments
from p2o.cli.frozen_options import parse
from p2o.cli.options import RunArguments, explicit
from p2o.cli.words import normalized_option
from p2o.pico import model_path, teacher, world
from p2o.pico.instructions import HOW
from p2o.templates import question_text

COMMAND = [
    "evolve",
    "pico",
    "--dataset",
    "pico",
    "--limit",
    "24",
    "--num_generations",
    "4",
    "--reflection_func",
    "pico",
]
COMMAND += ["--evolution_budget", "60", "--max_dev_questions", "8", "--confirm_samples", "3"]


def read(directory, name="templates.json"):
    return json.loads((directory / name).read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evolve") / "a"
    assert main([*COMMAND, "--output_dir", str(directory)]) == 0
    return directory


def test_templates_are_found_scored_and_saved(found, capsys):
    outcome, evolution = read(found), read(found, "evolution.json")
    bare = [json.loads(line) for line in (found / "bare.jsonl").read_text().splitlines()]
    rows = world.train_dataset()
    right = {q: sum(s["reason"] == "right" for s in bare if s["question"] == q) for q in range(24)}
    assert evolution["hard_set"] == [q for q in range(24) if right[q] <= 1]
    assert sorted(evolution["feedback_ids"] + evolution["dev_ids"]) == evolution["hard_set"]

    dev = outcome["dev"]
    best = max(outcome["templates"], key=lambda t: t["measured"]["success"])
    assert best["measured"]["success"] > dev["bare"]["success"] and best["difference"]["low"] > 0
    assert dev["solved_under_some_template"] > dev["solved_bare"]
    # What is measured is measured afresh, under the templates, on the dev questions only.
    fresh = [json.loads(line) for line in (found / "confirmation.jsonl").read_text().splitlines()]
    assert len(fresh) == (1 + len(outcome["templates"])) * len(evolution["dev_ids"]) * 3
    own = [s["reason"] == "right" for s in fresh if s["task"] == f"template {outcome['templates'].index(best) + 1}"]
    assert best["measured"]["success"] == pytest.approx(sum(own) / len(own))

    questions = [question_text(rows[q]["prompt"]) for q in evolution["hard_set"]]
    for template in outcome["templates"]:
        assert template["text"] in (found / "templates.txt").read_text()
        assert not any(question in template["text"] for question in questions) and "<|" not in template["text"]
        assert set(template["solves"]) <= set(evolution["dev_ids"])

    rollouts = outcome["ledger"]["rollouts"]
    assert rollouts["policy"] == 24 * 4 and rollouts["evaluation"] == len(fresh)
    spent = evolution["spent"]["rollouts"]
    assert all(rollouts[p] == spent[p] > 0 for p in ("evolution_feedback", "evolution_dev", "reflection"))
    assert all(outcome["ledger"]["completion_tokens"][p] > 0 for p in ("policy", "evolution_dev", "evaluation"))

    # Finished, it is only told again; and what it says is a table and what was spent.
    assert main([*COMMAND, "--output_dir", str(found)]) == 0
    said = capsys.readouterr().out
    assert "hard dev questions" in said and f"Spent: rollouts policy {rollouts['policy']}" in said
    assert read(found) == outcome


@pytest.mark.slow
@pytest.mark.parametrize("when", ["bare.jsonl", "evolution/journal.jsonl", "confirmation.jsonl"])
def test_killed_in_any_phase_it_ends_as_if_it_had_not_been(tmp_path, found, when):
    directory = tmp_path / "killed"
    command = [*COMMAND, "--output_dir", str(directory)]
    (process,) = forked.start_command(*command, logs=tmp_path)
    deadline = time.monotonic() + 120
    while not ((directory / when).exists() and (directory / when).stat().st_size > 200) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (directory / "templates.json").exists() or when == "confirmation.jsonl"
    assert main(command) == 0
    for name in ("templates.json", "evolution.json", "templates.txt"):
        assert (directory / name).read_bytes() == (found / name).read_bytes()


def test_the_model_reflects_by_itself(tmp_path):
    options = ["--reflection_func", "", "--evolution_budget", "30", "--confirm_samples", "0"]
    assert main([*COMMAND, *options, "--output_dir", str(tmp_path)]) in (0, 1)
    spent = read(tmp_path, "evolution.json")["spent"]
    assert spent["rollouts"]["reflection"] > 0 and spent["completion_tokens"]["reflection"] > 0


def test_a_served_model_and_a_served_reflection(tmp_path):
    """The policy is a server that can only work by one method, and only when told to; another server reflects."""
    rows = {question_text(row["prompt"]): row["solution"] for row in world.train_dataset()}

    def policy(handler):
        asked = handler.body["messages"][-1]["content"]
        question = next(q for q in rows if asked.endswith(q))
        told = any(how in asked[: -len(question)].lower() for how in HOW["left to right"])
        handler.send(200, completion(f"Answer: {rows[question] if told else 'unknown'}"))

    def reflect(handler):
        (answer,) = teacher.reflect([handler.body["messages"][-1]["content"]], seed=0)
        handler.send(200, completion(answer.text))

    with serve(policy) as policy_server, serve(reflect) as reflection_server:
        command = ["evolve", "openai/policy", "--base_url", policy_server.url, "--dataset", "pico", "--limit", "8"]
        command += ["--num_generations", "2", "--evolution_budget", "24", "--output_dir", str(tmp_path / "out")]
        command += ["--reflection_model", "openai/teacher", "--reflection_base_url", reflection_server.url]
        assert main([*command, "--confirm_samples", "1"]) == 0
        assert len(reflection_server.requests) >= 1
    outcome = read(tmp_path / "out")
    assert outcome["bare_success"] == 0 and outcome["templates"][0]["measured"]["success"] > 0.5
    assert outcome["ledger"]["prompt_tokens"]["policy"] == 70 * 16


def test_nothing_hard_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "always.py").write_text("def all_right(completions, **columns):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "--reward_func", "always:all_right", "--output_dir", "out"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "0 hard questions are fewer than --min_hard_questions 8. Use harder questions" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evolution_budget", "huge"], "neither a number of rollouts nor one of light"),
        (["--reflection_prompt", "Do better."], "lacks the placeholder(s) <curr_param>, <side_info>"),
        (["--reflection_model", "nobody"], "reflection_model='nobody' is neither"),
        (
            ["--reflection_base_url", "http://127.0.0.1:1/v1"],
            "reflection_base_url is about an endpoint, and reflection_model='reference' is none",
        ),
        (["--parents_per_iteration", "0"], "parents_per_iteration=0 must be at least 1"),
        (["--config", "nowhere.yaml"], "Cannot read the configuration nowhere.yaml"),
        (["--tasks", "pico:hard", "--feedback_func", "nowhere:f"], "cannot import 'nowhere:f'"),
    ],
)
def test_bad_input_is_told_in_one_message(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evolve", "pico", *options, "--limit", "4"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and message in " ".join(said.split())


def test_a_configuration_of_training_has_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("learning_rate: 1.0e-6\nnum_generations: 3\nmax_completion_length: 100000\n")
    command = ["evolve", model_path(), "--tasks", "pico:hard", "--limit", "4", "--config", "my.yaml"]
    assert main(command) == 2
    assert re.search("--max_completion_length 100000", " ".join(capsys.readouterr().err.split()))
    (settings,) = (tmp_path / "runs" / "evolve").glob("*/settings.json")
    assert json.loads(settings.read_text())["num_generations"] == 3


def option_types(*owners):
    """The types of all options by name; whether one may be left unset is no difference."""
    return {
        name: set(get_args(kind) or (kind,)) - {type(None)}
        for owner in owners
        for name, kind in get_type_hints(owner).items()
    }


def test_options_of_the_same_name_are_of_the_same_type_in_every_command():
    training = option_types(ModelConfig, P2OConfig, RunArguments)
    evaluation, evolution = option_types(EvalArguments), option_types(EvolveArguments)
    own = {"n", "k", "questions_per_batch", "instruction", "template_position"}
    assert evaluation.keys() - evolution.keys() == own
    for command, least in ((evaluation, 25), (evolution, 45)):
        shared = command.keys() & training.keys()
        assert len(shared) >= least
        assert {name: command[name] for name in shared} == {name: training[name] for name in shared}


def test_a_flag_takes_no_word_that_is_not_its_value():
    found = parse(EvalArguments, ["--use_vllm", "some/model", "--tasks", "pico:hard"], prog="p2o", description="")
    assert found.use_vllm and found.model == "some/model"
    found = parse(EvalArguments, ["--use_vllm", "no", "some/model", "--tasks", "aime24"], prog="p2o", description="")
    assert not found.use_vllm and found.model == "some/model"


@pytest.mark.parametrize("word", ["--prompts-as-chats", "--prompts_as_chats"])
@pytest.mark.parametrize(("values", "want"), [(["true"], True), (["false"], False), ([], True)])
def test_flags_are_written_as_in_training(word, values, want):
    command = ["pico", "--dataset", "x.jsonl", word, *values]
    assert parse(EvolveArguments, command, prog="p2o", description="").prompts_as_chats is want
    assert explicit([normalized_option(w) for w in command[1:]])["prompts_as_chats"] is want


def test_a_configuration_of_training_is_read_as_training_reads_it(tmp_path):
    path = tmp_path / "my.yaml"
    settings = ["reflection_temperature: 5e-1", "evolution_budget: 40", "dataset_name: own.jsonl", "seed: 7"]
    path.write_text("\n".join([*settings, "learning_rate: 1e-6"]))
    command = ["some/model", "--config", str(path)]
    found = parse(EvolveArguments, command, prog="p2o", description="", takes_dataset=True)
    assert (found.reflection_temperature, found.evolution_calls, found.dataset_name) == (0.5, 40, "own.jsonl")
    assert found.seed == 0, "a seed of training is not one of sampling"
    path.write_text("reflection_temprature: 1\n")
    with pytest.raises(InputError, match="perhaps reflection_temperature"):
        parse(EvolveArguments, command, prog="p2o", description="")
