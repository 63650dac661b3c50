import os

# Before torch is imported: two threads on two busy cores run slower than one, and results must not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o.pico import model_path

torch.set_num_threads(1)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture
def model():
    """The shipped model in float32, where resuming is exact."""
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
