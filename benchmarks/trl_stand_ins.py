"""Stand-ins for the hub models and sets that TRL's own tests name: folders of the same names, which win over the hub.

Nothing in them is TRL's: random weights, a tokenizer of bytes, the lines that `import this` prints. What a stand-in has
to agree with is read at run time: the chat templates from the installed TRL, the prompts that a test expects from that
test.
"""

import codecs
import contextlib
import io
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

ORGANIZATION = "trl-internal-testing"
NAMES = re.compile(rf"{ORGANIZATION}/[\w.-]+")

# Tests spell out ids of Qwen's vocabulary for what a replaced `generate` answers; those below 256 are bytes. With a
# vocabulary of that size a test would take a minute: ids over ours are numbered anew, in the tests as in the tokenizer.
# With a much smaller one random models would end their answers more often than tests allow for.
VOCABULARY = 8192
TOKENS = {
    314: " {", 330: ' "', 397: ">\n", 411: "out", 450: "de", 497: '",', 522: "</", 606: "name", 788: '":', 894: " any",
    927: "sh", 944: "'t", 1318: "text", 1414: " know", 1513: " don", 2765: " won", 4913: '{"', 5212: ' {"',
    5392: " tool", 6023: "hi", 6659: "call", 7692: "async", 9520: "step", 11248: "}}\n", 13477: "crement",
    14172: "tool", 16252: " increment", 16370: "arguments", 17453: "Done", 22785: "_tool", 35744: "increment",
    64648: "multiply", 93054: "_multiply", 95642: '"}}\n', 293: " b",
}  # fmt: skip
MARKS = {
    151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151657: "<tool_call>",
    151658: "</tool_call>", 151665: "<tool_response>", 151666: "</tool_response>", 151667: "<think>",
    151668: "</think>",
}  # fmt: skip
# Of Qwen 3.5, which has another vocabulary.
TOKENS_3_5 = {
    510: "</", 866: " any", 914: "'t", 1366: " know", 1459: " don", 1628: "function", 5224: " tool", 13744: "=screen",
    16936: "Done", 22076: "_tool", 30091: "shot",
}  # fmt: skip
MARKS_3_5 = {
    248044: "<|endoftext|>", 248045: "<|im_start|>", 248046: "<|im_end|>", 248053: "<|vision_start|>",
    248054: "<|vision_end|>", 248056: "<|image_pad|>", 248057: "<|video_pad|>", 248058: "<tool_call>",
    248059: "</tool_call>", 248066: "<tool_response>", 248067: "</tool_response>", 248068: "<think>",
    248069: "</think>",
}  # fmt: skip
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_LARGE = sorted(number for number in {**TOKENS, **MARKS, **TOKENS_3_5, **MARKS_3_5} if number >= VOCABULARY)
NUMBERS = {number: VOCABULARY - 1 - place for place, number in enumerate(_LARGE)}
PADDING, END = NUMBERS[151643], NUMBERS[151645]

# Each architecture takes what it knows of these.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "pad_token_id": PADDING, "bos_token_id": None, "eos_token_id": END,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 4},
    "Qwen3Moe": {"num_experts": 4, "norm_topk_prob": True, "head_dim": 4, **EXPERTS},
    "GptOss": {"num_local_experts": 4, "head_dim": 4, "num_experts_per_tok": 2},
    "Gemma2": {"head_dim": 4, "query_pre_attn_scalar": 4},
    "Cohere2": {"logit_scale": 1.0},
    "Glm4Moe": {"n_routed_experts": 4, "head_dim": 4, "use_qk_norm": True, **EXPERTS},
    "NemotronH": {
        "hidden_size": 16, "layers_block_type": ["mamba", "attention", "moe"], "n_routed_experts": 4,
        "mamba_num_heads": 8, "mamba_head_dim": 4, "mamba_n_groups": 1, "ssm_state_size": 16, "mamba_expand": 2,
        "moe_shared_expert_intermediate_size": 32, "use_mamba_kernels": False, **EXPERTS,
    },
}  # fmt: skip
TEMPLATES = {
    "Qwen2": "qwen2_5", "Qwen3": "qwen3", "Qwen3Moe": "qwen3", "GptOss": "gptoss", "Gemma2": "gemma",
    "Cohere2": "cohere2", "Glm4Moe": "glm4moe", "NemotronH": "nemotron_3_nano", "Llama": "llama3_2",
}  # fmt: skip
# Code that comes with a model, for the tests of `trust_remote_code`.
REMOTE = {
    "configuration_remote.py": "from transformers import LlamaConfig\n\n\nclass RemoteConfig(LlamaConfig):\n"
    '    model_type = "remote"\n',
    "modeling_remote.py": "from transformers import LlamaForCausalLM\n\n"
    "from .configuration_remote import RemoteConfig\n\n\nclass RemoteForCausalLM(LlamaForCausalLM):\n"
    "    config_class = RemoteConfig\n",
}
REMOTE_MAP = {
    "AutoConfig": "configuration_remote.RemoteConfig",
    "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
}


def make_stand_ins(directory: Path, tests: str) -> list[str]:
    """Fills a directory with stand-ins for what the tests name; returns the names without one.

    Args:
        tests: the text of the test file.
    """
    without = []
    (directory / ORGANIZATION).mkdir()
    for name in sorted({name.rstrip(".") for name in NAMES.findall(tests)}):
        folder = directory / name
        model = re.fullmatch(r"tiny-(\w+?)(For\w+?)(?:-[\w.]+)?", folder.name)
        if folder.name.startswith("zen"):
            save_sets(folder, tests)
        elif model is None or not save_model(folder, *model.groups()):
            without.append(name)
    return without


