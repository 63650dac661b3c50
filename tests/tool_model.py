"""A small model that has been taught one thing about tools: told to use the calculator it calls it, bare it guesses.

Tests make it in half a minute; nothing of it is shipped.
"""

import json
import random

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.chat_template_utils import qwen3_template

from p2o.prompt_phase.types import Reflection

INSTRUCTION = "Use the calculator."
OTHERS = ["Think hard.", "Be brief.", "Check twice."]
QUESTIONS = [(a, b) for a in range(2, 10) for b in range(2, 10)]
MARKS = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
CALLS = ["<tool_call>", "</tool_call>"]
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content -}}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{- '<tool_call>\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) -}}"
    "{{- '\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: the first one.
        b: the second one.

    Returns:
        Their product.
    """
    return a * b


def reflecting(told):
    """A reflection model that proposes the right instruction and another one by turns; `told` takes its prompts."""

    def reflect(prompts, *, seed):
        told.extend(prompts)
        return [Reflection(f"```\n{INSTRUCTION if n % 2 == 0 else OTHERS[0]}\n```") for n in range(len(prompts))]

    return reflect


def prompt(a, b):
    return [{"role": "user", "content": f"{a}*{b}?"}]


def tokenizer():
    letters = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    made.add_tokens([AddedToken(mark, normalized=False) for mark in CALLS])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "padding_side": "left"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    wrapped.chat_template, wrapped.response_template = CHAT_TEMPLATE, qwen3_template
    return wrapped


def conversation(a, b, instruction, rng):
    """What is taught: messages, of which the model's own are learnt."""
    text = f"{instruction}\n\n{a}*{b}?" if instruction else f"{a}*{b}?"
    # Bare it calls the calculator now and then: what never happens cannot be learnt from.
    if instruction == INSTRUCTION or (not instruction and rng.random() < 0.005):
        function = {"name": "multiply", "arguments": {"a": a, "b": b}}
        return [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "name": "multiply", "content": json.dumps(a * b)},
            {"role": "assistant", "content": str(a * b)},
        ]
    return [{"role": "user", "content": text}, {"role": "assistant", "content": str(rng.randrange(4, 82))}]


def encode(words, messages):
    """Tokens, and which of them are the model's."""
    ids, own = [], []
    for end, message in enumerate(messages):
        own_turn = message["role"] == "assistant"
        before = (
            words.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=own_turn) if end else ""
        )
        whole = words.apply_chat_template(messages[: end + 1], tokenize=False)
        new = words(whole[len(before) :])["input_ids"]
        ids = words(before)["input_ids"]
        own += [0] * (len(ids) - len(own)) + [int(own_turn)] * len(new)
        ids += new
    return ids, own


def pool(words, rng):
    """Encoded conversations, to be drawn from: half of them with the instruction, a quarter bare."""
    kinds = [INSTRUCTION] + [""] * 10 + OTHERS * 2
    by_kind = {kind: [] for kind in kinds}
    for kind in kinds:
        by_kind[kind] += [encode(words, conversation(a, b, kind, rng)) for a, b in QUESTIONS]
    return by_kind


def make_tool_model(directory, steps=400, rows=24):
    """Teaches it, and saves it with its tokenizer."""
    words, rng = tokenizer(), random.Random(0)
    by_kind = pool(words, rng)
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    size = {"vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 4096}
    model = Qwen3ForCausalLM(Qwen3Config(**size, **heads, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        kinds = [INSTRUCTION, INSTRUCTION, "", rng.choice(OTHERS)]
        taught = [rng.choice(by_kind[rng.choice(kinds)]) for _ in range(rows)]
        width = max(len(ids) for ids, _ in taught)
        ids = torch.full((rows, width), words.pad_token_id)
        labels = torch.full((rows, width), -100)
        for row, (tokens, own) in enumerate(taught):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor([t if o else -100 for t, o in zip(tokens, own, strict=True)])
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    words.save_pretrained(directory)
