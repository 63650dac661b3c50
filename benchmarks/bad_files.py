"""Data files and configurations that are damaged, malformed, or something else than their names say."""

import gzip
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pandas

ROWS = [{"prompt": f"What is {n} + {n}?", "solution": str(2 * n)} for n in range(40)]
PAGE = b"<!DOCTYPE html><html><head><title>404</title></head><body><h1>Not Found</h1></body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def noise(length: int, name: str) -> bytes:
    return random.Random(name).randbytes(length)


def sound_files() -> dict[str, bytes]:
    """The same rows in every format, by file name."""
    frame, parquet = pandas.DataFrame(ROWS), io.BytesIO()
    frame.to_parquet(parquet)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    return {
        "rows.jsonl": lines,
        "rows.jsonl.gz": gzip.compress(lines, mtime=0),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": frame.to_csv(index=False).encode(),
        "rows.parquet": parquet.getvalue(),
    }


def damaged(name: str, sound: bytes) -> dict[str, bytes]:
    """What can happen to a file on its way, and what can stand in its place."""
    half = len(sound) // 2
    return {
        "empty": b"",
        "cut in half": sound[:half],
        "its last byte lost": sound[:-1],
        "its first byte lost": sound[1:],
        "its first bytes zeroed": bytes(min(100, half)) + sound[min(100, half) :],
        "zeros in the middle": sound[: half - 20] + bytes(40) + sound[half + 20 :],
        "noise in the middle": sound[: half - 20] + noise(40, name) + sound[half + 20 :],
        "backwards": sound[::-1],
        "twice, one behind the other": sound * 2,
        "a byte that is not UTF-8": sound[:half] + b"\xe9" + sound[half:],
        "half of a surrogate pair": sound.replace(b"What", rb"\ud83d What", 1),
        "read as Latin-1 and written as UTF-16": sound.decode("latin-1").encode("utf-16"),
        "lines ended by carriage returns": sound.replace(b"\n", b"\r"),
        "a page that says 404": PAGE,
        "a pointer of Git LFS": POINTER,
        "an image": b"\x89PNG\r\n\x1a\n" + noise(2000, name),
        "noise": noise(4096, name + "noise"),
        "an archive": b"PK\x03\x04" + noise(2000, name + "zip"),
        "compressed once more": gzip.compress(sound, mtime=0),
        "blanks": b" \n\t \n",
        "null": b"null\n",
        "a number": b"42\n",
        "an empty list": b"[]\n",
        "an empty mapping": b"{}\n",
        "brackets, a hundred thousand deep": b"[" * 100_000,
        "one line of a million letters": b"a" * 1_000_000,
    }


def malformed_rows() -> dict[str, list[Any]]:
    """Rows that are JSON and no questions, each beside sound ones."""
    asked = {"role": "user", "content": "1 + 1?"}
    return {
        "no prompt": [{"solution": "2"}],
        "no solution": [{"prompt": "1 + 1?"}],
        "a prompt that is a number": [{"prompt": 3, "solution": "2"}],
        "an empty chat": [{"prompt": [], "solution": "2"}],
        "a chat of texts": [{"prompt": ["1 + 1?"], "solution": "2"}],
        "a message without role": [{"prompt": [{"content": "1 + 1?"}], "solution": "2"}],
        "a message without content": [{"prompt": [{"role": "user"}], "solution": "2"}],
        "a role that nobody has": [{"prompt": [{**asked, "role": "oracle"}], "solution": "2"}],
        "a chat that ends with the answer": [{"prompt": [asked, {**asked, "role": "assistant"}], "solution": "2"}],
        "a chat of a system prompt alone": [{"prompt": [{**asked, "role": "system"}], "solution": "2"}],
        "content that is a number": [{"prompt": [{"role": "user", "content": 7}], "solution": "2"}],
        "chats in chats": [{"prompt": [[asked]], "solution": "2"}],
        "a solution that is a mapping": [{"prompt": "1 + 1?", "solution": {"a": 1, "b": 2}}],
        "a solution that is a list": [{"prompt": "1 + 1?", "solution": ["1", "2"]}],
        "a solution that is true": [{"prompt": "1 + 1?", "solution": True}],
        "a solution without end": [{"prompt": "1 + 1?", "solution": float("inf")}],
        "a solution that no answer matches": [{"prompt": "1 + 1?", "solution": r"\frac{1}{"}],
        "the same question, another solution": [{"prompt": "1?", "solution": "1"}, {"prompt": "1?", "solution": "2"}],
        "a list in place of a row": [["1 + 1?", "2"]],
        "a text in place of a row": ["1 + 1?"],
        "nothing in place of a row": [None],
    }


def data_files() -> Iterator[tuple[str, str, bytes]]:
    """What each is, a file name, and its content."""
    for name, sound in sound_files().items():
        for kind, content in damaged(name, sound).items():
            yield f"{name}: {kind}", name, content
    sound = sound_files()["rows.jsonl"]
    for kind, rows in malformed_rows().items():
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        yield f"all rows: {kind}", "rows.jsonl", lines * 4
        yield f"beside sound rows: {kind}", "rows.jsonl", sound + lines


