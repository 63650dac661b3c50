"""Tools in both phases: the instruction is in front of the question, the conversation under it is whole, and what a
tool returned is read and never learnt."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OConfig, P2OTrainer
from p2o.completions import conversation_text, final_text
from p2o.prompt_phase.types import Reflection
from p2o.templates import Template
from p2o.thoughts import MARKED, ThoughtReading
from p2o.verifiers.rewards import math
from tool_model import INSTRUCTION, OTHERS, QUESTIONS, multiply, prompt, reflecting
from torchrun import torchrun
from trainers import (
    Watch,
    assert_loss_is,
    assert_same,
    brute_force_logps,
    contexts_of,
    options,
    rows_of,
    terms_with_tools,
    watched_batch,
    weights,
)

CALLS = Template(INSTRUCTION, 1.0, frozenset())


def data(count=16, instruction=""):
    before = f"{instruction}\n\n" if instruction else ""
    chats = [[{"role": "user", "content": before + prompt(a, b)[0]["content"]}] for a, b in QUESTIONS[::3]]
    golds = [str(a * b) for a, b in QUESTIONS[::3]]
    return Dataset.from_dict({"prompt": chats[:count], "solution": golds[:count]})


def right(completions, solution, **kwargs):
    return [float(final_text(c) == gold) for c, gold in zip(completions, solution, strict=True)]


def spread(completions, **kwargs):
    """Hardly two conversations earn the same."""
    return [len(c) + 0.01 * sum(map(ord, final_text(c))) for c in completions]


def make(
    tmp_path, folder, trainer=P2OTrainer, config=P2OConfig, reward=spread, train=None, tools=(multiply,), **changes
):
    more = {name: changes.pop(name) for name in ("reflect", "feedback_func", "rollout_func") if name in changes}
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=config(**options(tmp_path, **{"max_completion_length": 120, **changes})),
        train_dataset=data() if train is None else train,
        processing_class=AutoTokenizer.from_pretrained(folder),
        tools=list(tools),
        **more,
    )


def watched_tool(fails=False):
    """The calculator, and what it was asked."""
    asked = []

    @functools.wraps(multiply)
    def watched(a: int, b: int) -> int:
        asked.append((a, b))
        if fails:
            raise OSError("no calculator here")
        return multiply(a, b)

    return watched, asked


def test_without_templates_it_is_grpo_bit_for_bit(tmp_path, tool_model):
    """Calls and all."""
    trained, asked = {}, {}
    for name, trainer, config in (("grpo", GRPOTrainer, GRPOConfig), ("p2o", P2OTrainer, P2OConfig)):
        counted, asked[name] = watched_tool()
        changes = {"skip_zero_advantages": False} if name == "p2o" else {}
        told = data(instruction=INSTRUCTION)
        made = make(tmp_path / name, tool_model, trainer, config, train=told, tools=[counted], **changes)
        made.train()
        trained[name] = weights(made)
    assert asked["grpo"] == asked["p2o"] and len(asked["p2o"]) >= 8
    assert_same(trained["grpo"], trained["p2o"])


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_loss_and_gradient_equal_the_definition(tmp_path, tool_model, loss_type):
    """π_θ(y|x) over the tokens that the policy wrote, the mask on each of them; results of tools only stand before."""
    low, high = 0.2, 3.0
    trainer = make(tmp_path, tool_model, loss_type=loss_type, context_ratio_min=low, context_ratio_max=high)
    output, watch = watched_batch(trainer, [CALLS])
    terms, lengths, masked, returned = terms_with_tools(trainer, output, watch, low, high)
    assert masked > 0 and returned > 0, "calls and masked tokens there must be for the test to mean anything"
    assert_loss_is(trainer, output, terms, lengths)


def test_what_was_sampled_after_a_result_is_known_without_another_pass(tmp_path, tool_model):
    """log π_old(y|T(x, z)) of every turn is recorded while it is sampled, and is what a pass finds."""
    trainer = make(tmp_path, tool_model)
    output, watch = watched_batch(trainer, [CALLS])
    assert trainer.p2o.ledger.forward_tokens == 0
    contexts, turns = contexts_of(trainer, watch.rollouts), []
    for row, (_, completion) in enumerate(rows_of(output)):
        own = output["tool_mask"][row][: len(completion)].bool()
        turns.append(not own.all())
        with torch.no_grad():
            passed = brute_force_logps(trainer.model, contexts[row], completion)
        torch.testing.assert_close(
            output["sampling_per_token_logps"][row][: len(completion)][own], passed[own], atol=1e-4, rtol=1e-4
        )
    assert any(turns)


def test_where_a_turn_cannot_be_recorded_a_pass_takes_its_place(tmp_path, tool_model):
    """Prompts fed in pieces: of the question there is one, of the conversation there are several."""
    trainer = make(tmp_path, tool_model)
    longest = max(map(len, contexts_of(trainer, watched_batch(trainer, [CALLS])[1].rollouts)))
    trainer.generation_config.prefill_chunk_size = longest
    output, watch = watched_batch(trainer, [CALLS])
    assert trainer.p2o.ledger.forward_tokens > 0 and "sampling_per_token_logps" not in output
    terms, lengths, _, returned = terms_with_tools(trainer, output, watch, 0.01, 10.0)
    assert returned > 0
    assert_loss_is(trainer, output, terms, lengths)


def test_an_evaluation_calls_tools_too(tmp_path, tool_model):
    counted, asked = watched_tool()
    trainer = make(tmp_path, tool_model, reward=right, tools=[counted], num_generations_eval=2)
    told, untold = (trainer.evaluate(data(32, instruction)) for instruction in (INSTRUCTION, ""))
    assert told["eval_accuracy"] > 0.3 > untold["eval_accuracy"] and len(asked) >= 32


def test_verifiers_judge_what_was_said_last(tool_model):
    call = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 2, "b": 3}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    returned = {"role": "tool", "name": "multiply", "content": "6"}
    conversations = [[called, returned], [called, returned, {"role": "assistant", "content": "\\boxed{6}"}]]
    # Of the tokens of a conversation a tool has written some.
    decoding = ThoughtReading(decode=AutoTokenizer.from_pretrained(tool_model).decode)
    ids = [AutoTokenizer.from_pretrained(tool_model)("6")["input_ids"]] * 2
    for reading in (MARKED, decoding):
        given = {"completion_ids": ids, "solution": ["6", "6"], "thought_reading": reading}
        assert math(completions=conversations, **given) == [0.0, 1.0]


def test_what_is_sampled_is_the_conversation_under_the_template(tmp_path, tool_model):
    trainer = make(tmp_path, tool_model)
    before = trainer.p2o.ledger.completion_tokens["policy"]
    output, _ = watched_batch(trainer, [CALLS])
    words = trainer.processing_class
    called = 0
    for row, (bare, completion) in enumerate(rows_of(output)):
        assert INSTRUCTION not in words.decode(bare)
        text = words.decode(completion)
        own = output["tool_mask"][row][: len(completion)].bool().tolist()
        returned = words.decode([token for token, is_own in zip(completion, own, strict=True) if not is_own])
        called += "<tool_call>" in text
        assert ("<|im_start|>tool" in returned) == ("<tool_call>" in text)
        assert "<tool_call>" not in returned
    assert called >= 2
    written = trainer.p2o.ledger.completion_tokens["policy"] - before
    assert written == int((output["completion_mask"] * output["tool_mask"]).sum())


def test_both_phases_alternate_and_the_bare_question_gains(tmp_path, tool_model):
    """Told to use the calculator it is right; after an epoch under that instruction it uses it untold."""
    told, seen = [], []

    def feedback(completion, row):
        seen.append((completion, row["conversation"], row["reward"]))
        return "Right." if row["reward"] else "Wrong."

    train = data(16)
    trainer = make(
        tmp_path,
        tool_model,
        reward=right,
        train=train,
        max_steps=-1,
        num_train_epochs=6,
        learning_rate=1e-3,
        bare_rollouts_per_group=2,  # told it is right every time, and a group needs both
        context_ratio_min=1e-4,  # bare it hardly ever calls, and the mask would hold it to that
        per_device_train_batch_size=16,
        min_hard_questions=2,
        evolution_budget=100,
        max_prompt_phases=2,
        reflect=reflecting(told),
        feedback_func=feedback,
    )
    trainer.add_callback(watch := Watch())
    trainer.train()
    selected = [template.text for _, result, _ in watch.phases if result for template in result.selected]
    assert INSTRUCTION in selected  # once the bare questions are solved there may be none in use any more
    conversations = [conversation for _, conversation, _ in seen]
    whole = [c for c in conversations if len(c) == 3]
    assert whole and all([m["role"] for m in c] == ["assistant", "tool", "assistant"] for c in whole)
    assert all(completion == final_text(conversation) for completion, conversation, _ in seen)
    success = {False: [], True: []}
    for epoch, rollouts in watch.batches:
        for rollout in rollouts:
            success[bool(rollout.template)].append(rollout.reward)
            assert not (rollout.template and epoch == 0)
    assert sum(success[True]) / len(success[True]) > 0.5
    first = [rollout.reward for epoch, rollouts in watch.batches if epoch == 0 for rollout in rollouts]
    bare = AutoTokenizer.from_pretrained(tool_model).apply_chat_template(
        list(train["prompt"]), add_generation_prompt=True, return_dict=True, padding=True, return_tensors="pt"
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        answers = trainer.model.generate(**bare, do_sample=True, max_new_tokens=60)
    texts = trainer.processing_class.batch_decode(answers[:, bare["input_ids"].size(1) :])
    assert sum(first) / len(first) < 0.3 < sum("<tool_call>" in text for text in texts) / len(texts)


def test_reflection_reads_calls_and_results(tmp_path, tool_model):
    """Of conversations that failed, in the text that is given as the answer."""
    told = []

    def reflect(prompts, *, seed):
        told.extend(prompts)
        return [Reflection(f"```\n{OTHERS[1]}\n```") for _ in prompts]

    def wrong(completions, **kwargs):
        return [0.0] * len(completions)

    changes = {"max_steps": -1, "num_train_epochs": 2, "min_hard_questions": 2, "evolution_budget": 40}
    train = data(8, instruction=INSTRUCTION)
    make(tmp_path, tool_model, reward=wrong, train=train, reflect=reflect, **changes).train()
    assert told and any("[calls multiply] {" in text and "[multiply returned] " in text for text in told)


def test_a_tool_that_raises_costs_nothing_but_its_result(tmp_path, tool_model):
    broken, asked = watched_tool(fails=True)
    trainer = make(tmp_path, tool_model, train=data(instruction=INSTRUCTION), tools=[broken], max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1 and asked


def test_a_conversation_as_text():
    call = {"type": "function", "function": {"name": "multiply", "arguments": {"a": 2, "b": 3}}}
    messages = [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "name": "multiply", "content": "6"},
    ]
    said = 'Let me see.\n[calls multiply] {"a": 2, "b": 3}\n[multiply returned] 6'
    assert conversation_text(messages) == said
    assert final_text(messages) == "", "a tool's result is not what the model answers"
    assert final_text([*messages, {"role": "assistant", "content": "6."}]) == "6."


def test_what_cannot_work_is_refused(tmp_path, tool_model):
    with pytest.raises(ValueError, match="reused_rollouts_per_group does not go together with tools"):
        make(tmp_path, tool_model, reused_rollouts_per_group=1)
    with pytest.raises(ValueError, match="either `tools`"):
        make(tmp_path, tool_model, rollout_func=lambda prompts, trainer: {})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tools", "environments"])
def test_two_processes_take_turns_together(tmp_path, tool_model, kind):
    """Each has conversations of other lengths; the prompt phase finds what one process finds, and what fails there."""
    script = Path(__file__).parent / "tool_process.py"
    found = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        done = torchrun(script, str(out), str(tool_model), kind, processes=processes, environment=dict(os.environ))
        assert done.returncode == 0, done.stderr[-4000:]
        found[processes] = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    (one,), (first, second) = found[1], found[2]
    assert first == second and one["templates"] == first["templates"] != []
    assert one["failed"] == first["failed"] and bool(one["failed"]) == (kind == "environments")
