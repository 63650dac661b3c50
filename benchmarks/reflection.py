"""Reflections by vLLM, weights handed over and all, against the same by transformers.

    VLLM_CPU_KVCACHE_SPACE=1 python benchmarks/reflection.py
    VLLM_CPU_KVCACHE_SPACE=1 python benchmarks/reflection.py --model smollm2-135m --reflector policy

A reflection of a prompt as long as `--prompt` and as many new tokens as `--tokens`, all of an iteration at once.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from p2o import P2OConfig, P2OTrainer
from p2o.pico import model_path, world
from p2o.reflection.own_model import OwnReflection

WORDS = "count carry total sign digit column check order product sum part line slowly twice first last".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico", help="pico, smollm2-135m, or a directory")
    parser.add_argument("--reflector", choices=("reference", "policy"), default="reference")
    parser.add_argument("--reflections", type=int, default=16, help="of an iteration: parents_per_iteration")
    parser.add_argument("--prompt", type=int, default=300, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of a reflection")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    path = arguments.model
    if path == "pico":
        path = model_path()
    elif path == "smollm2-135m":
        from p2o.smollm2 import model_path as smollm2_path

        path = smollm2_path()
    with tempfile.TemporaryDirectory() as output:
        trainer = P2OTrainer(
            model=path,
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=P2OConfig(
                output_dir=output,
                num_generations=8,
                reflection_model=arguments.reflector,
                reflection_max_tokens=arguments.tokens,
                bf16=False,
                report_to="none",
                use_vllm=True,
                vllm_mode="colocate",
                vllm_max_model_length=1024,
                vllm_gpu_memory_utilization=0.3,
            ),
            train_dataset=world.train_dataset(hard=16, easy=0),
            processing_class=AutoTokenizer.from_pretrained(path),
        )
        engine = trainer.reflect
        assert isinstance(engine, OwnReflection)
        reflectors = {"vLLM": engine, "transformers": replace(engine, engine=None)}
        # Other words each turn, so that no engine remembers a prompt.
        turns = [
            [
                " ".join(WORDS[(turn + number + place) % len(WORDS)] for place in range(arguments.prompt))
                for number in range(arguments.reflections)
            ]
            for turn in range(arguments.turns + 1)
        ]
        seconds: dict[str, list[float]] = {name: [] for name in reflectors}
        tokens: dict[str, int] = dict.fromkeys(reflectors, 0)
        for turn, prompts in enumerate(turns):
            for name, reflect in reflectors.items():
                began = time.perf_counter()
                reflections = reflect(prompts, seed=turn)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
                    tokens[name] += sum(r.completion_tokens or 0 for r in reflections)
    table = Table(title=f"{arguments.model}: {arguments.reflections} reflections of up to {arguments.tokens} tokens")
    for heading in ("", "seconds (median)", "new tokens per second"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, measured in seconds.items():
        table.add_row(name, f"{statistics.median(measured):.2f}", f"{tokens[name] / sum(measured):.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