WRONG_VALUES = {
    "learning_rate": ("fast", "[1]", "{a: 1}", "1e-6x", "null", "-1"),
    "num_generations": ("2.5", "0", "1", "-4", "many", "true", "null"),
    "per_device_train_batch_size": ("0", "-1", "1.5", "a"),
    "max_completion_length": ("0", "-8", "long"),
    "bf16": ("maybe", "2", "[]"),
    "loss_type": ("gspo", "7"),
    "evolution_budget": ("much", "-5", "[heavy]"),
    "context_mask": ("sharp", "1"),
    "reflection_model": ("no", "[a, b]", "nowhere/at-all"),
    "reward_funcs": ("[no_such_module:f]", "[p2o.pico.world:no_such]", "3", "[]", "[nonsense]"),
    "model_name_or_path": ("/nowhere/model", "[pico]", "3"),
    "dataset_name": ("missing.jsonl", "[a]", "gym:no_such_family"),
    "seed": ("x", "1.5", "null", "-1"),
    "temperature": ("-1", "0", "warm"),
    "top_p": ("2", "-0.5", "0"),
    "top_k": ("-5", "1.5"),
    "beta": ("-1", "x"),
    "epsilon": ("-0.2", "x"),
    "weight_decay": ("-1", "x"),
    "adam_beta1": ("2", "-1"),
    "adam_epsilon": ("-1",),
    "max_grad_norm": ("-1", "x"),
    "warmup_steps": ("-1", "x"),
    "lr_scheduler_type": ("nonsense", "3"),
    "optim": ("nonsense", "3"),
    "num_train_epochs": ("0", "-1", "x"),
    "max_steps": ("0", "x"),
    "gradient_accumulation_steps": ("0", "-1"),
    "per_device_eval_batch_size": ("0", "-1"),
    "steps_per_generation": ("0", "-1"),
    "num_iterations": ("0", "-1"),
    "logging_steps": ("0", "-1"),
    "save_steps": ("0", "-1"),
    "eval_steps": ("0", "-1"),
    "eval_strategy": ("often", "steps"),
    "reward_weights": ("[1, 2]", "x", "[a]"),
    "scale_rewards": ("sometimes",),
    "num_generations_eval": ("0", "-1"),
    "context_ratio_min": ("-1", "x"),
    "context_ratio_max": ("0", "x"),
    "min_hard_questions": ("-1", "x"),
    "parents_per_iteration": ("0", "-1"),
    "dataset_size": ("0", "x"),
    "num_threads": ("0", "-1"),
    "report_to": ("nowhere", "3", "wandb", "comet_ml"),
    "importance_sampling_level": ("word", "3"),
    "multi_objective_aggregation": ("sum", "3"),
    "vllm_importance_sampling_mode": ("none", "3"),
    "delta": ("-1",),
    "repetition_penalty": ("0", "-1"),
    "min_p": ("2",),
    "success_reward": ("nothing", "3"),
    "selection_margin": ("-0.1", "1"),
    "reflection_temperature": ("-1", "x"),
    "regression_margin": ("-1",),
    "use_peft": ("perhaps",),
    "torch_dtype": ("float7",),
    "dtype": ("float7",),
    "chat_template_kwargs": ("3", "[a]"),
    "generation_kwargs": ("3", "{no_such_setting: 1}"),
    "save_strategy": ("sometimes", "3"),
    "system_prompt": ("[a]", "{b: c}"),
}


def configurations(dataset: str) -> Iterator[tuple[str, bytes]]:
    """What each is, and its content; none of them describes a run."""
    sound = f"model_name_or_path: pico\ndataset_name: {dataset}\nreward_funcs: [pico]\n"
    texts = {
        "empty": "",
        "blanks": "  \n\n",
        "a comment": "# learning_rate: 1\n",
        "a list": "- a\n- b\n",
        "a text": "learning_rate\n",
        "a number": "3\n",
        "a bracket left open": sound + "peft: [\n",
        "a quote left open": sound + 'seed: "1\n',
        "a tab": "a:\n\tb: 1\n",
        "wrong indentation": "learning_rate: 1\n  seed: 2\n",
        "a key twice": sound + "seed: 1\nseed: 2\n",
        "a key that is a number": sound + "1: 2\n",
        "a key that is a list": sound + "? [a]\n: 1\n",
        "an alias of nothing": sound + "seed: *one\n",
        "an alias within itself": sound + "peft: &a [*a]\n",
        "a tag that would run code": sound + "seed: !!python/object/apply:os.system ['true']\n",
        "an unknown tag": sound + "seed: !number 3\n",
        "two documents": sound + "---\nseed: 1\n",
        "JSON cut off": '{"seed": 1, "learning_rate"',
        "a page that says 404": PAGE.decode(),
        "an unknown option": sound + "learning_rat: 1\n",
        "an option of another library": sound + "dataset_prompt_column: q\n",
        "options in sections": "train:\n  seed: 1\nmodel:\n  name: pico\n",
        "options that contradict each other": sound + "num_generations: 5\nper_device_train_batch_size: 8\n",
    }
    for kind, text in texts.items():
        yield kind, text.encode()
    yield "noise", noise(500, "yaml")
    yield "UTF-16", sound.encode("utf-16")
    yield "Latin-1", (sound + "system_prompt: Löse\n").encode("latin-1")
    yield "a zero", (sound + "system_prompt: a\0b\n").encode()
    for option, values in WRONG_VALUES.items():
        kept = "".join(line + "\n" for line in sound.splitlines() if not line.startswith(option))
        for value in values:
            yield f"{option}: {value}", f"{kept}{option}: {value}\n".encode()
