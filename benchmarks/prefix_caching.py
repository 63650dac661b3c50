"""What vLLM's prefix cache saves P²O, whose rollouts share a question, or an instruction, or neither.

    python benchmarks/prefix_caching.py --json docs/prefix_caching.json
    python benchmarks/prefix_caching.py --tools_tokens 512 --template_position system --count_only

The second one counts, without an engine, what a cache of whole blocks finds.

Two engines that differ in nothing but the cache answer the same requests by turns. Four kinds of batches:

- *bare group*: K rollouts of each question; the whole prompt is shared.
- *one template*: as many questions under one instruction, as when a candidate is scored; the instruction is shared.
- *templates drawn*: groups of K rollouts whose instruction is drawn from a few, as in an epoch after a prompt phase.
- *all different*: a different instruction for every rollout; nothing is shared but the chat's first tokens.

The instruction stands in front of the question, so rollouts of one question under different instructions share little.
What describes tools stands before it: most chat templates have it behind the system message's text, so an instruction
in the user's message comes after it, and one in the system message before. Lengths are set in tokens; a prompt's tokens
are random, for only their number matters. Weights are random, too.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from random_model import save_random_model

Prompts = list[list[int]]

HEADER = 8  # tokens before the user's message
BLOCK = 16  # tokens that vLLM keeps or forgets together


def batches(arguments: argparse.Namespace, rng: random.Random, vocabulary: int) -> dict[str, Prompts]:
    """Prompts of `questions` × `rollouts` rollouts for each kind of batch."""

    def text(length: int) -> list[int]:
        return [rng.randrange(10, vocabulary) for _ in range(length)]

    header, tools = text(HEADER), text(arguments.tools_tokens)
    count = arguments.questions * arguments.rollouts
    questions = [text(arguments.question_tokens) for _ in range(count)]
    templates = [text(arguments.template_tokens) for _ in range(count)]
    grouped = [questions[row // arguments.rollouts] for row in range(count)]

    def under(template: list[int]) -> list[int]:
        return header + (tools + template if arguments.template_position == "user" else template + tools)

    return {
        "bare group": [header + tools + x for x in grouped],
        "one template": [under(templates[0]) + x for x in questions],
        "templates drawn": [under(templates[rng.randrange(arguments.templates)]) + x for x in grouped],
        "all different": [under(z) + x for z, x in zip(templates, questions, strict=True)],
    }


def found_in_blocks(prompts: Prompts) -> float:
    """Share of the prompts' tokens that a cache of blocks finds which has kept those of the prompts before."""
    known: set[tuple[int, ...]] = set()
    found = 0
    for prompt in prompts:
        # The last token is always computed: its logits are needed.
        prefixes = [tuple(prompt[:end]) for end in range(BLOCK, len(prompt), BLOCK)]
        found += BLOCK * len(list(itertools.takewhile(known.__contains__, prefixes)))
        known.update(prefixes)
    return found / sum(map(len, prompts))


def build_model(directory: str, arguments: argparse.Namespace) -> int:
    """A randomly initialised model of Qwen3's shape in `directory`; returns its vocabulary's size."""
    import torch

    return save_random_model(
        directory,
        dtype=torch.bfloat16,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=max(arguments.hidden // 128, 1),
        head_dim=64,
        max_position_embeddings=4096,
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each kind of batch with the cache and without, and the share of prompt tokens found in the cache."""
    with tempfile.TemporaryDirectory() as directory:
        vocabulary = build_model(directory, arguments)
        from vllm import LLM, SamplingParams

        engines = {
            cached: LLM(
                model=directory,
                enable_prefix_caching=cached,
                max_model_len=2048,
                max_num_seqs=arguments.questions * arguments.rollouts,
                max_num_batched_tokens=4096,  # as TRL sets it
                gpu_memory_utilization=0.3,
                disable_log_stats=True,
                seed=0,
            )
            for cached in (True, False)
        }
        sampling = SamplingParams(temperature=1.0, max_tokens=arguments.completion_tokens, ignore_eos=True, logprobs=0)
        seconds: dict[str, dict[bool, list[float]]] = {}
        hits: dict[str, float] = {}
        for turn in range(arguments.repeats + 1):
            for kind, prompts in batches(arguments, random.Random(turn), vocabulary).items():
                for cached in (True, False) if turn % 2 else (False, True):
                    engines[cached].reset_prefix_cache()  # as after an exchange of weights
                    started = time.perf_counter()
                    answers = engines[cached].generate(
                        [{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False
                    )
                    taken = time.perf_counter() - started
                    if cached:
                        found = sum(answer.num_cached_tokens or 0 for answer in answers)
                        hits[kind] = found / sum(map(len, prompts))
                    if turn:  # the first warms up
                        seconds.setdefault(kind, {True: [], False: []})[cached].append(taken)
        for engine in engines.values():  # two in one process would wait for each other at its end
            engine.llm_engine.engine_core.shutdown()
    rows = {}
    for kind, taken in seconds.items():
        on, off = (statistics.median(taken[cached]) for cached in (True, False))
        rows[kind] = {"cached": on, "uncached": off, "ratio": on / off, "found_in_cache": hits[kind]}
    return {"settings": vars(arguments) | {"json": None}, "batches": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=6, help="K, of one question")
    parser.add_argument("--templates", type=int, default=4, help="from which an epoch draws")
    parser.add_argument("--question_tokens", type=int, default=256)
    parser.add_argument("--template_tokens", type=int, default=256)
    parser.add_argument("--tools_tokens", type=int, default=0, help="of what describes tools")
    parser.add_argument("--template_position", choices=("user", "system"), default="user")
    parser.add_argument("--completion_tokens", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="timed turns; medians are reported")
    parser.add_argument("--count_only", action="store_true", help="count what is found, without an engine")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    arguments = parser.parse_args()
    if arguments.count_only:
        drawn = batches(arguments, random.Random(0), vocabulary=5000)
        counted = {kind: found_in_blocks(prompts) for kind, prompts in drawn.items()}
        for kind, share in counted.items():
            print(f"{kind:<16}{share:>5.0%} found in cache")
        if arguments.json:
            arguments.json.write_text(json.dumps({"found_in_cache": counted}, indent=1) + "\n")
        return
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    result = measure(arguments)
    print(f"{'batch':<16}{'cached':>10}{'uncached':>10}{'ratio':>8}{'found in cache':>16}")
    for kind, row in result["batches"].items():
        print(
            f"{kind:<16}{row['cached']:>8.2f} s{row['uncached']:>8.2f} s{row['ratio']:>8.2f}"
            f"{row['found_in_cache']:>15.0%}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
