"""Questions with images: the instruction is a block of text before them, the images stay, and the loss is on the bare
question with its pixels.

Without torchvision `qwen` is skipped, whose processor needs it: requirements-vision.txt has how to install it, in an
environment of its own. `pytest tests/test_images.py tests/test_image_phases.py` then runs all there. The other layouts
of pixels are tested everywhere.
"""

import importlib.util

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

import vision_model
from p2o import P2OConfig, P2OTrainer
from p2o.templates import Template
from trainers import (
    K,
    assert_loss_is,
    assert_same,
    group_advantages,
    length_reward,
    options,
    rows_of,
    watched_batch,
    weights,
)

LOOK = Template("Look at every corner first.", 1.0, frozenset())
LAYOUTS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            kind == "qwen" and importlib.util.find_spec("torchvision") is None,
            reason="the processor of Qwen-VL needs torchvision: see requirements-vision.txt",
        ),
    )
    for kind in vision_model.KINDS
]


def make(tmp_path, kind, counts, trainer=P2OTrainer, config=P2OConfig, reward=length_reward, data=None, **changes):
    own = {name: changes.pop(name) for name in ("reflect", "rollout_func", "feedback_func") if name in changes}
    model, processor = vision_model.make(kind)
    if changes.get("beta"):  # the reference model is read from where the model is
        model.save_pretrained(tmp_path / "model")
        model = type(model).from_pretrained(tmp_path / "model")
    return trainer(
        model=model,
        reward_funcs=reward,
        args=config(**options(tmp_path, **changes)),
        train_dataset=vision_model.questions(counts) if data is None else data,
        processing_class=processor,
        **own,
    )


def asked(row, template=""):
    """The chat of a row, as the data has it, by hand."""
    blocks = [{"type": "image", "image": image} for image in row["images"]]
    text = [{"type": "text", "text": f"{template}\n\n"}] if template else []
    return [{"role": "user", "content": [*text, *blocks, {"type": "text", "text": row["prompt"][0]["content"]}]}]


