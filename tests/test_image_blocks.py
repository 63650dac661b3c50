"""Templates, marks and rows of pixels, without a model: the pure part of questions with images."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2o.engines.image_inputs import counted, in_context, in_passes, select, with_empty_rows, with_lists
from p2o.images import MARK, images_in, images_of, interleaved, marked_text, question_prompt, without_images
from p2o.prompt_phase.shown_images import UNSEEN, RolloutRecord, ShownImages, told_in_words
from p2o.prompt_phase.traces import PromptLimit
from p2o.prompt_phase.types import Question
from p2o.templates import apply_template, question_text

texts = st.text(st.characters(exclude_characters=MARK, exclude_categories=["Cs"]), min_size=1, max_size=8)
images = st.builds(lambda: SimpleNamespace())  # told apart by identity
blocks = st.lists(
    texts.map(lambda text: {"type": "text", "text": text}) | images.map(lambda i: {"type": "image", "image": i}),
    max_size=5,
)
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant"]),
    blocks | texts,
)
chats = st.builds(
    lambda before, last: [*before, {"role": "user", "content": last}], st.lists(messages, max_size=3), blocks
)


@given(chats, texts.filter(str.strip))
def test_a_template_is_a_block_of_text_in_front_and_images_stay(chat, template):
    before = copy.copy([{**message} for message in chat])
    made = apply_template(chat, template)
    assert chat == before, "the given chat is not modified"
    assert made[:-1] == chat[:-1]
    first, *rest = made[-1]["content"]
    assert first == {"type": "text", "text": template.strip() + "\n\n"} and rest == chat[-1]["content"]
    assert [id(i) for i in images_in(made)] == [id(i) for i in images_in(chat)], "in order, and not copied"


@given(chats, texts.filter(str.strip))
def test_in_the_system_message_images_stay_where_they_are(chat, template):
    made = apply_template(chat, template, "system")
    assert [id(i) for i in images_in(made)] == [id(i) for i in images_in(chat)]
    assert made[0]["role"] == "system" and made[-1] == chat[-1]
    said = made[0]["content"]
    assert (said if isinstance(said, str) else said[-1]["text"]).endswith(template.strip())


@given(chats)
def test_marks_stand_for_all_images_in_their_order(chat):
    shown = images_in(chat)
    marked = marked_text(chat)
    if not shown:
        assert marked is None
        return
    assert marked.count(MARK) == len(shown)
    if images_in(chat[:-1]) == []:
        parts = interleaved(marked, shown, lambda image: {"type": "image", "image": image})
        assert [id(p["image"]) for p in parts if p["type"] == "image"] == [id(i) for i in shown]
    assert images_in(without_images(chat)) == [] and question_text(without_images(chat)) == question_text(chat)
    assert told_in_words(marked).count(UNSEEN) >= len(shown)


@given(st.lists(st.lists(images, max_size=2), min_size=1, max_size=4))
def test_rows_of_a_batch_get_lists_only_where_one_shows_nothing(shown):
    rows = [{"prompt": "?", "image": row[0] if row else None} for row in shown]
    made = with_lists(rows)
    assert [images_of(row) for row in made] == [images_of(row) for row in rows]
    assert ("images" in made[0]) == (not all(shown))


def test_a_prompt_with_its_images():
    chat = [{"role": "user", "content": "What?"}]
    assert question_prompt({"prompt": chat, "image": None}) == chat
    (message,) = question_prompt({"prompt": chat, "images": ["a.png", "b.png"]})
    assert [block.get("image") for block in message["content"]] == ["a.png", "b.png", None]
    placed = [{"role": "user", "content": [{"type": "text", "text": "left"}, {"type": "image"}]}]
    assert images_in(question_prompt({"prompt": placed, "image": "a.png"})) == ["a.png"]
    with pytest.raises(ValueError, match=r"\(0\) does not match number of image placeholders \(1\)"):
        question_prompt({"prompt": placed, "image": None})


def test_reflection_prompts_count_images_and_drop_them_with_their_records():
    records = [RolloutRecord(Question(n, "q", "3", MARK * n + "q" if n else None), f"a{MARK}", "f") for n in range(3)]
    assert "".join(value for record in records for value in record.values()).count(MARK) == 3
    shown = ShownImages.of(records, lambda question: [f"{question}-{place}" for place in range(question)])
    assert shown.of_first(3) == ["1-0", "2-0", "2-1"] and shown.of_first(2) == ["1-0"]
    limit = shown.within(PromptLimit(100, len, lambda image: 10))
    assert limit.count("abc") == 3 and limit.count(f"abc{MARK}{MARK}") == 5 + 20
    assert ShownImages.of(records, lambda question: ()).within(None) is None


# -- rows of pixels ----------------------------------------------------------------------------------------------------


@st.composite
def batches(draw):
    """Rows with images, in one of the layouts: by patch of an image, by image, or by row."""
    counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    rows, images = len(counts), sum(counts)
    layout = draw(st.sampled_from(["patches", "images", "rows"]))
    batch = {"num_images": counts, "mm_token_type_ids": torch.arange(rows).unsqueeze(1).repeat(1, 3)}
    owner = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)], dtype=torch.long)
    if layout == "patches":
        grids = torch.tensor([[1, 1 + i % 2, 2] for i in range(images)], dtype=torch.long).reshape(images, 3)
        batch |= {"image_grid_thw": grids, "pixel_values": owner.repeat_interleave(grids.prod(1)).unsqueeze(1)}
    elif layout == "images":
        batch |= {"pixel_values": owner.reshape(images, 1, 1, 1)}
    else:
        most = max(counts)
        mask = torch.tensor([[place < count for place in range(most)] for count in counts]).reshape(rows, most, 1, 1)
        pixels = torch.arange(rows, dtype=torch.float32).reshape(rows, 1, 1, 1, 1).repeat(1, most, 1, 1, 1)
        batch |= {"pixel_values": pixels, "pixel_attention_mask": mask}
    return layout, counts, counted(batch)


@given(batches(), st.data())
def test_pixels_follow_their_rows(batch, data):
    layout, counts, fields = batch
    rows = data.draw(st.lists(st.sampled_from(range(len(counts))), min_size=1, max_size=4, unique=True))
    part = select(fields, rows)
    assert part["mm_token_type_ids"][:, 0].tolist() == rows
    if not any(counts[row] for row in rows):
        assert part.keys() == {"mm_token_type_ids"}, "empty tensors of pixels are not handed to models"
        return
    if layout == "images":
        assert part["pixel_values"].flatten().tolist() == [row for row in rows for _ in range(counts[row])]
    seen = set(part["pixel_values"].flatten().tolist())
    assert seen <= set(rows) and seen >= {row for row in rows if counts[row]}


@given(batches(), st.integers(1, 3))
def test_passes_are_of_the_same_rows_and_never_of_empty_pixels(batch, size):
    _, counts, fields = batch
    ids = torch.arange(len(counts)).unsqueeze(1)
    passes = []

    def forward(model, ids, mask, *args, batch_size=None, **given):
        step = batch_size or len(ids)
        for start in range(0, len(ids), step):
            passes.append(ids[start : start + step].flatten().tolist())
        if "pixel_values" in given:
            assert len(given["pixel_values"]) > 0
        return ids.float(), None, None

    logps, entropies, auxiliary = in_passes(forward, None, ids, ids, 1, batch_size=size, **fields)
    assert logps.flatten().tolist() == list(range(len(counts))) and entropies is None and auxiliary is None
    assert [row for rows in passes for row in rows] == list(range(len(counts)))


def test_types_of_tokens_behind_another_prompt():
    """7 is the token that stands for a patch; the other prompt is longer, and has its images elsewhere."""
    bare, context = torch.tensor([[0, 7, 7, 4]]), torch.tensor([[0, 5, 5, 7, 7, 4]])
    fields = {"mm_token_type_ids": torch.tensor([[0, 1, 1, 0, 0, 0]]), "pixel_values": "as they are"}
    moved = in_context(fields, bare, context)
    assert moved["mm_token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    assert moved["pixel_values"] == "as they are"


@given(batches(), st.integers(0, 2))
def test_empty_rows_show_nothing(batch, count):
    _, counts, fields = batch
    more = with_empty_rows(fields, count)
    assert len(more["num_images"]) == len(counts) + count and not any(more["num_images"][len(counts) :])
    assert len(more["mm_token_type_ids"]) == len(counts) + count