def renumber(tests: str) -> str:
    """The tests with the ids that are too large for our vocabulary replaced by ours."""
    return re.sub(r"\b\d{4,6}\b", lambda found: str(NUMBERS.get(int(found[0]), found[0])), tests)


def save_sets(folder: Path, tests: str) -> None:
    """Configurations of 17 rows and 2: beginnings of sentences, as text and as chats; or as chats with images."""
    expected = re.findall(r"""["']prompt["']: "([^"{}]+)"\}""", tests)
    beginnings = [_beginning(line, expected) for line in zen()]
    chats = [[{"role": "user", "content": text}] for text in beginnings]
    if "image" in folder.name:
        from trl_images import save_image_sets

        save_image_sets(folder, chats, several="multi" in folder.name)
        return
    entries = []
    sets: dict[str, list[Any]] = {"standard_prompt_only": beginnings, "conversational_prompt_only": chats}
    for name, prompts in sets.items():
        (folder / name).mkdir(parents=True)
        for split, rows in {"train": prompts[:-2], "test": prompts[-2:]}.items():
            lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows)
            (folder / name / f"{split}.jsonl").write_text(lines)
        paths = "".join(f"      - {{split: {split}, path: {name}/{split}.jsonl}}\n" for split in ("train", "test"))
        entries.append(f"  - config_name: {name}\n    data_files:\n{paths}")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(entries)}---\n")


def zen() -> list[str]:
    """The 19 lines that `import this` prints below its title."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this  # type: ignore[import-not-found,unused-ignore]
    return codecs.decode(this.s, "rot13").strip().splitlines()[2:]


def _beginning(line: str, expected: list[str]) -> str:
    """Where a test says with which words a line begins, those; else the first half of it."""
    words = line.split()
    half = " ".join(words[: len(words) // 2])
    return max((text for text in expected if line.startswith(text)), key=len, default=half)


def save_model(folder: Path, architecture: str, head: str) -> bool:
    """A model of random weights with a tokenizer; False where there is no stand-in for its kind.

    Args:
        architecture: as transformers spells it in the names of its classes, such as "Qwen2".
        head: such as "ForCausalLM".
    """
    import torch
    import transformers

    if head == "ForConditionalGeneration":
        from trl_images import save_vision_model

        return save_vision_model(folder, architecture, spread_weights)
    base = "Llama" if architecture == "Remote" else architecture
    made = getattr(transformers, base + head, None)
    if made is None or head not in ("ForCausalLM", "ForSequenceClassification"):
        return False
    labels = {"num_labels": 1} if head == "ForSequenceClassification" else {}
    config = made.config_class(**{**SIZES, **OWN_SIZES.get(base, {}), **labels})
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(folder.name.encode()))
        model = made(config)
        spread_weights(model)
    model.save_pretrained(folder)
    tokenizer(TEMPLATES.get(base)).save_pretrained(folder)
    if architecture == "Remote":
        settings = json.loads((folder / "config.json").read_text())
        settings |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"], "auto_map": REMOTE_MAP}
        (folder / "config.json").write_text(json.dumps(settings))
        for name, code in REMOTE.items():
            (folder / name).write_text(code)
    return True


def spread_weights(model: Any) -> None:
    """Makes them so wide that every one has a gradient: most tests end by looking for one that has not moved."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)


def tokenizer(
    template: str | None, *, is_3_5: bool = False, more: Sequence[str] = (), named: Mapping[str, str] | None = None
) -> Any:
    """Bytes as Qwen numbers them, the tokens that tests spell out, and a made-up word for every other id.

    Without merges only bytes and marks come from a text, but every id can be decoded: rewards of what random models
    sample differ.

    Args:
        template: name of a chat template of the installed TRL; None for none.
        is_3_5: whether the tokens are those of Qwen 3.5.
        more: further marks, numbered behind all others.
        named: of these, those that the tokenizer has an attribute for, such as `image_token`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = MARKS_3_5 if is_3_5 else MARKS
    made = Tokenizer(models.BPE(vocab=_vocabulary(is_3_5), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in marks.values() if mark in CONTROL])
    made.add_tokens([AddedToken(mark, normalized=False) for mark in marks.values() if mark not in CONTROL])
    made.add_special_tokens([AddedToken(mark, special=True) for mark in more])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **names, extra_special_tokens=dict(named or {}))
    if template is not None:
        wrapped.chat_template = chat_template(template)
    return wrapped


def chat_template(name: str) -> str:
    """One that the installed TRL ships."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


@cache
def _vocabulary(is_3_5: bool) -> dict[str, int]:
    from tokenizers import pre_tokenizers

    tokens, marks = (TOKENS_3_5, MARKS_3_5) if is_3_5 else (TOKENS, MARKS)
    splitting = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # In the order of their code points, the signs that stand for bytes are numbered as in GPT-2, and so in Qwen.
    vocabulary = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    texts = {number: f" w{number}{'.' * (number % 5)}" for number in range(256, VOCABULARY)}
    texts |= {NUMBERS.get(number, number): text for number, text in tokens.items()}
    marked = {NUMBERS[number]: mark for number, mark in marks.items()}
    for number, text in texts.items():
        vocabulary[marked.get(number) or splitting.pre_tokenize_str(text)[0][0]] = number
    return vocabulary
