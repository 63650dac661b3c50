"""Memory and time of a recipe on a number of GPUs, by formulas of a line or two each. `scaling.py` prints them.

Settings are read from the recipes, shapes are those that the models' own `config.json` state. What cannot be computed
is handed over, as `scaling.py` has it in its options; everything else follows.
"""

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2o.cli.arguments import parse
from p2o.prompt_phase.budget import dev_size, metric_call_budget

RECIPES = Path(__file__).parent.parent / "recipes"
GIB = 2**30
POSITIONS = 40_960  # of these models

# What TRL's fused head holds of the logits at any time: tokens × vocabulary (trl.kernels, trl.trainer.utils).
LOGIT_TILE = 4096 * 32_768


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped-query attention, as `config.json` describes it."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    tied: bool
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer: q and o, k and v, the three matrices of the MLP, norms."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden + 2 * self.head_dim

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: all but the table of input embeddings."""
        return self.layers * self.layer + self.embedding

    @property
    def kv_bytes(self) -> int:
        """Of the KV cache, for one token, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def layer_activations(self) -> int:
        """Numbers that one layer keeps of a token for its backward pass: norms, q, k, v and rotated ones, the MLP."""
        return 8 * self.hidden + 4 * self.head_dim * (self.heads + self.kv_heads) + 4 * self.intermediate

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all linear layers: rank × (inputs + outputs) of each."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = 2 * (self.hidden + q) + 2 * (self.hidden + kv) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * sides


SHAPES = {
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 6144, 16, 8, tied=True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 9728, 32, 8, tied=True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 12_288, 32, 8, tied=False),
    "Qwen/Qwen3-32B": Shape(64, 5120, 25_600, 64, 8, tied=False),
}


@dataclass(frozen=True)
class Card:
    """A kind of GPU, from its maker's data sheet: memory in GiB, bytes a second, dense bfloat16 operations a second."""

    name: str
    memory: int
    bandwidth: float
    flops: float


RTX_4090, H100 = Card("RTX 4090", 24, 1.008e12, 165e12), Card("H100 SXM", 80, 3.35e12, 989e12)


@dataclass(frozen=True)
class Setup:
    """A recipe on a number of GPUs, with what is said on the command line beside it.

    Args:
        gpus: in all, eight of them a machine at most.
        written_for: GPUs for which the recipe has its batch; on others `steps_per_generation` keeps it the same.
    """

    recipe: str
    gpus: int
    card: Card
    written_for: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        said = "".join(f", `--{name} {value}`" for name, value in self.options.items())
        return f"{self.gpus} × {self.card.name}: {self.recipe}{said}"


SETUPS = (
    Setup("single-24gb-lora", 1, RTX_4090, 1),
    Setup(
        "single-24gb-lora",
        1,
        RTX_4090,
        1,
        {"model_name_or_path": "Qwen/Qwen3-4B", "vllm_gpu_memory_utilization": 0.5},
    ),
    Setup("paper-self-deepscaler", 8, H100, 8),
    Setup("paper-teacher-deepscaler", 8, H100, 8),
    Setup("paper-self-deepscaler", 16, H100, 8),
    Setup(
        "paper-self-deepscaler",
        8,
        H100,
        8,
        {"model_name_or_path": "Qwen/Qwen3-8B", "per_device_train_batch_size": 2},
    ),
    Setup(
        "paper-teacher-deepscaler",
        32,
        H100,
        8,
        {"model_name_or_path": "Qwen/Qwen3-32B", "per_device_train_batch_size": 1, "vllm_tensor_parallel_size": 4},
    ),
)


