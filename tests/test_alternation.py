"""Policy phases and prompt phases in turn."""

from statistics import fmean

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path
from p2o.prompt_phase.types import Reflection
from p2o.reflection.reference import Reference
from p2o.templates import question_text
from trainers import (
    K,
    alternate,
    assert_same,
    coin,
    contexts_of,
    length_reward,
    load,
    make,
    options,
    questions,
    rows_of,
    watched_batch,
    weights,
)


@pytest.mark.parametrize("plain", [False, True])
def test_hard_questions_are_templated_in_the_next_epoch(tmp_path, plain):
    data = questions(24)
    if plain:
        data = Dataset.from_dict({"prompt": [question_text(p) for p in data["prompt"]], "solution": data["solution"]})
    trainer, events = alternate(tmp_path, data=data, evolution_budget=150)
    ((epoch, result, _),) = events.phases
    assert epoch == 1
    used = set()
    for epoch, rollouts in events.batches:
        for prompt, template, _, _ in rollouts:
            assert template == "" or epoch == 1
            assert "Try way" not in question_text(prompt), "the loss is on the bare question"
            used.add(template)
    assigned = {z for draws in trainer.p2o.assignment.values() for z in draws}
    assert used == {"", *(trainer.p2o.templates[z].text for z in assigned)}
    assert set(trainer.p2o.assignment) == set(result.feedback_ids) | set(result.dev_ids) == set(trainer.p2o.hard_set)
    # Templates that solved a dev question are drawn for it, in proportion to their scores.
    for question in result.dev_ids:
        solving = {i for i, t in enumerate(trainer.p2o.templates) if question in t.solves}
        assert not solving or set(trainer.p2o.assignment[question]) <= solving
    # Bare and templated success of the same questions, side by side.
    logs = trainer.state.log_history
    (phase_logs,) = [record for record in logs if "p2o/dev_success/bare" in record]
    solved = [candidate.dev_solved for candidate in result.candidates]
    assert phase_logs["p2o/dev_success/bare"] == pytest.approx(fmean(solved[0].values()))
    scores = [template.score for template in trainer.p2o.templates]
    rates = [fmean(solved[template.candidate].values()) for template in trainer.p2o.templates]
    drawn = sum(score * rate for score, rate in zip(scores, rates, strict=True)) / sum(scores)
    assert phase_logs["p2o/dev_success/templated"] == pytest.approx(drawn)
    rewards = [[r.reward > 0 for r in batch if r.template] for _, batch in events.batches]
    by_batch = [record["p2o/rollout_success/templated"] for record in logs if record.get("p2o/templated_rollouts")]
    assert by_batch == pytest.approx([fmean(batch) for batch in rewards if batch])
    spent = trainer.p2o.ledger.rollouts
    assert spent["policy"] == 2 * 24 * K
    assert spent["evolution_dev"] + spent["evolution_feedback"] == result.metric_calls
    assert spent["reflection"] == result.reflections > 0


def test_when_nothing_is_solved_the_next_epoch_is_bare_and_training_goes_on(tmp_path, caplog):
    trainer, events = alternate(tmp_path, reward=lambda completions, **kwargs: [0.0] * len(completions))
    assert len(trainer.p2o.hard_set) == 16
    assert trainer.p2o.templates == [] and trainer.p2o.assignment == {}
    assert "No template solved any dev question" in caplog.text
    assert trainer.state.global_step == trainer.state.max_steps
    assert all(not template for _, rollouts in events.batches for _, template, _, _ in rollouts)


def test_templates_collapsed_to_one_are_told(tmp_path, caplog):
    trainer, _ = alternate(tmp_path, reflect=lambda prompts, *, seed: [Reflection("```\nThink.\n```")] * len(prompts))
    assert [t.text for t in trainer.p2o.templates] == ["Think."]
    assert trainer.p2o.events["single_template"] == 1
    assert "A single template is in use in epoch 1: 'Think.'" in caplog.text


def test_a_small_hard_set_skips_the_prompt_phase(tmp_path, caplog):
    trainer, events = alternate(tmp_path, min_hard_questions=17)
    assert events.phases == [(1, None, "too few hard questions")]
    assert "fewer than min_hard_questions=17" in caplog.text
    assert trainer.p2o.ledger.rollouts["evolution_dev"] == 0


def test_bare_rollouts_and_one_template_per_group(tmp_path):
    trainer, _ = alternate(tmp_path, bare_rollouts_per_group=1, same_template_per_group=True)
    assert trainer.p2o.assignment
    for draws in trainer.p2o.assignment.values():
        assert draws[0] is None and len(set(draws[1:])) == 1 and draws[1] is not None


def test_an_unscored_rollout_in_evolution_is_counted_not_fatal(tmp_path):
    def reward(completions, **kwargs):
        return [None if i == 0 else value for i, value in enumerate(coin(completions))]

    trainer, events = alternate(tmp_path, reward=reward)
    # One in each policy batch (16 of them) and one in each batch of evolution.
    assert trainer.p2o.events["unscored_rollouts"] > 16
    assert events.phases[0][1] is not None


