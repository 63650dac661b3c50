"""Trains a shipped model: `python -m p2o.pico.build` (an hour or two on two cores, minutes on a GPU).

A byte-level tokenizer and a Qwen3-shaped model of about a million parameters, from nothing but `corpus.py`; with
`--world pico-tools` a smaller one that calls tools, from `tools/corpus.py`. Seeded: the same seed on the same machine
gives the same weights. `--resume` continues exactly from the last checkpoint.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from p2o.pico import corpus, model_path, tools
from p2o.pico.corpus import Document
from p2o.pico.tools import corpus as tools_corpus
from p2o.seeding import derive_seed, random_stream

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
TOOL = "<|tool|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
CALLS = (
    "{%- for call in message['tool_calls'] or [] -%}"
    "{{- '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' -}}"
    "{%- endfor -%}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "tool_calls": {
            "open_pattern": r"<call>(?P<name>\w+) ",
            "close_pattern": r"</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}
VOCABULARY = 768
LEARNING_RATE = 3e-3  # 2 and 4 times as much was clearly worse, and so was a batch of 8,192
CHUNK = 4096  # documents that are sorted by length together
HABITS_FROM = 80  # the chunk from which on the corpus teaches habits


@dataclass(frozen=True)
class World:
    """What is trained: a corpus, and the shape of the model and of its tokenizer.

    Args:
        documents: the corpus by seed, without habits and with them.
        opening: what a worked solution begins with.
        size: of the model, where it differs from `Qwen3Config`'s defaults.
        tokens: training length.
        model_path: where the finished model goes.
        further: arguments of the tokenizer, for calls of tools.
    """

    documents: Callable[[int, bool], Iterator[Document]]
    opening: str
    size: dict[str, int]
    tokens: int
    model_path: Callable[[], str]
    chat_template: str = CHAT_TEMPLATE
    further: dict[str, Any] = field(default_factory=dict)


WORLDS = {
    "pico": World(
        corpus.documents, corpus.WORK, {"intermediate_size": 384, "num_hidden_layers": 5}, 32_000_000, model_path
    ),
    "pico-tools": World(
        tools_corpus.documents,
        tools_corpus.CALL,
        {"intermediate_size": 256, "num_hidden_layers": 4},
        6_000_000,
        tools.model_path,
        CHAT_TEMPLATE.replace("{%- if message['role']", CALLS + "{%- if message['role']"),
        {"response_template": RESPONSE_TEMPLATE},
    ),
}
PICO = WORLDS["pico"]


def build_tokenizer(seed: int, sample: int = 20_000, world: World = PICO) -> PreTrainedTokenizerFast:
    """Byte-level BPE that merges across spaces, so that a stock phrase of a question is one token; digits stay single.

    The beginning of worked solutions is a separate token too: whether to work and by which method are two choices.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(world.opening), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    roles = [USER, ASSISTANT, SYSTEM] if world is PICO else [USER, ASSISTANT, SYSTEM, TOOL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=120,
    )
    drawn = islice(world.documents(derive_seed(seed, "tokenizer"), False), sample)
    texts = (text for d in drawn for text in (d.prompt or "", d.completion, *chain(*d.later_turns)))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=roles,
        chat_template=world.chat_template,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **world.further,
    )


def build_model(seed: int, tokenizer: PreTrainedTokenizerFast, world: World = PICO) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        **world.size,
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with random_stream(derive_seed(seed, "weights")):
        model = Qwen3ForCausalLM(config)
    model.set_attn_implementation("eager")  # 1.5 times as fast as SDPA at these lengths on a CPU
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


# -- batches ---------------------------------------------------------------------------------------------------------