class Estimate:
    """One setup under the command's assumptions. Memory is of one GPU, in GiB; time is in hours.

    `batch` is the recipe's number of rollouts a batch, on however many GPUs.
    """

    def __init__(self, setup: Setup, assumed: argparse.Namespace) -> None:
        self.setup, self.assumed = setup, assumed
        # On this machine's CPU, since the options of a GPU need one to be there.
        recipe = ["--config", str(RECIPES / f"{setup.recipe}.yaml"), "--use_cpu", "true"]
        options = dict(setup.options)
        width = options.pop("vllm_tensor_parallel_size", 1)  # refused with fewer processes than that, as here
        said = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self.run, self.training, self.model, *_ = parse([*recipe, *said], "")
        self.training.vllm_tensor_parallel_size = width
        written = parse(recipe, "").training
        self.batch = written.per_device_train_batch_size * written.steps_per_generation * setup.written_for
        self.shape = SHAPES[str(self.model.model_name_or_path)]
        self.adapter = self.shape.lora(self.model.lora_r) if self.model.use_peft else 0

    # -- memory ------------------------------------------------------------------------------------------------------

    @property
    def longest(self) -> int:
        return self.training.max_prompt_length + self.training.max_completion_length

    @property
    def state(self) -> float:
        """Weights, gradients, two moments: 4 × 4 bytes a parameter over all GPUs; or the base at 2, and an adapter."""
        if self.adapter:
            return (2 * self.shape.parameters + 16 * self.adapter) / GIB
        return 16 * self.shape.parameters / self.setup.gpus / GIB

    @property
    def working(self) -> float:
        """What passes need beside activations: two layers, embedding and head gathered, the head's gradient, logits."""
        shape, gathered = self.shape, 0
        if not self.adapter:
            gathered = 2 * (2 * shape.layer + shape.parameters - shape.layers * shape.layer) + 4 * shape.embedding
        return (gathered + 4 * LOGIT_TILE) / GIB

    @property
    def activations(self) -> float:
        """Of rows of full length under gradient checkpointing: the inputs of all layers, and one layer in full."""
        tokens = self.training.per_device_train_batch_size * self.longest
        return 2 * tokens * (self.shape.layers * self.shape.hidden + self.shape.layer_activations) / GIB

    @property
    def training_peak(self) -> float:
        return self.state + self.working + self.activations + self.assumed.context + self.assumed.asleep

    @property
    def engine_weights(self) -> float:
        return 2 * self.shape.parameters / self.training.vllm_tensor_parallel_size / GIB

    @property
    def cache(self) -> float:
        share = self.training.vllm_gpu_memory_utilization * self.setup.card.memory
        return share - self.engine_weights - self.assumed.engine

    @property
    def cached_tokens(self) -> float:
        """Tokens that the caches of one engine, on one GPU or on several, hold."""
        return self.cache * GIB * self.training.vllm_tensor_parallel_size / self.shape.kv_bytes

    @property
    def generation_peak(self) -> float:
        share = self.training.vllm_gpu_memory_utilization * self.setup.card.memory
        return self.state + share + self.assumed.context

    @property
    def own_reflection(self) -> bool:
        return not self.training.reflection_endpoint

    @property
    def copy(self) -> float:
        """The frozen model that reflects, in bfloat16, in a file of the machine; with LoRA the base is its own."""
        return 2 * self.shape.parameters / GIB if self.own_reflection and not self.adapter else 0.0

    def reflection_prompt(self, completion: float) -> int:
        """Tokens of a reflection prompt about completions so long, of which parts are left out where it is too long."""
        training = self.training
        whole = self.assumed.request + training.feedback_minibatch_size * (self.assumed.prompt + completion)
        held = min(training.vllm_max_model_length, POSITIONS) - training.reflection_max_tokens
        return int(min(whole, held, training.reflection_max_prompt_tokens or held))

    @property
    def longest_reflection(self) -> int:
        """Tokens of the longest prompt and reflection together."""
        return self.reflection_prompt(self.training.max_completion_length) + self.training.reflection_max_tokens

    @property
    def fits(self) -> bool:
        longest = max(self.longest, self.longest_reflection if self.own_reflection else 0)
        return max(self.training_peak, self.generation_peak) <= self.setup.card.memory and self.cached_tokens >= longest

    # -- time --------------------------------------------------------------------------------------------------------

    @property
    def mean_length(self) -> float:
        return self.assumed.mean_length * self.training.max_completion_length

    @property
    def questions(self) -> int:
        return self.run.dataset_size or 5000  # of the named sets that the recipes train on

    @property
    def epoch_rollouts(self) -> int:
        return self.questions * self.training.num_generations // self.batch * self.batch

    def tokens_per_second(self, waiting: int, prompt: float, completion: float) -> float:
        """Of one engine with so many completions to make, of these mean lengths.

        A roofline: each step reads the weights and the caches of those under way; the slower of memory and arithmetic,
        times the share of it that an engine reaches.
        """
        card, width = self.setup.card, self.training.vllm_tensor_parallel_size
        context = prompt + completion / 2
        at_once = max(min(self.cached_tokens / (prompt + completion), waiting), 1)
        read = (2 * self.shape.parameters + at_once * context * self.shape.kv_bytes) / (card.bandwidth * width)
        computed = 2 * self.shape.multiplied * at_once / (card.flops * width)
        return self.assumed.decoding * at_once / max(read, computed)

    def generation(self, rollouts: int, at_once: int) -> float:
        """Hours to generate so many rollouts of mean length, `at_once` of them requested together."""
        engines = self.setup.gpus // self.training.vllm_tensor_parallel_size
        speed = engines * self.tokens_per_second(math.ceil(at_once / engines), self.assumed.prompt, self.mean_length)
        return rollouts * self.mean_length / speed / 3600

    def learning(self) -> float:
        """Hours of an epoch's passes: old log-probabilities for all, forward, recomputation and backward for the rest.

        2 operations a parameter and token forward, twice that backward; attention has 2·layers·heads·head_dim·length
        a token forward, since half of the scores are masked.
        """
        shape, length = self.shape, self.assumed.prompt + self.mean_length
        forward = 2 * shape.multiplied + 2 * shape.layers * shape.heads * shape.head_dim * length
        passes = 1 + 4 * (1 - self.assumed.collapsed)
        operations = self.epoch_rollouts * length * forward * passes
        return operations / (self.setup.gpus * self.setup.card.flops * self.assumed.mfu) / 3600

    @property
    def dev_questions(self) -> int:
        hard = int(self.assumed.hard * self.questions)
        return dev_size(hard, self.training.max_dev_questions)

    @property
    def prompt_rollouts(self) -> int:
        return metric_call_budget(self.training.evolution_calls, self.dev_questions)

    @property
    def proposals(self) -> int:
        """Reflections that the budget allows: each costs its minibatch twice, and the dev set where it is accepted."""
        each = 2 * self.training.feedback_minibatch_size + self.assumed.accepted * self.dev_questions
        return int((self.prompt_rollouts - self.dev_questions) / each)

    def reflecting(self) -> float:
        """Hours of reflections by the engine, an iteration's at a time: prompts are read, then answers written.

        An endpoint's are not ours.
        """
        if not self.own_reflection:
            return 0.0
        training, engines = self.training, self.setup.gpus // self.training.vllm_tensor_parallel_size
        prompt, answer = (
            self.reflection_prompt(self.mean_length),
            self.assumed.mean_length * training.reflection_max_tokens,
        )
        at_once = math.ceil(training.parents_per_iteration / engines)
        rounds = math.ceil(self.proposals / training.parents_per_iteration)
        flops = self.setup.card.flops * training.vllm_tensor_parallel_size * self.assumed.decoding
        read = at_once * prompt * 2 * self.shape.multiplied / flops
        written = at_once * answer / self.tokens_per_second(at_once, prompt, answer)
        return rounds * (read + written) / 3600

    def evolving(self) -> float:
        """Hours of a prompt phase's rollouts, requested an iteration at a time."""
        parents = self.training.parents_per_iteration
        at_once = int(
            parents * (self.training.feedback_minibatch_size + self.assumed.accepted * self.dev_questions / 2)
        )
        return self.generation(self.prompt_rollouts, at_once)