@pytest.mark.parametrize("reused", [0, 2])
def test_the_learning_rate_is_scheduled_over_what_the_budget_allows(tmp_path, reused):
    """Not over the million epochs that a budget may end: a share of warm-up ends, and the rate decays."""
    settings = {"max_steps": -1, "num_train_epochs": 10**6, "max_rollouts": 64, "gradient_accumulation_steps": 1}
    settings |= {"prompt_phase": False, "warmup_steps": 0.25, "lr_scheduler_type": "linear", "max_completion_length": 4}
    trainer = make(tmp_path, reused_rollouts_per_group=reused, steps_per_generation=2, **settings)
    trainer.train()
    rates = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    assert trainer.p2o.ledger.total_rollouts == 64 and len(rates) == 7  # the last batch is sampled in step 7
    total = 8 if not reused else 16  # half of each group might be reused ones
    warm = total // 4
    expected = [min(step / warm, (total - step) / (total - warm)) * 1e-3 for step in range(7)]
    assert rates == pytest.approx(expected)


def test_the_rollout_budget_covers_the_prompt_phase(tmp_path):
    trainer, events = alternate(tmp_path, max_rollouts=90, num_train_epochs=9)
    assert events.phases[0][1].metric_calls <= 90 - 64 + 2 * 2 * 3 + 2 * 8
    assert 90 <= trainer.p2o.ledger.total_rollouts <= 90 + 64


@pytest.mark.parametrize(("lora", "beta"), [(False, 0.0), (True, 0.0), (False, 0.04)])
def test_reflection_is_by_the_model_as_it_was_before_training(tmp_path, lora, beta):
    """Self-reflection with the current policy makes templates collapse; the frozen start answers the same for ever."""
    peft = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None
    trainer = P2OTrainer(
        model=load(),
        reward_funcs=length_reward,
        args=P2OConfig(**options(tmp_path, reflection_max_tokens=12, reflection_temperature=0.0, beta=beta)),
        train_dataset=questions(),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        peft_config=peft,
    )
    assert (trainer.reflect.frozen is None) == (lora or beta > 0), (
        "no copy where TRL has one, or the base is the reference"
    )
    before = trainer.reflect(["Improve this."] * 2, seed=0)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and (not lora or "lora" in name):
                parameter.add_(torch.randn_like(parameter))
    assert trainer.reflect(["Improve this."] * 2, seed=0) == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_frozen_reference_takes_memory_only_while_it_is_in_use(tmp_path, dtype):
    model = load()
    kept = Reference(model, Accelerator(cpu=True), tmp_path, dtype=dtype)
    assert not list(tmp_path.iterdir()), "nothing is left to clear away"
    expected = {name: value.to(dtype or value.dtype, copy=True) for name, value in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for _ in range(2):
        assert not sum(parameter.numel() for parameter in kept._model.parameters())
        with kept.on(torch.device("cpu")) as frozen:
            assert_same(dict(frozen.named_parameters()), expected)
            assert_same(dict(frozen.named_buffers()), buffers)  # positions are not what half precision is for
            assert frozen.lm_head.weight is frozen.model.embed_tokens.weight
            assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_frozen_reference_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / ".reference-0.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=f"cannot be written to {tmp_path}: .*reflection_model"):
        make(tmp_path)
    make(tmp_path, reflection_model="policy")


@pytest.mark.parametrize("given", [False, True])
def test_adapters_alternate_like_whole_models(tmp_path, given):
    """Whether TRL makes the adapter or the user does; gradient accumulation and two updates a batch beside."""
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer, events = alternate(
        tmp_path,
        model=get_peft_model(load(), lora) if given else None,
        peft_config=None if given else lora,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        reused_rollouts_per_group=1,
    )
    assert any(template for _, rollouts in events.batches for _, template, _, _ in rollouts)
    base = {f"base_model.model.{name}": value for name, value in load().state_dict().items()}
    moved = 0
    for name, value in weights(trainer).items():
        if "lora" in name:
            moved += bool(value.abs().sum() > 0) if "lora_B" in name else 0  # an adapter's B starts at zero
        else:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name
    assert moved > 0


def test_without_distillation_the_templated_question_is_learnt_on(tmp_path):
    trainer = make(tmp_path, context_distillation=False)
    output, watch = watched_batch(trainer)
    assert [prompt for prompt, _ in rows_of(output)] == contexts_of(trainer, watch.rollouts)
    assert output["advantages"].dim() == 1, "there is one context, so there is nothing to mask"


def test_templates_of_the_last_prompt_phase_go_on_being_assigned(tmp_path):
    trainer, events = alternate(tmp_path, max_prompt_phases=1, num_train_epochs=4, seed=1, data=questions(24))
    assert len(events.phases) == 1
    assert trainer.p2o.templates and trainer.p2o.epoch == 3
    assert set(trainer.p2o.assignment) == set(trainer.p2o.hard_set)
    used = {template for epoch, rollouts in events.batches if epoch == 3 for _, template, _, _ in rollouts} - {""}
    assert used and used <= {template.text for template in trainer.p2o.templates}
