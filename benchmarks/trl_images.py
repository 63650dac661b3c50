"""Stand-ins for the vision-language models and the sets with images that TRL's own tests name, see `trl_stand_ins.py`.

Noise as images; models of two layers and random weights, whose images are of sixteen pixels. The chat templates are the
installed TRL's. Those of Qwen take torchvision.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_stand_ins import SIZES, chat_template, tokenizer

SEEN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"patch_size": 4, "temporal_patch_size": 1}
OF_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def save_image_sets(folder: Path, chats: list[Any], *, several: bool) -> None:
    """A configuration of 17 rows and 2, of an image each, or of one to three.

    Args:
        chats: prompts, each of a single message.
    """
    from datasets import Dataset, Image, List

    rows: dict[str, list[Any]] = {"prompt": chats}
    shown = [[_noise(3 * row + place) for place in range(1 + row % 3)] for row in range(len(chats))]
    if several:
        blocks = [[*[{"type": "image", "text": None}] * len(of_row)] for of_row in shown]
        texts = [{"type": "text", "text": chat[0]["content"]} for chat in chats]
        rows["prompt"] = [[{"role": "user", "content": [*b, t]}] for b, t in zip(blocks, texts, strict=True)]
        rows["images"] = shown
    else:
        rows["image"] = [of_row[0] for of_row in shown]
    made = Dataset.from_dict(rows)
    made = made.cast_column("images", List(Image())) if several else made.cast_column("image", Image())
    (folder / "data").mkdir(parents=True)
    for split, part in {"train": range(len(chats) - 2), "test": range(len(chats) - 2, len(chats))}.items():
        made.select(part).to_parquet(str(folder / "data" / f"{split}.parquet"))
    paths = "".join(f"      - {{split: {split}, path: data/{split}.parquet}}\n" for split in ("train", "test"))
    entry = f"  - config_name: conversational_prompt_only\n    data_files:\n{paths}"
    (folder / "README.md").write_text(f"---\nconfigs:\n{entry}---\n")


def _noise(seed: int) -> Any:
    import numpy as np
    from PIL import Image

    shape = (16 + 8 * (seed % 2), 16 + 8 * (seed % 3), 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


def save_vision_model(folder: Path, architecture: str, prepare: Callable[[Any], None]) -> bool:
    """A model with its processor; False where there is no stand-in for its kind, or torchvision is missing.

    Args:
        architecture: as transformers spells it in the names of its classes, such as "Gemma3".
        prepare: changes the weights of a model before it is saved.
    """
    import torch
    import transformers

    kind = KINDS.get(architecture)
    if kind is None:
        return False
    try:
        config, processor = kind(transformers, architecture)
    except ImportError:
        return False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{architecture}ForConditionalGeneration")(config)
        prepare(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return True


def _text(words: Any, **more: Any) -> dict[str, Any]:
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    return {**SIZES, "hidden_size": 16, **ends, "vocab_size": len(words), **more}


def _gemma3(transformers: Any, architecture: str) -> tuple[Any, Any]:
    marks = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    words = tokenizer(None, more=marks, named=dict(zip(("boi_token", "eoi_token", "image_token"), marks, strict=True)))
    begin, close, image = words.convert_tokens_to_ids(list(marks))
    config = transformers.Gemma3Config(
        text_config=_text(words, head_dim=4, query_pre_attn_scalar=4, sliding_window=4096),
        vision_config={**SEEN, "image_size": 16, "patch_size": 4, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=image,
        boi_token_index=begin,
        eoi_token_index=close,
    )
    images = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    template = chat_template("gemma3")
    return config, transformers.Gemma3Processor(images, words, chat_template=template, image_seq_length=4)


def _gemma4(transformers: Any, architecture: str) -> tuple[Any, Any]:
    marks = ("<|image>", "<image|>", "<|image|>", "<|video|>")
    named = dict(zip(("boi_token", "eoi_token", "image_token"), marks[:3], strict=True))
    words = tokenizer(None, more=marks, named=named)
    begin, close, image, video = words.convert_tokens_to_ids(list(marks))
    own = {"head_dim": 4, "global_head_dim": 4, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4096}
    config = transformers.Gemma4Config(
        text_config=_text(words, vocab_size_per_layer_input=len(words), **own, **kinds),
        vision_config={
            **SEEN,
            "head_dim": 8,
            "num_key_value_heads": 2,
            "patch_size": 2,
            "position_embedding_size": 630,
        },
        audio_config=None,
        boi_token_id=begin,
        eoi_token_id=close,
        image_token_id=image,
        video_token_id=video,
    )
    images = transformers.Gemma4ImageProcessorPil(patch_size=2, max_soft_tokens=70)
    videos, sounds = transformers.Gemma4VideoProcessor(patch_size=2), transformers.Gemma4AudioFeatureExtractor()
    template = chat_template("gemma4")
    return config, transformers.Gemma4Processor(sounds, images, words, videos, template, image_seq_length=70)


def _llava_next(transformers: Any, architecture: str) -> tuple[Any, Any]:
    words = tokenizer(None, more=("<image>",))
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    config = transformers.LlavaNextConfig(
        text_config=_text(words, model_type="mistral", sliding_window=None),
        vision_config={**SEEN, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 4},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
    )
    square = {"height": 16, "width": 16}
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=square, image_grid_pinpoints=pinpoints
    )
    reading = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = chat_template("llava_next")
    return config, transformers.LlavaNextProcessor(images, words, chat_template=template, **reading)


def _qwen(transformers: Any, architecture: str) -> tuple[Any, Any]:
    is_3_5 = architecture.startswith("Qwen3_5")
    words = tokenizer(None, is_3_5=is_3_5, more=() if is_3_5 else OF_QWEN)
    ids = dict(zip(OF_QWEN, words.convert_tokens_to_ids(list(OF_QWEN)), strict=True))
    words.image_token, words.video_token = "<|image_pad|>", "<|video_pad|>"
    seen: dict[str, Any] = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, **PATCHES}
    seen |= {"spatial_merge_size": 2, "out_hidden_size": 16}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}
    text = _text(words, rope_parameters=rope)
    if is_3_5:
        heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
        lengths = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
        text |= {"layer_types": ["linear_attention", "full_attention"], **heads, **lengths}
        text["rope_parameters"] = {**rope, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
        text |= (
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if "Moe" in architecture else {}
        )
        text |= {"shared_expert_intermediate_size": 16} if "Moe" in architecture else {}
        seen |= {"num_position_embeddings": 64, "deepstack_visual_indexes": []}
    elif architecture == "Qwen2VL":
        seen |= {"embed_dim": 16, "mlp_ratio": 2}
        seen.pop("intermediate_size")
        seen["hidden_size"] = seen.pop("out_hidden_size")
    else:
        seen |= {"window_size": 16, "fullatt_block_indexes": [1], "spatial_patch_size": 4}
    config = getattr(transformers, f"{architecture}Config")(
        text_config=text,
        vision_config=seen,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    images = transformers.Qwen2VLImageProcessorPil(**PATCHES, merge_size=2, min_pixels=64, max_pixels=1024)
    name = "Qwen3VL" if is_3_5 else "Qwen2_5_VL" if architecture == "Qwen2_5_VL" else "Qwen2VL"
    videos = getattr(transformers, "Qwen3VLVideoProcessor" if is_3_5 else "Qwen2VLVideoProcessor")(
        **PATCHES, merge_size=2
    )
    template = chat_template("qwen3_5_nothink" if is_3_5 else "qwen2_5_vl")
    processor = getattr(transformers, f"{name}Processor")
    return config, processor(images, words, video_processor=videos, chat_template=template)


KINDS: dict[str, Callable[[Any, str], tuple[Any, Any]]] = {
    "Gemma3": _gemma3,
    "Gemma4": _gemma4,
    "LlavaNext": _llava_next,
    "Qwen2VL": _qwen,
    "Qwen2_5_VL": _qwen,
    "Qwen3_5": _qwen,
    "Qwen3_5Moe": _qwen,
}
"""By architecture: configuration and processor."""
