"""Prompt phases over questions with images: rollouts see them, a model that can sees them when it reflects, and what is
written down refers to rows."""

import base64
import io
import json
import re
import zlib

import pytest
from datasets import Dataset
from PIL import Image

import vision_model
from endpoints import TEXT, reflection, serve, well
from p2o import P2OCallback, P2OConfig, P2OTrainer, image_checks
from p2o.engines import seeing
from p2o.images import MARK
from p2o.prompt_phase.shown_images import UNSEEN
from p2o.prompt_phase.types import Reflection
from test_images import LAYOUTS, make
from trainers import ALTERNATE, Watch, assert_same, coin, options, weights

COUNTS = [1, 2, 0, 1, 1, 0, 2, 1]
CHANGES = {**ALTERNATE, "evolution_budget": 40, "per_device_train_batch_size": 16, "max_completion_length": 4}


def proposing(sees, asked):
    """A reflection model as a function, and what it was asked."""

    def reflect(prompts, *, seed, images=None):
        assert sees == (images is not None) or not any(MARK in prompt for prompt in prompts)
        asked.extend(zip(prompts, images or [None] * len(prompts), strict=True))
        return [Reflection(f"```\nTry way {len(asked) + n}.\n```") for n in range(len(prompts))]

    reflect.sees_images = sees
    return reflect


class Luck(P2OCallback):
    """Wrong until the prompt phase, then right by chance; sees that images come with the blocks that show them."""

    lucky = False

    def on_prompt_phase_begin(self, *args, **kwargs):
        self.lucky = True

    def reward(self, completions, images, prompts, **kwargs):
        for prompt, shown in zip(prompts, images, strict=True):
            blocks = [] if isinstance(prompt[-1]["content"], str) else prompt[-1]["content"]
            assert sum(block["type"] == "image" for block in blocks) == len(shown or [])
        said = [completion[-1]["content"].encode() for completion in completions]
        return [float(self.lucky and zlib.crc32(text) % 2) for text in said]


def alternating(tmp_path, kind="gemma", **changes):
    luck, watch = Luck(), Watch()
    trainer = make(tmp_path, kind, COUNTS, reward=luck.reward, **{**CHANGES, **changes})
    trainer.add_callback(watch)
    trainer.add_callback(luck)
    return trainer, watch


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("sees", [True, False])
def test_both_phases(tmp_path, kind, sees):
    asked = []
    trainer, watch = alternating(tmp_path, kind, reflect=proposing(sees, asked))
    trainer.train()
    ((_, result, reason),) = watch.phases
    assert reason is None and result.metric_calls > 0 and asked
    in_use = {rollout.template for rollout in watch.rollouts if rollout.template}
    assert in_use, "templates must be in use for the test to mean anything"
    for prompt, images in asked:
        marks = [int(n) for n in re.findall(r"What is (\d+)\?", prompt)]
        expected = [COUNTS[number] for number in marks]
        if sees:
            assert prompt.count(MARK) == len(images or []) == sum(expected) and UNSEEN not in prompt
            wanted = [vision_model.picture(10 * n + place) for n in marks for place in range(COUNTS[n])]
            assert [list(i.getdata()) for i in images or []] == [list(i.getdata()) for i in wanted]
        else:
            assert prompt.count(UNSEEN) == sum(expected) and MARK not in prompt and images is None
    for path in tmp_path.rglob("*.json*"):
        assert "base64" not in path.read_text() and path.stat().st_size < 200_000


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_model_in_training_sees_them_when_it_reflects(tmp_path, kind, monkeypatch):
    """As it was before training, and as it is; `generate` is handed pixels beside the tokens that stand for them."""
    given = []
    sample = seeing.sample_batch

    def watched(model, tokenizer, prompts, sampling, **seen):
        shown = sum(model.config.image_token_id in ids for ids in prompts)
        given.append((shown, seen.get("pixel_values")))
        return sample(model, tokenizer, prompts, sampling, **seen)

    monkeypatch.setattr(seeing, "sample_batch", watched)
    for who in ("reference", "policy"):
        trainer, watch = alternating(tmp_path / who, kind, reflection_model=who, reflection_max_tokens=4)
        trainer.train()
        ((_, result, _),) = watch.phases
        assert result.spent.rollouts["reflection"] > 0 and result.ended_early is None
        assert trainer.reflect.sees_images
    assert any(shown for shown, _ in given)
    assert all((pixels is not None and len(pixels) > 0) == bool(shown) for shown, pixels in given)


def test_an_interrupted_phase_goes_on_with_the_images_of_its_rows(tmp_path):
    """The journal has texts only; what it lacks is sampled again from the rows that it names."""

    class Killed(Exception):
        pass

    def killing(calls):
        def reflect(prompts, *, seed, images=()):
            calls.append(len(prompts))
            if len(calls) == 1:
                raise Killed
            return [Reflection(f"```\nTry way {seed % 1000 + n}.\n```") for n in range(len(prompts))]

        reflect.sees_images = True
        return reflect

    changes = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    calm = killing([0])
    whole, _ = alternating(tmp_path / "whole", reflect=calm, **changes)
    whole.train()
    cut, _ = alternating(tmp_path / "cut", reflect=killing([]), **changes)
    with pytest.raises(Killed):
        cut.train()
    (journal,) = (tmp_path / "cut").rglob("journal.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(records) > 2 and journal.stat().st_size < 100_000
    again, _ = alternating(tmp_path / "cut", reflect=calm, **changes)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(whole), weights(again))


