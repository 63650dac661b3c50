"""Rewards in the prompt phase: as the policy phase gives them, and as many at once."""

import asyncio

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

from p2o.pico import model_path
from p2o.prompt_phase.types import Question
from trainers import generation_batch, make

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "content": {"open": "Answer:", "close": "<|end|>", "content": "text"},
    },
}


def requests(count):
    return [(Question(n % 12, "", ""), "") for n in range(count)]


def test_all_rows_of_a_prompt_phase_are_scored_in_batches_of_the_policy_phases_size(tmp_path):
    """A reward model has memory for so many."""
    sizes = []

    def reward(completions, **kwargs):
        sizes.append(len(completions))
        return [float(len(c[-1]["content"])) for c in completions]

    trainer = make(tmp_path, reward=reward)
    generation_batch(trainer)
    (most,) = set(sizes)
    sizes.clear()
    rollouts = trainer.policy_rollouts(requests(2 * most + 3), 0)
    assert sizes == [most, most, 3]
    assert [r.reward for r in rollouts] == [len(r.completion) for r in rollouts], "in the order of the requests"


def test_a_reward_model_and_coroutines_are_given_as_many_at_once(tmp_path):
    """All rows of a batch in one pass, and all functions that wait for something together."""
    tokenizer, folder = AutoTokenizer.from_pretrained(model_path()), tmp_path / "judge"
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_labels": 1, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    Qwen3ForSequenceClassification(Qwen3Config(**shape, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    passes, waiting, sizes = [], [], []

    async def first(completions, **kwargs):
        """Answers once the second one waits, too."""
        sizes.append(len(completions))
        waiting.append("first")
        while "second" not in waiting:
            await asyncio.sleep(0)
        return [float(len(c[-1]["content"])) for c in completions]

    async def second(completions, **kwargs):
        waiting.append("second")
        while "first" not in waiting:
            await asyncio.sleep(0)
        return [None] * len(completions)

    trainer = make(tmp_path, reward=[str(folder), first, second])
    judge = trainer.reward_funcs[0]
    judge.register_forward_hook(lambda module, given, answer: passes.append(answer.logits[:, 0]))
    generation_batch(trainer)
    (most,) = {len(scores) for scores in passes}
    passes.clear(), waiting.clear(), sizes.clear()
    rollouts = trainer.policy_rollouts(requests(most + 3), 0)
    assert sizes == [len(scores) for scores in passes] == [most, 3]
    expected = torch.cat(passes) + torch.tensor([float(len(r.completion)) for r in rollouts])
    torch.testing.assert_close(torch.tensor([r.reward for r in rollouts]), expected)
    assert len(expected.unique()) > 3


def test_completions_are_parsed_as_in_the_policy_phase(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.response_template = RESPONSE_TEMPLATE
    seen, fed_back = [], []

    def reward(completions, **kwargs):
        seen.extend(message for (message,) in completions)
        return [0.0] * len(completions)

    trainer = make(tmp_path, reward=reward, tokenizer=tokenizer, max_completion_length=48)
    generation_batch(trainer, assign={})
    policy, seen[:] = list(seen), []
    trainer.feedback_func = lambda completion, row: fed_back.append(completion) or ""
    rollouts = trainer.policy_rollouts(requests(8), 0)
    assert not fed_back, "made where somebody reads it"
    assert [rollout.feedback for rollout in rollouts] == [""] * 8
    for messages in (policy, seen):
        assert len(messages) == 8 and not any("Answer" in message["content"] for message in messages)
    assert fed_back == [message["content"] for message in seen], "feedback is on what was scored"
    assert [rollout.completion for rollout in rollouts] == [f"Answer: {content}" for content in fed_back]
