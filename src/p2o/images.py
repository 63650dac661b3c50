"""Images in questions: the columns that hold them, the blocks of a chat that show them, and marks in their place.

A row has its images in a column `image` (one, or None) or `images` (a list), as with TRL, which puts them into the chat
as blocks of content. A template is a further block of text in front of them: see [`p2o.templates.apply_template`].
"""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from p2o.templates import Prompt, last_user_message, prompt_of

COLUMNS = ("image", "images")
MARK = "\ufffc"
"""Unicode's object replacement character: stands in a text where the chat shows an image."""


def image_columns(dataset: Any) -> list[str]:
    """Names of the columns with images that a data set has."""
    return [name for name in COLUMNS if name in (getattr(dataset, "column_names", None) or ())]


def images_of(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row; where it has both columns, those of `images`, as with TRL."""
    if "images" in row:
        return list(row["images"] or ())
    return [] if row.get("image") is None else [row["image"]]


def question_prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row, with its images in the blocks that show them.

    Raises:
        ValueError: there are more blocks for images than images, or fewer; or images and a prompt that is no chat.
    """
    prompt, images = prompt_of(row), images_of(row)
    if isinstance(prompt, str) and images:
        raise ValueError("a text. With images prompts are chats: [{'role': 'user', 'content': …}].")
    if not images and (isinstance(prompt, str) or not any(_blocks(prompt))):
        return prompt
    from trl.data_utils import prepare_multimodal_messages  # here: the prompt phase is free of TRL

    return cast(Prompt, prepare_multimodal_messages(cast(Any, prompt), images=images))


def _blocks(prompt: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Blocks of content that show an image."""
    for message in prompt:
        if isinstance(message.get("content"), list):
            yield from (part for part in message["content"] if part.get("type") == "image")


def images_in(prompt: Prompt) -> list[Any]:
    """What the blocks of a chat show, in their order."""
    return [] if isinstance(prompt, str) else [part.get("image") for part in _blocks(prompt)]


def without_images(prompt: Prompt) -> Prompt:
    """The chat without the blocks that show images."""
    if isinstance(prompt, str) or not any(_blocks(prompt)):
        return prompt
    return [
        {**message, "content": [part for part in message["content"] if part.get("type") != "image"]}
        if isinstance(message.get("content"), list)
        else message
        for message in prompt
    ]


def marked_text(prompt: Prompt) -> str | None:
    """The question as text, with a [`MARK`] for each image of the chat, in their order; None for one without images.

    Images of other messages than the question's stand before it or behind it.
    """
    index = last_user_message(prompt)
    if index is None or not images_in(prompt):
        return None
    messages: Any = prompt
    before, behind = (MARK * len(images_in(part)) for part in (messages[:index], messages[index + 1 :]))
    content = messages[index]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    lines = [MARK if part.get("type") == "image" else without_marks(part.get("text") or "") for part in parts]
    return "\n".join(line for line in [before, *lines, behind] if line)


def without_marks(text: str) -> str:
    """The text, in which nothing stands for an image."""
    return text.replace(MARK, "")


def interleaved(text: str, images: Sequence[Any], block: Any) -> list[dict[str, Any]]:
    """Blocks of content: the text, with what `block(image)` makes of each image in the place of its mark."""
    parts = text.split(MARK)
    if len(parts) != len(images) + 1:
        raise ValueError(f"{len(parts) - 1} marks for {len(images)} images")
    blocks: list[dict[str, Any]] = []
    for part, image in zip(parts, [*images, None], strict=True):
        blocks += [{"type": "text", "text": part}] if part else []
        blocks += [block(image)] if image is not None else []
    return blocks


def is_address(path: str) -> bool:
    """Whether it is an address, on the web or of a `data:` URL, and no path of a file."""
    return "://" in path or path.startswith("data:")


def opened(image: Any) -> Any:
    """The image as PIL's: of a path, of what `datasets` stores, or itself; an address as it is.

    Raises:
        OSError: a file that is not there, or is no image.
    """
    if not isinstance(image, str | Mapping) or (isinstance(image, str) and is_address(image)):
        return image
    from PIL import Image as Pillow

    content = image.get("bytes") if isinstance(image, Mapping) else None
    path = image["path"] if isinstance(image, Mapping) else image
    with Pillow.open(Path(path) if content is None else io.BytesIO(content)) as read:
        read.load()
        return read


def data_url(image: Any) -> str:
    """The image as a `data:` URL, in PNG; an address on the web as it is.

    Args:
        image: PIL's, or a path or an address, or as `datasets` stores it.
    """
    if isinstance(image, str) and is_address(image):
        return image
    if isinstance(image, str | Mapping):
        return data_url(opened(image).convert("RGB"))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def image_key(image: Any) -> str:
    """What an image is told apart by: a digest of its bytes or pixels; its path where that is all there is."""
    if isinstance(image, str):
        return image
    content = image.get("bytes") if isinstance(image, Mapping) else image.tobytes()
    return str(image.get("path")) if content is None else hashlib.sha256(content).hexdigest()[:16]


def with_urls(chat: Prompt) -> Any:
    """The chat as OpenAI's API has it: images as `data:` URLs."""
    if isinstance(chat, str) or not images_in(chat):
        return chat
    return [
        {**message, "content": [url_block(b["image"]) if b.get("type") == "image" else b for b in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in chat
    ]


def image_block(image: Any) -> dict[str, Any]:
    """A block of content that shows an image, as processors have it."""
    return {"type": "image", "image": image}


def url_block(image: Any) -> dict[str, Any]:
    """A block of content that shows an image, as OpenAI's API has it."""
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def stored_images(dataset: Any) -> Iterator[dict[str, Any]]:
    """The columns with images, row by row, as they are stored: `{"bytes": …, "path": …}`; nothing is decoded."""
    columns = image_columns(dataset)
    if columns:
        for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=100):
            yield from table.to_pylist()
