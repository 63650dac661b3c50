"""Small vision-language models, made at random, in the layouts that pixels have: nothing of them is shipped.

`gemma` and `idefics` process images with Pillow alone; `qwen` needs torchvision.
"""

import numpy as np
import torch
import transformers
from datasets import Dataset
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

KINDS = ["gemma", "idefics", "qwen"]
MARKS = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<image>", "<|begin|>", "<|close|>", "<|video|>", "<|image_pad|>"]
OF_IDEFICS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- 'IMAGE' -}}{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{- '<tool_call>\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) -}}"
    "{{- '\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
SHOWN = {"gemma": "<|begin|>", "idefics": "<image>", "qwen": "<|begin|><|image_pad|><|close|>"}
NARROW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def tokenizer():
    letters = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS + OF_IDEFICS])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "padding_side": "left"}
    extra = {"image_token": "<image>", "boi_token": "<|begin|>", "eoi_token": "<|close|>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names, extra_special_tokens=extra)


def make(kind):
    """A model and its processor."""
    words = tokenizer()
    ids = {mark: words.convert_tokens_to_ids(mark) for mark in MARKS}
    ends = {"pad_token_id": ids["<|pad|>"], "eos_token_id": ids["<|im_end|>"], "bos_token_id": None}
    text = {**NARROW, "vocab_size": len(words), **ends}
    torch.manual_seed(0)
    model, processor = {"gemma": _gemma, "idefics": _idefics, "qwen": _qwen}[kind](words, ids, text)
    with torch.no_grad():  # what it reads is to matter
        for parameter in model.parameters():
            parameter *= 6 if parameter.dim() > 1 else 1
    processor.chat_template = CHAT_TEMPLATE.replace("IMAGE", SHOWN[kind])
    return model.eval(), processor


def _gemma(words, ids, text):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    seen = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**text, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4096},
        vision_config={**seen, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=ids["<image>"],
        boi_token_index=ids["<|begin|>"],
        eoi_token_index=ids["<|close|>"],
    )
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = transformers.Gemma3Processor(image_processor=images, tokenizer=words, image_seq_length=4)
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _idefics(words, ids, text):
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    seen = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Idefics3Config(
        text_config={**text, "model_type": "llama"},
        vision_config={**seen, "image_size": 16, "patch_size": 4},
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=ids["<|pad|>"],
    )
    sizes = {"size": {"longest_edge": 16}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": False}
    images = Idefics3ImageProcessorPil(**sizes)
    processor = transformers.Idefics3Processor(image_processor=images, tokenizer=words, image_seq_len=4)
    return transformers.Idefics3ForConditionalGeneration(config), processor


def _qwen(words, ids, text):
    words.image_token, words.video_token = "<|image_pad|>", "<|video|>"
    patches = {"patch_size": 4, "temporal_patch_size": 1}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    windows = {"window_size": 16, "fullatt_block_indexes": [0], "spatial_patch_size": 4, "spatial_merge_size": 2}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**seen, **patches, **windows},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video|>"],
        vision_start_token_id=ids["<|begin|>"],
        vision_end_token_id=ids["<|close|>"],
        tie_word_embeddings=False,
    )
    images = transformers.Qwen2VLImageProcessor(**patches, merge_size=2, min_pixels=64, max_pixels=1024)
    videos = transformers.Qwen2VLVideoProcessor(**patches, merge_size=2)
    processor = transformers.Qwen2_5_VLProcessor(image_processor=images, tokenizer=words, video_processor=videos)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def picture(seed):
    """Noise, of a width and height that depend on the seed."""
    shape = (16 + 8 * (seed % 3), 16 + 8 * (seed % 2), 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


def questions(counts):
    """A question of as many images as each of these counts says."""
    chats = [[{"role": "user", "content": f"What is {number}?"}] for number in range(len(counts))]
    images = [[picture(10 * row + place) for place in range(count)] for row, count in enumerate(counts)]
    return Dataset.from_dict({"prompt": chats, "images": images, "solution": ["3"] * len(counts)})
