"""Templates for all questions, in epochs of any length: what fast-slow training (`fst`) is made of."""

import itertools

import pytest
from trl.trainer.utils import RepeatSampler

from p2o import P2OConfig
from p2o.methods import with_method
from p2o.policy_phase.sampler import EpochSampler
from p2o.prompt_phase.types import Reflection
from p2o.templates import Template, best_template, question_text
from trainers import (
    ALTERNATE,
    K,
    Watch,
    alternate,
    assert_same,
    coin,
    contexts_of,
    make,
    options,
    questions,
    rows_of,
    weights,
)

FST = {
    **ALTERNATE,
    "template_questions": "all",
    "epoch_batches": 2,
    "context_distillation": False,
    "loss_type": "cispo",
    "epsilon_high": 4.0,
    "beta": 0.001,
    "num_train_epochs": 3,
}


def reflect(prompts, *, seed):
    return [Reflection(f"```\nTry way {seed % 89} in {number} steps.\n```") for number, _ in enumerate(prompts)]


def sampler(epoch, batches, questions=7, shuffle=True):
    return EpochSampler(
        RepeatSampler(list(range(questions)), K, batch_size=2, repeat_count=2, shuffle=shuffle, seed=1),
        lambda: epoch,
        batches=batches,
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batches", [1, 2, 3, 4, 7])
def test_epochs_of_some_batches_are_parts_of_one_row_of_passes(batches, shuffle):
    passes = [row for epoch in range(9) for row in sampler(epoch, None, shuffle=shuffle)]
    epochs = [sampler(epoch, batches, shuffle=shuffle) for epoch in range(27 // batches)]
    rows = [list(epoch) for epoch in epochs]
    assert all(len(row) == len(epoch) for row, epoch in zip(rows, epochs, strict=True))
    joined = list(itertools.chain.from_iterable(rows))
    assert joined == passes[: len(joined)] and len(joined) > 0.7 * len(passes)
    for row, epoch in zip(rows, epochs, strict=True):
        assert epoch.coming() == sorted(set(row)) and list(epoch) == row, "looking ahead changes nothing"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return alternate(tmp_path_factory.mktemp("all"), reflect=reflect, save_strategy="steps", save_steps=1, **FST)


def test_all_questions_have_templates_from_the_first_epoch_on(run):
    trainer, events = run
    assert trainer.state.global_step == 6 and [epoch for epoch, *_ in events.phases] == [0, 1, 2]
    numbers = {question_text(prompt): row for row, prompt in enumerate(trainer.train_dataset["prompt"])}
    for epoch, result, _ in events.phases:
        asked = {numbers[question_text(r.prompt)] for e, rs in events.batches if e == epoch for r in rs}
        assert sorted(result.dev_ids + result.feedback_ids) == sorted(asked), "evolved on what the epoch asks"
        if result.selected:
            rollouts = [r for e, rollouts in events.batches if e == epoch for r in rollouts]
            assert all(r.template in {z.text for z in result.selected} for r in rollouts)
    assert any(result.selected for _, result, _ in events.phases)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_resumed_anywhere_it_ends_the_same(run, step):
    trainer, _ = run
    again = make(trainer.args.output_dir, reward=coin, data=questions(16), **FST)
    again.reflect = reflect
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{step}")
    assert_same(weights(trainer), weights(again))
    assert again.p2o.selected == trainer.p2o.selected and again.p2o.ledger == trainer.p2o.ledger


def test_the_loss_is_on_the_templated_question(run):
    trainer, _ = run
    trainer.p2o.templates = [Template("Go from left to right.", 1.0)]
    trainer.p2o.assignment = {q: [0] * K for q in range(16)}
    trainer._sampler.drawn = [3] * K
    trainer._step = trainer._first_pass_of_epoch
    trainer.add_callback(watch := Watch())
    trainer.model.train()
    output = trainer._generate_and_score_completions([dict(trainer.train_dataset[3]) for _ in range(K)])
    assert [prompt for prompt, _ in rows_of(output)] == contexts_of(trainer, watch.rollouts)
    assert "ref_per_token_logps" in output, "the KL term is under the template, too"


def test_the_template_for_unknown_questions_is_of_the_last_selection():
    first, second = Template("a", 0.9, frozenset({1, 2})), Template("b", 0.2, frozenset({3}))
    third, fourth = Template("c", 0.1, frozenset({1, 2})), Template("d", 0.3, frozenset({4, 5}))
    assert best_template({}) is None and best_template({1: []}) is None
    assert best_template({1: [first], 2: [second, third, fourth], 3: []}) == fourth


def test_the_method_sets_what_the_paper_says_and_leaves_the_rest():
    made = with_method({"method": "fst", "bare_rollouts_per_group": 2, "epoch_batches": 3, "learning_rate": 1.0})
    assert made["epoch_batches"] == 3 and made["bare_rollouts_per_group"] == 0 and made["learning_rate"] == 1.0
    assert (made["loss_type"], made["epsilon_high"], made["beta"]) == ("cispo", 4.0, 0.001)
    assert made["min_hard_questions"] == 2, "the default is more than six batches may ask"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch_batches": 2}, "asks other questions than were hard in the last"),
        ({"epoch_batches": 2, "template_questions": "all", "rewrite_share": 0.5}, "leave out rewrite_share"),
        ({"template_questions": "some"}, "choose one of hard, all"),
        ({"epoch_batches": 0, "prompt_phase": False}, "epoch_batches=0"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        P2OConfig(**options(tmp_path, **changes))


def test_plain_grpo_may_have_epochs_of_some_batches(tmp_path):
    trainer = make(tmp_path, prompt_phase=False, epoch_batches=2, num_train_epochs=3, max_steps=-1)
    trainer.add_callback(watch := Watch())
    trainer.train()
    assert trainer.state.global_step == 6 and trainer.p2o.epoch == 2
    asked = [question_text(rollout.prompt) for rollout in watch.rollouts[::K]]
    assert len(set(asked[:12])) == 12, "all questions come before one comes again"
