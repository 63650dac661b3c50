"""What counts as a question's success, in training and in evaluation."""

import pytest
import torch
from transformers import AutoTokenizer

from p2o.pico import model_path
from p2o.templates import question_text
from trainers import TEMPLATE, K, generation_batch, hard_set, make, questions, watched_batch


def test_a_template_that_does_not_fit_is_not_used(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    data = questions().select(range(2))
    chats = [tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in data["prompt"]]
    longest = max((0, 1), key=lambda row: len(chats[row]))
    trainer = make(tmp_path, data=data, max_prompt_length=len(chats[longest]))
    _, watch = watched_batch(trainer, assign={longest: [None, 0, 0, 0]})
    assert not any(template for _, template, *_ in watch.rollouts)
    assert trainer.p2o.events == {"template_too_long_for_question": 3}
    assert trainer.p2o.ledger.prompt_tokens["policy"] == K * len(chats[0]) + K * len(chats[1])


def test_mining_counts_success_per_question(tmp_path):
    def by_row(completions, **kwargs):
        return [1.0, 0, 0, 0, 1, 1, 0, 0]

    trainer = make(tmp_path, reward=by_row)
    generation_batch(trainer, assign={})
    assert {q: (o.successes, o.rollouts) for q, o in trainer.p2o.outcomes.items()} == {0: (1, 4), 1: (2, 4)}
    assert hard_set(trainer) == [0]


def test_success_may_be_one_reward_among_several(tmp_path):
    def accuracy(completions, **kwargs):
        return [0.0] * len(completions)

    def formatting(completions, **kwargs):
        return [1.0] * len(completions)

    both = make(tmp_path / "a", reward=[accuracy, formatting])
    generation_batch(both, assign={})
    assert hard_set(both) == []
    one = make(tmp_path / "b", reward=[accuracy, formatting], success_reward="accuracy", reward_weights=[1.0, 0.2])
    generation_batch(one, assign={})
    assert hard_set(one) == [0, 1]


def test_unscored_rollouts_are_no_failures(tmp_path):
    def reward(completions, **kwargs):
        return [None] * K + [None, 1.0, 0.0, 1.0]

    trainer = make(tmp_path, reward=reward)
    generation_batch(trainer, assign={})
    assert {q: (o.successes, o.rollouts) for q, o in trainer.p2o.outcomes.items()} == {1: (2, 3)}
    assert trainer.p2o.events == {"unscored_rollouts": 5}


def test_evaluation_is_bare_and_leaves_the_generators_alone(tmp_path):
    trainer = make(tmp_path, num_generations_eval=1, per_device_eval_batch_size=8)
    trainer.p2o.templates, trainer.p2o.assignment = [TEMPLATE], {i: [0] * K for i in range(12)}
    trainer.eval_dataset = questions(8)
    seen = []
    trainer.reward_funcs[0] = lambda prompts, completions, **kwargs: [seen.extend(prompts), [1.0] * len(prompts)][1]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = trainer.evaluate()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert seen and all(TEMPLATE.text not in question_text(prompt) for prompt in seen)
    assert trainer.evaluate()["eval_completions/mean_length"] == first["eval_completions/mean_length"]
    assert trainer.p2o.ledger.total_rollouts == 0
    assert trainer.p2o.ledger.rollouts["evaluation"] == 16


def test_accuracy_is_over_all_rollouts_of_a_set(tmp_path):
    """Also where the last batch is smaller than the others."""
    trainer = make(tmp_path, num_generations_eval=1, per_device_eval_batch_size=4, per_device_train_batch_size=8)
    trainer.reward_funcs[0] = lambda prompts, **kwargs: [float(len(prompts) == 4) for _ in prompts]
    metrics = trainer.evaluate({"six": questions(8).select(range(6)), "four": questions(4)})
    assert metrics["eval_six_accuracy"] == pytest.approx(4 / 6)
    assert metrics["eval_four_accuracy"] == 1
    assert "eval_accuracy" not in metrics


def test_a_fall_in_accuracy_is_told(tmp_path, caplog):
    trainer = make(tmp_path, num_generations_eval=1, per_device_eval_batch_size=8)
    trainer.eval_dataset = questions(8)
    for accuracy, events in ((0.8, {}), (0.76, {}), (0.7, {"accuracy_regression": 1})):
        trainer.p2o.watch_accuracy("eval_easy", {"eval_easy_accuracy": accuracy}, margin=0.05)
        assert trainer.p2o.events == events
    assert "eval_easy_accuracy fell from 0.800 to 0.700" in caplog.text
    trainer.reward_funcs[0] = lambda prompts, **kwargs: [1.0] * len(prompts)
    trainer.evaluate()
    assert trainer.p2o.first_accuracy == {"eval_easy": 0.8, "eval": 1.0}