def test_an_endpoint_is_sent_the_images_if_its_model_sees_them(no_keys):
    images = [vision_model.picture(1), vision_model.picture(2)]
    with serve(well) as server:
        reflect = reflection(server, sees_images=True)
        answers = reflect([f"first {MARK} then {MARK}.", "nothing here"], seed=0, images=[images, []])
        assert [answer.text for answer in answers] == [TEXT, TEXT]
        contents = [request["messages"][0]["content"] for request in server.requests]
    (blocks,) = [content for content in contents if not isinstance(content, str)]
    assert "nothing here" in contents
    assert [block["type"] for block in blocks] == ["text", "image_url", "text", "image_url", "text"]
    assert [block.get("text") for block in blocks] == ["first ", None, " then ", None, "."]
    for block, image in zip(blocks[1::2], images, strict=True):
        scheme, _, content = block["image_url"]["url"].partition("base64,")
        assert scheme == "data:image/png;"
        assert list(Image.open(io.BytesIO(base64.b64decode(content))).getdata()) == list(image.getdata())


def test_the_option_is_about_an_endpoint(tmp_path, no_keys):
    with pytest.raises(ValueError, match="reflection_sees_images is about an endpoint"):
        P2OConfig(**options(tmp_path, reflection_sees_images=True))
    settings = {"reflection_model": "openai/x", "reflection_base_url": "http://127.0.0.1:9/v1"}
    for sees in (True, False):
        trainer = make(tmp_path, "gemma", [1] * 4, **settings, reflection_sees_images=sees)
        assert trainer.reflect.sees_images == sees


# -- what is refused before training ---------------------------------------------------------------------------------


def rows(**columns):
    chat = [{"role": "user", "content": "What is this?"}]
    return Dataset.from_dict({"prompt": [chat] * 4, "solution": ["3"] * 4, **columns})


def with_blocks(count):
    blocks = [*[{"type": "image"}] * count, {"type": "text", "text": "What is this?"}]
    return [[{"role": "user", "content": blocks}]] * 4


BAD = {
    "a missing file": (
        lambda: rows(image=["/nowhere/cat.png"] * 4),
        {},
        "row 0, field `image`: there is no file /nowh",
    ),
    "missing files": (lambda: rows(images=[["/nowhere/cat.png"]] * 4), {}, "row 0, field `images`: there is no file"),
    "too few images": (
        lambda: rows(prompt=with_blocks(2), images=[[vision_model.picture(0)]] * 4),
        {},
        r"row 0, field `prompt`: Number of images provided \(1\) does not match number of image placeholders \(2\)",
    ),
    "no blocks for images": (
        lambda: rows(prompt=with_blocks(0), images=[[vision_model.picture(0)]] * 4),
        {},
        r"row 0, field `prompt`: .*\(1\).*\(0\)",
    ),
    "texts": (
        lambda: rows(prompt=["What?"] * 4, image=[vision_model.picture(0)] * 4),
        {},
        "With images prompts are ch",
    ),
    "reuse": (lambda: vision_model.questions([1] * 4), {"reused_rollouts_per_group": 1}, "reused_rollouts_per_group"),
    "rewrites": (lambda: vision_model.questions([1] * 4), {"rewrite_share": 0.5}, "rewrite_share"),
    "resampling": (lambda: vision_model.questions([1] * 4), {"dynamic_sampling_rounds": 1}, "dynamic_sampling_rounds"),
    "no distillation": (
        lambda: vision_model.questions([1] * 4),
        {"context_distillation": False},
        "context_distillation=False",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tmp_path, case):
    data, changes, message = BAD[case]
    with pytest.raises(ValueError, match=f"train_dataset.*{message}"):
        make(tmp_path, "gemma", [], data=data(), **changes)


def test_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"no picture at all")
    with pytest.raises(ValueError, match=r"train_dataset row 0, field `image`.*cannot identify image file"):
        make(tmp_path, "gemma", [], data=rows(image=[str(tmp_path / "cat.png")] * 4))


def test_paths_of_images_are_read(tmp_path):
    vision_model.picture(3).save(tmp_path / "cat.png")
    trainer = make(tmp_path, "gemma", [], data=rows(image=[str(tmp_path / "cat.png")] * 4), max_steps=1)
    trainer.train()


def test_a_model_of_texts(tmp_path):
    from trainers import make as make_text

    with pytest.raises(ValueError, match="the model reads texts only"):
        make_text(tmp_path, data=vision_model.questions([1] * 4))
    with pytest.raises(ValueError, match=r"eval_dataset has images .*the model reads texts only"):
        make_text(tmp_path, eval_dataset=vision_model.questions([1] * 4))


def test_environments_and_images(tmp_path):
    class Empty:
        def reset(self, **row):
            return None

    model, processor = vision_model.make("gemma")
    with pytest.raises(ValueError, match="train_dataset has images, which environments does not go together with"):
        P2OTrainer(
            model,
            coin,
            P2OConfig(**options(tmp_path)),
            vision_model.questions([1] * 4),
            processing_class=processor,
            environment_factory=Empty,
        )


def test_sharded_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(image_checks, "is_sharded", lambda accelerator: True)
    with pytest.raises(ValueError, match=r"images \(column 'images'\), and the weights are sharded"):
        make(tmp_path, "gemma", [1] * 4)
