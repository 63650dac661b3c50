"""P2OTrainer against TRL's GRPOTrainer and against the definition written out."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path
from p2o.policy_phase.context_distillation import ROLLOUT_LOGPS, TEMPLATED
from p2o.templates import question_text
from trainers import (
    LOSSES,
    TEMPLATE,
    K,
    answer_in_trls_place,
    assert_loss_is,
    assert_same,
    bare_tokens,
    brute_force_logps,
    contexts_of,
    generation_batch,
    group_advantages,
    length_reward,
    load,
    logged,
    make,
    options,
    questions,
    rows_of,
    watched_batch,
    weights,
)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_without_templates_it_is_grpo_bit_for_bit(tmp_path, loss_type):
    changes = {"loss_type": loss_type}
    if loss_type in ("grpo", "luspo"):
        changes["steps_per_generation"] = 2
    grpo = make(tmp_path / "a", GRPOTrainer, GRPOConfig, **changes)
    grpo.train()
    p2o = make(tmp_path / "b", min_hard_questions=2, skip_zero_advantages=False, **changes)
    p2o.train()
    assert_same(weights(grpo), weights(p2o))


def test_plain_text_prompts_are_grpo_too(tmp_path):
    data = Dataset.from_dict({"prompt": [question_text(p) for p in questions()["prompt"]]})
    grpo = make(tmp_path / "a", GRPOTrainer, GRPOConfig, data=data)
    grpo.train()
    p2o = make(tmp_path / "b", data=data, skip_zero_advantages=False)
    p2o.train()
    assert_same(weights(grpo), weights(p2o))


def test_rollouts_are_sampled_under_the_template_and_learnt_on_the_bare_question(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    asked, generate = [], GRPOTrainer._generate_single_turn
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *args: asked.extend(args[1]) or generate(*args))
    output, watch = watched_batch(trainer)
    assert [template for _, template, *_ in watch.rollouts] == ["", *[TEMPLATE.text] * 3, *[""] * 4]
    assert asked == contexts_of(trainer, watch.rollouts)
    for (prompt, _), question in zip(rows_of(output), [0] * K + [1] * K, strict=True):
        assert prompt == bare_tokens(trainer, question)
    for row, context in enumerate(asked):
        assert (TEMPLATE.text in trainer.processing_class.decode(context)) == (1 <= row < K)


@pytest.mark.parametrize("mode", ["hard", "soft", "off"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_equal_the_definition(tmp_path, loss_type, mode):
    """Ten lines of reference: π_θ(y|x) in the loss, the mask on every token's term, denominators as they were."""
    low, high = 0.6, 1.4  # narrow, so that the mask bites
    trainer = make(
        tmp_path,
        loss_type=loss_type,
        context_mask=mode,
        context_ratio_min=low,
        context_ratio_max=high,
        importance_sampling_level="sequence" if loss_type == "luspo" else "token",
    )
    output, watch = watched_batch(trainer)
    model, contexts = trainer.model, contexts_of(trainer, watch.rollouts)
    advantage = group_advantages(watch)

    terms, lengths, masked = [], [], 0
    for row, (prompt, completion) in enumerate(rows_of(output)):
        logps = brute_force_logps(model, prompt, completion)
        factor = torch.ones(len(completion))
        if watch.rollouts[row].template:
            with torch.no_grad():
                ratio = (logps - brute_force_logps(model, contexts[row], completion)).exp()
            outside = (ratio < low) | (ratio > high)
            masked += int(outside.sum())
            if mode == "hard":
                factor = (~outside).float()
            elif mode == "soft":
                factor = torch.where(outside, ratio.clamp(low, high) / ratio, 1.0).clamp(max=max(high, 1.0))
        on_policy = (logps - logps.detach()).exp()  # 1, with the gradient of the policy ratio
        if loss_type in ("cispo", "vespo"):
            # Both weigh log-probabilities by a constant: min(1, ε_high) = ε_high here, and φ(1) = 1.
            term = -min(1.0, trainer.epsilon_high if loss_type == "cispo" else 1.0) * factor * advantage[row] * logps
        elif loss_type == "sapo":
            signed = factor * advantage[row]
            t = torch.where(signed > 0, trainer.args.sapo_temperature_pos, trainer.args.sapo_temperature_neg)
            term = -torch.sigmoid(t * (on_policy - 1)) * 4 / t * signed
        elif loss_type == "luspo":
            term = -((logps - logps.detach()).mean().exp()) * factor * advantage[row]
        else:
            term = -on_policy * factor * advantage[row]
        terms.append(term)
        lengths.append(len(completion))
    assert masked > 0, "the range must bite for the test to mean anything"
    assert_loss_is(trainer, output, terms, lengths)


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_every_token_is_counted_by_what_it_was_for(tmp_path, mask_truncated):
    trainer = make(tmp_path, mask_truncated_completions=mask_truncated, max_completion_length=10)
    lengths = []
    trainer.reward_funcs[0] = lambda completion_ids, **kwargs: [
        float(lengths.append(len(ids)) or i) for i, ids in enumerate(completion_ids)
    ]
    output, watch = watched_batch(trainer)
    assert 10 in lengths and min(lengths) < 10, "some are truncated, some are not"
    ledger, read = trainer.p2o.ledger, sum(map(len, contexts_of(trainer, watch.rollouts)))
    assert ledger.rollouts["policy"] == 8
    assert ledger.prompt_tokens["policy"] == read > int(output["prompt_mask"].sum())
    assert ledger.completion_tokens["policy"] == sum(lengths)
    assert ledger.forward_tokens == 0, "the context ratio takes no pass of its own"
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    assert ledger.forward_backward_tokens == output["prompt_mask"].sum().item() + output["completion_mask"].sum().item()