class Encoder:
    """Tokenizes documents and marks trained positions: what the model writes; in arithmetic drills, the results."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        ids = tokenizer.convert_tokens_to_ids
        self.user, self.assistant, self.end, self.tool = ids(USER), ids(ASSISTANT), ids(END), ids(TOOL)

    def __call__(self, batch: list[Document]) -> list[tuple[list[int], list[bool]]]:
        """For each document its tokens and which of them are trained on."""
        prompts = self.tokenizer([d.prompt or "" for d in batch], add_special_tokens=False)["input_ids"]
        answers = self.tokenizer([d.completion for d in batch], add_special_tokens=False)["input_ids"]
        rows = []
        for document, prompt, answer in zip(batch, prompts, answers, strict=True):
            if document.prompt is None:
                rows.append(([*answer, self.end], [*self._results(answer), True]))
            else:
                head = [self.user, *prompt, self.assistant]
                ids = [*head, *answer, self.end]
                trained = [False] * len(head) + [document.given == 0] * (len(answer) + 1)
                for number, (result, text) in enumerate(document.later_turns, 1):
                    read = [self.tool, *self._encoded(result), self.assistant]
                    turn = [*self._encoded(text), self.end]
                    ids += read + turn
                    trained += [False] * len(read) + [number >= document.given] * len(turn)
                rows.append((ids, trained))
        return rows

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _results(self, tokens: list[int]) -> list[bool]:
        """Tokens from an equals sign to the end of its line; the operands before it are random."""
        trained, result = [], False
        for piece in self.tokenizer.convert_ids_to_tokens(tokens):
            result = result or "=" in piece
            trained.append(result)
            result = result and "Ċ" not in piece  # byte-level BPE's line break
        return trained


def batches(
    seed: int, encoder: Encoder, tokens_per_batch: int, world: World = PICO
) -> Iterator[tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]]:
    """Endless batches of about `tokens_per_batch` padded tokens: ids, and which of them are to be predicted."""
    for number in count():
        stream = derive_seed(seed, "batches", number)
        rows = encoder(list(islice(world.documents(stream, number >= HABITS_FROM), CHUNK)))
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in rows:
            if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > tokens_per_batch:
                groups.append([])
            groups[-1].append(row)
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(stream % 2**63))
        for index in order.tolist():
            group = groups[index]
            width = len(group[-1][0])
            ids = torch.zeros(len(group), width, dtype=torch.long)
            learn = torch.zeros(len(group), width, dtype=torch.bool)
            for i, (tokens, trained) in enumerate(group):
                ids[i, : len(tokens)] = torch.tensor(tokens)
                learn[i, : len(tokens)] = torch.tensor(trained)
            yield ids, learn


# -- training --------------------------------------------------------------------------------------------------------


def loss_of(
    model: Qwen3ForCausalLM, ids: Int[Tensor, "batch seq"], learn: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """Summed cross-entropy of the tokens to learn. Padding is on the right, where causal attention ignores it."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = learn[:, 1:]
    logits = model.lm_head(hidden[targets])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][targets], reduction="sum")


def optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=6e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(done: float) -> float:
    """Warm-up over the first 1 %, full until 40 %, then linear decay to zero; `done` in [0, 1]."""
    return min(done / 0.01, 1.0, (1 - done) / 0.6)


def save_package(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Model in bfloat16 and tokenizer, as `from_pretrained` loads them."""
    state = {name: value.detach().to(torch.bfloat16).cpu() for name, value in model.state_dict().items()}
    model.config.dtype = "bfloat16"
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    world = WORLDS[args.world]
    out, work, length = Path(args.out or world.model_path()), Path(args.work), args.tokens or world.tokens
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    tokenizer = build_tokenizer(args.seed, world=world)
    model = build_model(args.seed, tokenizer, world).to(args.device)
    steppers = optimizers(model)
    base = [[group["lr"] for group in opt.param_groups] for opt in steppers]
    data = batches(args.seed, Encoder(tokenizer), args.batch_tokens, world)
    step = tokens = 0
    if args.resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=args.device, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, state in zip(steppers, saved["optimizers"], strict=True):
            opt.load_state_dict(state)
        step, tokens = saved["step"], saved["tokens"]
        data = islice(data, step, None)
    params = sum(p.numel() for p in model.parameters())
    print(f"{params:,} parameters, {length:,} tokens on {args.device}, from step {step}", flush=True)

    started, first, last_saved = time.monotonic(), tokens, time.monotonic()
    for ids, learn in data:
        if tokens >= length:
            break
        factor = learning_rate_factor(tokens / length)
        for opt, rates in zip(steppers, base, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * max(factor, 1e-4)
        ids, learn = ids.to(args.device), learn.to(args.device)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16):
            loss = loss_of(model, ids, learn)
        # Divided by a constant, not by the batch's token count: short guesses would weigh as much as solutions.
        (loss / args.batch_tokens * 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in steppers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids.numel()
        if step % args.log_every == 0:
            speed = (tokens - first) / (time.monotonic() - started)
            line = {
                "step": step,
                "tokens": tokens,
                "loss": round(loss.item() / learn[:, 1:].sum().item(), 4),
                "tokens_per_second": round(speed),
            }
            line["minutes_left"] = round((length - tokens) / speed / 60, 1)
            print(json.dumps(line), flush=True)
        if time.monotonic() - last_saved > args.save_minutes * 60:
            _save(checkpoint, model, steppers, step, tokens)
            last_saved = time.monotonic()
    _save(checkpoint, model, steppers, step, tokens)
    save_package(model, tokenizer, out)
    print(f"saved to {out}", flush=True)


def _save(path: Path, model: Any, steppers: list[Any], step: int, tokens: int) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [opt.state_dict() for opt in steppers],
        "step": step,
        "tokens": tokens,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m p2o.pico.build", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="pico", help="which of the shipped models")
    parser.add_argument("--out", help="where the finished model goes (default: the package)")
    parser.add_argument("--work", default="pico-build", help="directory of the resumable checkpoint")
    parser.add_argument("--tokens", type=int, help="training length, in tokens (default: the shipped model's)")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="padded tokens per step")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast to bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--log-every", type=int, default=50)
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(parse())