def logps(trainer, chat, completion):
    """log π(completion | chat), of one row without padding, by the processor's own inputs; and tokens of the chat."""
    given = dict(
        trainer.processing_class.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )
    prompt = given["input_ids"]
    answer = torch.tensor([completion])
    for name, more in (("input_ids", answer), ("attention_mask", torch.ones_like(answer))):
        given[name] = torch.cat([given[name], more], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in given:
            given[name] = torch.cat([given[name], torch.zeros_like(answer)], dim=1)
    said = trainer.model(**given).logits.float().log_softmax(-1)[0, prompt.size(1) - 1 : -1]
    return said[torch.arange(len(completion)), answer[0]], prompt[0].tolist()


def terms_of(trainer, output, watch, low, high):
    """What the loss of a batch is of, its first question under a template in rollouts 1 to 3."""
    terms, lengths, masked, advantage = [], [], 0, group_advantages(watch)
    for row, (bare, completion) in enumerate(rows_of(output)):
        question = trainer.train_dataset[row // K]
        own, ids = logps(trainer, asked(question), completion)
        assert bare == ids
        factor = torch.ones(len(completion))
        if watch.rollouts[row].template:
            with torch.no_grad():
                under, _ = logps(trainer, asked(question, watch.rollouts[row].template), completion)
            ratio = (own.detach() - under).exp()
            factor = ((ratio >= low) & (ratio <= high)).float()
            masked += int((1 - factor).sum())
        terms.append(-(own - own.detach()).exp() * factor * advantage[row])
        lengths.append(len(completion))
    return terms, lengths, masked


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("columns", ["image", "images"])
def test_without_templates_it_is_grpo_bit_for_bit(tmp_path, kind, columns):
    trained = {}
    data = vision_model.questions([1] * 4 if columns == "image" else [1, 2, 1, 3])
    if columns == "image":
        data = data.map(lambda row: {"image": row["images"][0]}, remove_columns="images")
    for name, trainer, config in (("grpo", GRPOTrainer, GRPOConfig), ("p2o", P2OTrainer, P2OConfig)):
        changes = {"skip_zero_advantages": False} if name == "p2o" else {}
        made = make(tmp_path / name, kind, [], trainer, config, data=data, **changes)
        made.train()
        trained[name] = weights(made)
    assert_same(trained["grpo"], trained["p2o"])


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("counts", [[2, 1], [1, 0], [0, 2]])
def test_loss_and_gradient_equal_the_definition(tmp_path, kind, counts):
    """Questions of several images and of none, in one batch: π_θ(y|x) with the pixels of x, the mask by T(x, z)."""
    low, high = 0.98, 1.02
    changes = {"context_ratio_min": low, "context_ratio_max": high, "max_completion_length": 12}
    trainer = make(tmp_path, kind, counts, **changes)
    output, watch = watched_batch(trainer, [LOOK])
    assert [bool(rollout.template) for rollout in watch.rollouts] == [False, True, True, True] + [False] * 4
    terms, lengths, masked = terms_of(trainer, output, watch, low, high)
    assert masked > 0, "masked tokens there must be for the test to mean anything"
    assert_loss_is(trainer, output, terms, lengths)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_without_advantage_are_left_out_with_their_pixels(tmp_path, kind):
    """A group of either kind of question is without variance: the loss is the definition's all the same."""

    def flat_for(count):
        def flat(completions, images, **kwargs):
            return [0.0 if len(i) == count else r for i, r in zip(images, length_reward(completions), strict=True)]

        return flat

    for dull in (2, 1):
        trainer = make(tmp_path, kind, [2, 1], reward=flat_for(dull), max_completion_length=8, context_mask="off")
        output, watch = watched_batch(trainer, [LOOK])
        trainer.model.train()
        terms, lengths, _ = terms_of(trainer, output, watch, 0, float("inf"))
        assert_loss_is(trainer, output, terms, lengths)
        assert trainer._metrics["train"]["p2o/skipped_rollouts"][-1] == 0.5


@pytest.mark.parametrize("kind", LAYOUTS)
def test_it_trains_in_small_batches_with_a_reference_model_and_a_checkpoint_in_between(tmp_path, kind):
    """Rows are shuffled into batches of which some show no image; a run resumed from within equals one that was not."""
    counts = [1, 0, 2, 0, 1, 0, 0, 3]
    changes = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "beta": 0.1,
        "prompt_phase": False,
    }
    whole = make(tmp_path / "whole", kind, counts, **changes, max_steps=6)
    whole.train()
    first = make(tmp_path / "cut", kind, counts, **changes, max_steps=6, save_strategy="steps", save_steps=3)
    first.train()
    again = make(tmp_path / "cut", kind, counts, **changes, max_steps=6, save_strategy="steps", save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert_same(weights(whole), weights(again))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_rollout_func_without_log_probabilities(tmp_path, kind):
    """It is given the images; what the ratio needs comes from passes that read them behind T(x, z)."""
    seen = []

    def rollout(prompts, trainer):
        seen.extend(prompts)
        ids, images, fields = trainer._tokenize_prompts(prompts)
        completions, _ = GRPOTrainer._generate_single_turn(trainer, ids, images, fields, 1)
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    low, high = 0.98, 1.02
    changes = {"context_ratio_min": low, "context_ratio_max": high, "max_completion_length": 8}
    trainer = make(tmp_path, kind, [2, 1], rollout_func=rollout, **changes)
    output, watch = watched_batch(trainer, [LOOK])
    blocks = seen[1][0]["content"]
    assert [block["type"] for block in blocks] == ["text", "image", "image", "text"]
    assert blocks[0]["text"] == f"{LOOK.text}\n\n"
    terms, lengths, masked = terms_of(trainer, output, watch, low, high)
    assert masked > 0
    assert_loss_is(trainer, output, terms, lengths)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_evaluation_reads_the_images(tmp_path, kind):
    """The last batch is filled up with a repeated question."""
    given = {}

    def watched(completions, prompts, images, **kwargs):
        for prompt, shown in zip(prompts, images, strict=True):
            given[prompt[-1]["content"][-1]["text"]] = len(shown)
        return length_reward(completions)

    changes = {"num_generations_eval": 2, "per_device_eval_batch_size": 4, "max_completion_length": 6}
    trainer = make(tmp_path, kind, [1, 1], reward=watched, **changes)
    metrics = trainer.evaluate(vision_model.questions([1, 2, 1]))
    assert 0 < metrics["eval_reward"] < 20
    assert given == {"What is 0?": 1, "What is 1?": 2, "What is 2?": 1}