def test_mask_statistics_reach_the_metrics(tmp_path):
    trainer = make(tmp_path, context_ratio_min=0.6, context_ratio_max=1.0001, **LONGER)
    output, watch = watched_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, output)
    metrics, contexts = logged(trainer), contexts_of(trainer, watch.rollouts)
    assert metrics["p2o/templated_rollouts"] == 3 / 8
    below = above = tokens = 0
    shifts: dict[str, list[float]] = {"head": [], "tail": []}
    for row, (prompt, completion) in enumerate(rows_of(output)):
        if watch.rollouts[row].template:
            bare = brute_force_logps(trainer.model, prompt, completion)
            ratio = (bare - brute_force_logps(trainer.model, contexts[row], completion)).exp()
            below, above = below + int((ratio < 0.6).sum()), above + int((ratio > 1.0001).sum())
            tokens += len(completion)
            quarter = -(-len(completion) // 4)
            shifts["head"] += ratio[:quarter].log().tolist()
            shifts["tail"] += ratio[-quarter:].log().tolist()
    for part, values in shifts.items():
        assert metrics[f"p2o/shift/{part}"] == pytest.approx(sum(values) / len(values), rel=1e-4) != 0.0
    assert metrics["p2o/context_ratio/below"] == pytest.approx(below / tokens)
    assert metrics["p2o/context_ratio/above"] == pytest.approx(above / tokens) != 0.0


def assert_sampled(trainer, output, contexts):
    """The log-probabilities of the templated rows are those of what was sampled, at the temperature of sampling."""
    lengths = set()
    for row, (_, completion) in enumerate(rows_of(output)):
        if not output[TEMPLATED][row]:
            continue
        ids = torch.tensor([contexts[row] + completion])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, -len(completion) - 1 : -1] / trainer.temperature
        expected = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(output[ROLLOUT_LOGPS][row][: len(completion)], expected, atol=1e-4, rtol=1e-4)
        lengths.add(len(completion))
    return lengths


LONGER = {"max_completion_length": 64}
SHAPED = {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.05, "max_completion_length": 48}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("changes", [LONGER, SHAPED, {**LONGER, "generation_kwargs": {"use_cache": False}}])
def test_log_probabilities_are_taken_while_sampling(tmp_path, changes, adapter):
    trainer = make(tmp_path, **changes)
    if adapter:
        trainer = P2OTrainer(
            model=load(),
            reward_funcs=length_reward,
            args=P2OConfig(**options(tmp_path, **changes)),
            train_dataset=questions(),
            processing_class=AutoTokenizer.from_pretrained(model_path()),
            peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        )
    output, watch = watched_batch(trainer, assign={0: [0] * K, 1: [None, 0, 0, 0]})
    contexts = contexts_of(trainer, watch.rollouts)
    assert len(assert_sampled(trainer, output, contexts)) > 1, "some have ended before others"
    assert trainer.p2o.ledger.forward_tokens == 0


@pytest.mark.parametrize("rollout_func", [None, answer_in_trls_place])
def test_log_probabilities_that_were_not_recorded_take_a_pass(tmp_path, rollout_func):
    changes = {} if rollout_func else {"generation_kwargs": {"prefill_chunk_size": 16}}
    trainer = make(tmp_path, rollout_func=rollout_func, **changes)
    output, watch = watched_batch(trainer)
    contexts = contexts_of(trainer, watch.rollouts)
    assert_sampled(trainer, output, contexts)
    templated = sum(map(len, contexts[1:K])) + int(output["completion_mask"][1:K].sum())
    assert trainer.p2o.ledger.forward_tokens == templated


def test_old_logprobs_under_the_rollout_context(tmp_path):
    trainer = make(tmp_path, old_logprobs_context="rollout")
    output, watch = watched_batch(trainer)
    contexts = contexts_of(trainer, watch.rollouts)
    for row, (_, completion) in enumerate(rows_of(output)):
        with torch.no_grad():
            expected = brute_force_logps(trainer.model, contexts[row], completion)
        actual = output["old_per_token_logps"][row][: len(completion)]
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_failed_templated_rollouts_can_be_dropped(tmp_path):
    def alternating(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    trainer = make(tmp_path, reward=alternating, drop_failed_templated=True, context_mask="off")
    advantages = generation_batch(trainer)["advantages"]
    assert (advantages[2] == 0).all(), "templated and failed"
    assert (advantages[1] > 0).all() and (advantages[3] > 0).all(), "templated and successful"
    assert (advantages[0] < 0).all() and (advantages[4] < 0).all(), "bare ones stay, failed or not"
