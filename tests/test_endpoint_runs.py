"""Whole runs whose reflection is behind an endpoint."""

import json
import logging

import pytest
import torch
from transformers import AutoTokenizer

from endpoints import KEY, completion, serve, status, well
from p2o import P2OConfig, P2OTrainer
from p2o.cli import main
from p2o.engines.endpoint import redact
from p2o.pico import model_path, teacher
from p2o.pico.world import accuracy_reward
from trainers import Watch, coin, load, options, questions

pytestmark = pytest.mark.usefixtures("no_keys")


def train(tmp_path, url, resume=None, **changes):
    settings = {
        "num_train_epochs": 2,
        "max_steps": -1,
        "max_completion_length": 8,
        "per_device_train_batch_size": 16,
        "min_hard_questions": 2,
        "evolution_budget": 150,
        "parents_per_iteration": 2,
        "reflection_model": "openai/some-model",
        "reflection_base_url": url,
        "reflection_max_retries": 0,
        **changes,
    }
    trainer = P2OTrainer(
        model=load(),
        reward_funcs=coin,
        args=P2OConfig(**options(tmp_path, **settings)),
        train_dataset=questions(24),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
    )
    events = Watch()
    trainer.add_callback(events)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, events


def numbered(handler):
    handler.send(200, completion(f"```\nTry way number {len(handler.server.requests)}.\n```"))


def test_a_server_that_dies_ends_the_prompt_phase_and_not_the_run(tmp_path, caplog):
    with serve(numbered, numbered, status(500)) as server:
        trainer, events = train(tmp_path, server.url, evolution_budget=200)
    ((_, result, _),) = events.phases
    assert trainer.state.global_step == trainer.state.max_steps
    assert "InternalServerError: no luck" in result.ended_early
    assert "The prompt phase before epoch 1 ends early" in caplog.text and "no luck" in caplog.text
    assert {c.text for c in result.candidates} <= {"", "Try way number 1.", "Try way number 2."}
    assert result.metric_calls < 200
    assert trainer.p2o.events["prompt_phase_ended_early"] == 1
    failed = trainer.p2o.events["reflection_failed"]
    assert failed >= 1 and result.rejections["failed"] == failed
    assert trainer.p2o.ledger.rollouts["reflection"] == len(server.requests) - failed == 2
    assert trainer.p2o.ledger.prompt_tokens["reflection"] == 2 * 70
    assert trainer.p2o.ledger.completion_tokens["reflection"] == 2 * 30


def test_the_limit_is_one_of_the_run_and_its_last_templates_stay(tmp_path, caplog):
    settings = {"num_train_epochs": 3, "save_strategy": "epoch", "reflection_token_limit": 650, "seed": 2}
    with serve(numbered) as server:
        trainer, events = train(tmp_path, server.url, **settings)
        asked = len(server.requests)
        assert 650 <= 100 * asked < 650 + 200
        (_, first, _), (_, second, why) = events.phases
        assert "reflection_token_limit" in first.ended_early
        assert second is None and "reflection_token_limit" in why
        assert trainer.p2o.templates and set(trainer.p2o.assignment) == set(trainer.p2o.hard_set)
        spent = trainer.p2o.ledger
        assert spent.prompt_tokens["reflection"] + spent.completion_tokens["reflection"] == 100 * asked
        # A resumed run has spent what it had: nothing is asked for again.
        checkpoint = sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-2]
        resumed, _ = train(tmp_path, server.url, resume=str(checkpoint), **settings)
        assert len(server.requests) == asked
        assert resumed.p2o.ledger == spent and resumed.p2o.templates == trainer.p2o.templates


def test_another_reflection_model_is_another_run(tmp_path):
    with serve(well) as server:
        trainer, _ = train(tmp_path, server.url, max_steps=1)
        assert trainer.fingerprint()["reflection_model"] == "openai/some-model"
        assert not any(server.url in str(value) for value in trainer.fingerprint().values())


def test_the_policy_itself_can_reflect(tmp_path):
    trainer = P2OTrainer(
        model=load(),
        reward_funcs=accuracy_reward,
        args=P2OConfig(
            **options(tmp_path, reflection_model="policy", reflection_max_tokens=12, reflection_temperature=0.0)
        ),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
    )
    assert trainer.reflect.frozen is None, "there is nothing to keep"
    before = trainer.reflect(["Improve this."], seed=0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert trainer.reflect(["Improve this."], seed=0) != before


def test_from_the_command_line_with_a_key_that_is_never_seen_again(tmp_path, config, monkeypatch, capfd, caplog):
    """The server says the key wherever it can: in errors, headers and answers; nothing of it may be kept or shown."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.INFO)

    def careless(handler):
        number = len(handler.server.requests)
        if number % 3 == 1:
            status(500)(handler)
            return
        (known,) = teacher.reflect([handler.body["messages"][-1]["content"]], seed=number)
        handler.send(200, completion(f"With {handler.key}:\n{known.text}\n{handler.key}"), X_Your_Key=handler.key)

    run = tmp_path / "run"
    with serve(*[careless] * 9, status(401)) as server:
        command = ["train", "--config", config(evolution_budget=240), "--output_dir", str(run)]
        command += ["--reflection_model", "openai/some-model", "--reflection_base_url", server.url]
        assert main(command) == 0
        assert server.keys == {KEY}
    evolution = json.loads((run / "templates" / "epoch-001.json").read_text())["evolution"]
    assert len(evolution["candidates"]) > 1, "what the server proposed was tried, and found better than nothing"
    assert "AuthenticationError" in evolution["ended_early"]
    out, err = capfd.readouterr()
    assert "prompt phase ended early" in out and "AuthenticationError: no luck with key [redacted]" in out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["events"]["reflection_failed"] >= 1 and summary["events"]["prompt_phase_ended_early"] >= 1
    assert summary["tokens"]["prompt_tokens"]["reflection"] >= 70
    assert "Ended early: " in (run / "report.html").read_text()
    assert "[redacted]" in (run / "evolution" / "epoch-001" / "journal.jsonl").read_text()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in out + err + caplog.text


def test_what_is_redacted(monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "correct horse")
    monkeypatch.setenv("SHORT_KEY", "a")
    monkeypatch.setenv("OTHER", "plain value")
    assert redact("a correct horse, a plain value") == "a [redacted], a plain value"
