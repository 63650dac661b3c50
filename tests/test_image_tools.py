"""Tools and images together: questions that show images, tools that return text or, in models that TRL supports for it,
images.

What models made at random say is replaced by calls, by turns with what is no call; all else is real.
"""

import random
import zlib

import pytest
import torch
from trl.chat_template_utils import qwen3_template

import vision_model
from p2o import P2OConfig, P2OTrainer
from p2o.completions import conversation_text
from p2o.prompt_phase.types import Reflection
from test_images import LAYOUTS, LOOK, asked
from trainers import ALTERNATE, K, Watch, assert_loss_is, coin, group_advantages, options, rows_of, watched_batch

CALL = '<tool_call>\n{"name": "look", "arguments": {"number": 3}}\n</tool_call>'


def look(number: int) -> str:
    """Looks closer.

    Args:
        number: at which image.

    Returns:
        What is there.
    """
    return "something " * number


def show(number: int) -> list:
    """Looks closer.

    Args:
        number: at which image.

    Returns:
        What is there.
    """
    return [{"type": "image", "image": vision_model.picture(number)}, {"type": "text", "text": "There."}]


show.__name__ = "look"


def calling(model, words):
    """The first completion of every second context is a call, and no other."""
    generate = model.generate

    def called(input_ids, attention_mask, **more):
        wanted = generate(input_ids=input_ids, attention_mask=attention_mask, **more).size(1) - input_ids.size(1)
        said = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            context = words.decode(ids[mask.bool()])
            draw = random.Random(zlib.crc32(context.encode()) + len(said))
            text = "".join(draw.choices("abcdef", k=draw.randint(2, 6)))
            text = CALL if "<|im_start|>tool" not in context and len(said) % 2 else text
            said.append(words(text)["input_ids"][:wanted] + [words.eos_token_id])
        width = max(map(len, said))
        padded = torch.tensor([row + [words.pad_token_id] * (width - len(row)) for row in said])
        return torch.cat([input_ids, padded], dim=1)

    return called


def make(tmp_path, kind, counts, tool=look, reward=None, **changes):
    model, processor = vision_model.make(kind)
    processor.tokenizer.response_template = qwen3_template
    reflect = changes.pop("reflect", None)
    trainer = P2OTrainer(
        model=model,
        reward_funcs=reward or spread,
        args=P2OConfig(**options(tmp_path, **{"max_completion_length": 200, **changes})),
        train_dataset=vision_model.questions(counts),
        processing_class=processor,
        tools=[tool],
        reflect=reflect,
    )
    trainer.model.generate = calling(trainer.model, processor.tokenizer)
    return trainer


def spread(completions, **kwargs):
    return [len(conversation_text(c)) + 0.01 * zlib.crc32(conversation_text(c).encode()) / 2**32 for c in completions]


def logps(trainer, chat, shown, completion):
    """log π(completion | chat) of one row, with these images behind those of the chat."""
    processor = trainer.processing_class
    given = dict(
        processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )
    prompt, answer = given["input_ids"], torch.tensor([completion])
    given["input_ids"] = torch.cat([prompt, answer], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if shown:
        images = [block["image"] for block in chat[-1]["content"] if block["type"] == "image"] + shown
        given |= processor.image_processor(images=images, return_tensors="pt")
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in given or (shown and name == "mm_token_type_ids"):
            types = (given["input_ids"] == trainer.model.config.image_token_id).long()
            types[:, : prompt.size(1)] = given.get(name, types[:, : prompt.size(1)])
            given[name] = types
    said = trainer.model(**given).logits.float().log_softmax(-1)[0, prompt.size(1) - 1 : -1]
    return said[torch.arange(len(completion)), answer[0]], prompt[0].tolist()


def assert_definition(trainer, images_of_tool):
    """Loss and gradient of a batch of two questions: the mask on what the policy wrote, all images in both contexts."""
    low, high = 0.98, 1.02
    output, watch = watched_batch(trainer, [LOOK])
    terms, lengths, masked, returned, advantage = [], [], 0, 0, group_advantages(watch)
    for row, (bare, completion) in enumerate(rows_of(output)):
        question, own = trainer.train_dataset[row // K], output["tool_mask"][row][: len(completion)].float()
        shown = images_of_tool if (own == 0).any() else []
        told, ids = logps(trainer, asked(question), shown, completion)
        assert bare == ids
        factor = own.clone()
        if watch.rollouts[row].template:
            with torch.no_grad():
                under, _ = logps(trainer, asked(question, watch.rollouts[row].template), shown, completion)
            ratio = (told.detach() - under).exp()
            outside = (ratio < low) | (ratio > high)
            masked += int((outside * own).sum())
            factor = factor * ~outside
        returned += int((1 - own).sum())
        terms.append(-(told - told.detach()).exp() * factor * advantage[row])
        lengths.append(int(own.sum()))
    assert masked > 0 and returned > 0, "calls and masked tokens there must be for the test to mean anything"
    assert_loss_is(trainer, output, terms, lengths)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_loss_and_gradient_equal_the_definition(tmp_path, kind):
    """One question of the two shows no image, or both show some."""
    counts = [1, 0] if kind == "idefics" else [2, 1]
    trainer = make(tmp_path, kind, counts, context_ratio_min=0.98, context_ratio_max=1.02)
    assert_definition(trainer, [])


QWEN = [layout for layout in LAYOUTS if "qwen" in layout.values]
GEMMA_AND_QWEN = [layout for layout in LAYOUTS if "idefics" not in layout.values]


@pytest.mark.parametrize("kind", QWEN)
@pytest.mark.parametrize("counts", [[2, 1], [1, 0]])
def test_of_a_tool_that_returns_images_as_well(tmp_path, kind, counts):
    trainer = make(tmp_path, kind, counts, show, context_ratio_min=0.98, context_ratio_max=1.02)
    assert_definition(trainer, [vision_model.picture(3)])


@pytest.mark.parametrize("kind", GEMMA_AND_QWEN)
def test_both_phases(tmp_path, kind):
    """Rollouts of a prompt phase are conversations, too, with images and calls."""
    told = []

    def reflect(prompts, *, seed, images=()):
        told.extend(prompts)
        return [Reflection(f"```\nTry way {seed % 97 + n}.\n```") for n in range(len(prompts))]

    reflect.sees_images = True

    def reward(completions, **kwargs):
        return coin(completions) if trainer.p2o.epoch else [0.0] * len(completions)

    changes = {**ALTERNATE, "max_completion_length": 200, "evolution_budget": 40, "per_device_train_batch_size": 16}
    trainer = make(tmp_path, kind, [1, 2, 0, 1, 1, 0, 2, 1], reward=reward, reflect=reflect, **changes)
    trainer.add_callback(watch := Watch())
    trainer.train()
    ((_, result, reason),) = watch.phases
    assert reason is None and result.metric_calls > 0
    templated = [rollout for rollout in watch.rollouts if rollout.template]
    assert templated and any(len(rollout.completion) > 1 for rollout in templated)
    assert any("[calls look]" in text and "[look returned] something" in text for text in told)
