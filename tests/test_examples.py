"""The scripts in examples/, as a user runs them, with a stand-in for the model that they name."""

import json
import sqlite3

import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOTrainer

import sqlite_agent
import tool_model
from endpoints import completion, serve
from trainers import Watch

INSTRUCTION = "Query the database before you answer."


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A small one, with fewer questions about it."""
    monkeypatch.setattr(sqlite_agent, "DATABASE", tmp_path / "shop.sqlite")
    monkeypatch.setattr(sqlite_agent, "CITIES", ["Aachen", "Bergen"])
    monkeypatch.setattr(sqlite_agent, "YEARS", ["2025"])
    sqlite_agent.build_database(sqlite_agent.DATABASE)
    return sqlite_agent.DATABASE


@pytest.fixture
def stand_in(tmp_path):
    """A model with random weights, and a tokenizer that parses calls as Qwen3's."""
    words = tool_model.tokenizer()
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    size = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 4096}
    Qwen3ForCausalLM(Qwen3Config(**size, **heads, **ends)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def answering(words):
    """Generates in the model's place: told to, it queries the database three times in four; else it guesses."""
    known, answers = dict(sqlite_agent.asked()), [0]

    def answer(text):
        answers[0] += 1
        if "<|im_start|>tool\n" in text:
            result = text.rpartition("<|im_start|>tool\n")[2].partition("<|im_end|>")[0]
            return f"Answer: {result.splitlines()[-1]}"
        if INSTRUCTION not in text or answers[0] % 4 == 0:
            return "Answer: -1"
        sql = next(sql for question, sql in known.items() if question in text)
        return f"<tool_call>\n{json.dumps({'name': 'query', 'arguments': {'sql': sql}})}\n</tool_call>"

    def generate(trainer, contexts, *rest, **more):
        return [words(answer(words.decode(ids)) + "<|im_end|>")["input_ids"] for ids in contexts], None

    return generate


def test_questions_about_a_database_are_learnt_with_its_query_tool(tmp_path, monkeypatch, shop, stand_in):
    """The whole script; only what the model writes is a stand-in's, and what the reflection model answers."""
    watch = Watch()
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", answering(tool_model.tokenizer()))
    made = sqlite_agent.P2OTrainer
    monkeypatch.setattr(sqlite_agent, "P2OTrainer", lambda **parts: made(**parts, callbacks=[watch]))
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-for-nobody")
    with serve(lambda handler: handler.send(200, completion(f"```\n{INSTRUCTION}\n```"))) as server:
        options = f"""--model {stand_in} --output_dir {tmp_path / "run"} --use_cpu true --bf16 false
            --gradient_checkpointing false --report_to none --num_train_epochs 2 --num_generations 4
            --per_device_train_batch_size 48 --gradient_accumulation_steps 1 --max_completion_length 600
            --evolution_budget 60 --min_hard_questions 2 --reflection_model openai/m
            --reflection_base_url {server.url} --reflection_max_tokens 64 --chat_template_kwargs {{}}"""
        monkeypatch.setattr("sys.argv", ["sqlite_agent.py", *options.split()])
        trainer = sqlite_agent.main()
        requests = json.dumps(server.requests)
    assert [template.text for template in trainer.p2o.templates] == [INSTRUCTION]
    rewards = {bool(r.template): [] for _, rollouts in watch.batches for r in rollouts}
    for _, rollouts in watch.batches:
        for rollout in rollouts:
            rewards[bool(rollout.template)].append(rollout.reward)
    assert sum(rewards[False]) == 0 and 0.5 < sum(rewards[True]) / len(rewards[True]) < 1
    assert "Wrong after 0 queries. The answer is" in requests
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_query_tool_reads_and_never_writes(shop):
    before = shop.read_bytes()
    assert "city" in sqlite_agent.query("SELECT sql FROM sqlite_master WHERE name = 'customer'")
    assert len(sqlite_agent.query("SELECT * FROM purchase").splitlines()) == 21
    for sql in ("DROP TABLE customer", "INSERT INTO customer VALUES (999, 'x', 'y')", "SELECT * FROM nowhere"):
        with pytest.raises(sqlite3.OperationalError):
            sqlite_agent.query(sql)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        sqlite_agent.query(endless)
    assert shop.read_bytes() == before


def test_an_answer_is_read_from_the_last_message():
    def said(text, role="assistant"):
        return [{"role": "assistant", "content": "Answer: 7"}, {"role": role, "content": text}]

    cases = {"Answer: 1,234.": 1234, "So.\nAnswer: 33.0": 33, "Answer: 1\nAnswer: 2": 2, "12": None, "Answer: ": None}
    assert {text: sqlite_agent.given_answer(said(text)) for text in cases} == cases
    assert sqlite_agent.given_answer(said("Answer: 5", role="tool")) is None
    assert sqlite_agent.correct([said("Answer: 1,234"), said("none")], solution=["1234", "3"]) == [1.0, 0.0]
