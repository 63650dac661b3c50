"""A model that is not trained, to sample from: with `transformers`, with vLLM in this process, or from a server.

One callable type, [`p2o.completions.CompleteFn`], in front of three engines. The seed of a call decides its stream of
random numbers: work in batches that is interrupted gets the same completions again from the batch at which it goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.completions import Call, CompleteFn, Completion, GenerationError, Sampling
from p2o.engines.decoding import decode
from p2o.engines.endpoint import Endpoint
from p2o.engines.generation import only_asked_settings
from p2o.engines.loading import load_transformers
from p2o.engines.memory import Halving
from p2o.images import with_urls
from p2o.seeding import derive_seed, random_stream
from p2o.tasks import long_prompts, refused_chats
from p2o.templates import Prompt
from p2o.thoughts import decoder, special_marks

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FrozenModel:
    """A model to sample from.

    Args:
        complete: samples from it.
        tokenizer: None for a server.
        context_length: tokens of prompt and completion together; None where it is not known.
        template_options: of its chat template.
        generated_at_once: so many prompts of a call are a batch, which has a stream of its own.
        calls_at_once: so many calls keep all processes busy that share the work.
        complete_calls: completes several calls at once, where processes share the work.
    """

    complete: CompleteFn
    tokenizer: PreTrainedTokenizerBase | None = None
    context_length: int | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    generated_at_once: int = 1
    calls_at_once: int = 1
    complete_calls: Callable[[Sequence[Call]], list[list[Completion]]] | None = None

    def complete_all(self, calls: Sequence[Call]) -> list[list[Completion]]:
        """The completions of several calls."""
        if self.complete_calls is not None:
            return self.complete_calls(calls)
        return [self.complete(call.prompts, sampling=call.sampling, seed=call.seed) for call in calls]

    def refused(self, prompts: Sequence[Prompt]) -> dict[int, str]:
        """Chats that the chat template refuses, by index, with why; none where there is no tokenizer to ask.

        Raises:
            ValueError: chats, and no chat template.
        """
        return refused_chats(prompts, self.tokenizer, **self.template_options) if self.tokenizer is not None else {}

    def too_long(self, prompts: Sequence[Prompt], max_completion_length: int) -> dict[int, int]:
        """Prompts, by index, that leave no room for a completion, with their tokens; none where it is not known."""
        if self.tokenizer is None or self.context_length is None or not prompts:
            return {}
        limit = self.context_length - max_completion_length
        return long_prompts(prompts, self.tokenizer, limit, **self.template_options)

    def encoded(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokens of each prompt, where there is a tokenizer."""
        assert self.tokenizer is not None
        return encode(self.tokenizer, prompts, **self.template_options)

    @property
    def special_tokens(self) -> frozenset[str]:
        """What no template may contain, where it is known."""
        return frozenset(self.tokenizer.all_special_tokens) if self.tokenizer is not None else frozenset()


# -- text and tokens ---------------------------------------------------------------------------------------------------


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], **template_options: Any) -> list[list[int]]:
    """Tokens of each prompt as TRL makes them: a chat by the chat template, with the start of an answer; a text as is.

    Args:
        template_options: for the chat template, as `chat_template_kwargs` of TRL.

    Raises:
        ValueError: a chat, and no chat template.
    """
    encoded = []
    for prompt in prompts:
        if isinstance(prompt, str):
            encoded.append(list(tokenizer(prompt)["input_ids"]))
            continue
        if tokenizer.chat_template is None:
            raise ValueError(
                f"{tokenizer.name_or_path} has no chat template, and the questions are chats. Set one in its "
                "tokenizer, or ask it texts: a dataset whose prompts are strings."
            )
        chat = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **template_options
        )
        encoded.append(list(chat["input_ids"]))
    return encoded


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a completion: the model's, of which there may be several, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return {int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}


# -- transformers ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
    halving: Halving | None = None,
    first: int = 0,
) -> list[list[int]]:
    """Tokens sampled after each prompt's, with the one that ended them; see [`in_streams`]."""

    def sample(batch: list[list[int]], stream: int) -> list[list[int]]:
        return sample_batch(model, tokenizer, batch, sampling)  # draws from the process-wide stream

    return in_streams(model, sample, prompts, batch_size=batch_size, seed=seed, halving=halving, first=first)


def in_streams(
    model: PreTrainedModel,
    sample: Callable[[list[Item], int], list[Result]],
    prompts: Sequence[Item],
    *,
    batch_size: int,
    seed: int,
    halving: Halving | None,
    first: int,
) -> list[Result]:
    """`sample(batch, stream)` of every batch, each with a random stream of its own, so that several processes may share
    the batches of a call; process-wide generators are as before after.

    Args:
        first: place in the call of the first of these prompts, a multiple of `batch_size`.
        halving: halves batches that memory does not suffice for; without one, that is an error.
    """
    was_training = model.training
    model.eval()
    try:
        rows: list[Result] = []
        for start in range(0, len(prompts), batch_size):
            batch, stream = list(prompts[start : start + batch_size]), derive_seed(seed, "batch", first + start)
            with random_stream(stream if first + start else seed):
                rows += sample(batch, stream) if halving is None else halving.run(sample, batch, stream)
        return rows
    finally:
        model.train(was_training)


def sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    **seen: Any,
) -> list[list[int]]:
    """Tokens sampled after each prompt's, from the process-wide stream; `seen` is what the model reads of images."""
    width = max(len(ids) for ids in prompts)
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    drawing: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        drawing = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    with only_asked_settings(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_completion_length,
            pad_token_id=pad,
            eos_token_id=sorted(stops) or None,
            **drawing,
            **seen,
        )
    rows: list[list[int]] = output[:, width:].tolist()
    return [_ended(row, stops) for row in rows]


def _ended(row: list[int], stops: set[int]) -> list[int]:
    return next((row[: index + 1] for index, token in enumerate(row) if token in stops), row)


def transformers_complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    halving: Halving | None = None,
    **template_options: Any,
) -> CompleteFn:
    """Samples from a model at hand; the process-wide generators are as before afterwards.

    Args:
        batch_size: prompts generated at once. The draws depend on it.
        halving: as in [`sample_tokens`].
        template_options: for the chat template.
    """

    def complete(prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, first: int = 0) -> list[Completion]:
        encoded = encode(tokenizer, prompts, **template_options)
        how: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "halving": halving, "first": first}
        sampled = sample_tokens(model, tokenizer, encoded, sampling, **how)
        stops = stop_tokens(model, tokenizer)
        return answers(tokenizer, prompts, encoded, sampled, [is_cut_off(tokens, stops) for tokens in sampled])

    return complete


def completion(
    decode: Callable[[Sequence[int]], str], prompt: list[int], tokens: list[int], stops: set[int]
) -> Completion:
    """A completion as its tokens have it; without one of `stops` at its end it was cut off."""
    return Completion(
        text=decode(tokens),
        prompt_tokens=len(prompt),
        completion_tokens=len(tokens),
        truncated=is_cut_off(tokens, stops),
    )


def answers(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    prompt_ids: list[list[int]],
    sampled: list[list[int]],
    truncated: Sequence[bool],
) -> list[Completion]:
    """Completions with what reward functions are handed of them; their texts have the marks of thoughts."""
    decoded = decode(tokenizer, prompt_ids, sampled, [not isinstance(prompt, str) for prompt in prompts])
    texts = [*map(decoder(tokenizer), sampled)] if special_marks(tokenizer) else [one.text for one in decoded]
    return [
        Completion(text, len(ids), len(tokens), truncated=cut_off, decoded=one)
        for text, ids, tokens, cut_off, one in zip(texts, prompt_ids, sampled, truncated, decoded, strict=True)
    ]


def is_cut_off(tokens: list[int], stops: set[int]) -> bool:
    return not tokens or tokens[-1] not in stops


def transformers_model(
    name: str,
    *,
    batch_size: int = 32,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    template_options: Mapping[str, Any] | None = None,
) -> FrozenModel:
    """A checkpoint, or a name on the hub, run by `transformers`.

    Args:
        batch_size: prompts generated at once. The draws depend on it.
        dtype: of the weights; "auto" is the checkpoint's own on a GPU, and float32 on a CPU, which has no use for less.
        device: where it runs; a GPU when there is one and None is given.
        template_options: for the chat template.

    Raises:
        OSError, ValueError: as `from_pretrained`.
    """
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    loaded = load_transformers(name, dtype=dtype, device=device, attn_implementation=attn_implementation, **where)
    return transformers_frozen(*loaded, batch_size, template_options)


def transformers_frozen(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, options: Mapping[str, Any] | None
) -> FrozenModel:
    """A model at hand, to sample from; arguments as of [`transformers_model`]."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    complete = transformers_complete(model, tokenizer, batch_size, halving=Halving(), **(options or {}))
    return FrozenModel(complete, tokenizer, positions, dict(options or {}), batch_size)


# -- vLLM --------------------------------------------------------------------------------------------------------------


def vllm_model(
    name: str,
    *,
    dtype: str = "auto",
    max_model_length: int | None = None,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel_size: int = 1,
    revision: str | None = None,
    trust_remote_code: bool = False,
    template_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> FrozenModel:
    """A checkpoint, or a name on the hub, run by vLLM in this process; options as vLLM has them.

    Every completion is drawn from a stream of its own, so that it does not depend on which others are under way, but
    for what rounding does.

    Raises:
        ImportError: no vLLM; the message says how to get it.
    """
    from p2o.engines.vllm import HOW_TO_INSTALL

    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ImportError(f"--use_vllm needs vLLM ({error}). {HOW_TO_INSTALL}") from None
    engine = LLM(
        model=name,
        dtype=dtype,
        max_model_len=max_model_length,
        gpu_memory_utilization=gpu_memory_utilization,
        tensor_parallel_size=tensor_parallel_size,
        revision=revision,
        trust_remote_code=trust_remote_code,
        seed=seed,
        generation_config="vllm",  # nothing of the model's own generation settings, as with transformers
        disable_log_stats=True,
        # Where a prompt is cut in two, vLLM winds the stream of its request back, and a CPU's cannot be.
        enable_chunked_prefill=False if current_platform.is_cpu() else None,
    )
    tokenizer = engine.get_tokenizer()
    length, options = int(engine.llm_engine.model_config.max_model_len), dict(template_options or {})
    return FrozenModel(_vllm_complete(engine, tokenizer, **options), tokenizer, length, options)


def _vllm_complete(engine: Any, tokenizer: PreTrainedTokenizerBase, **template_options: Any) -> CompleteFn:
    """Samples from a vLLM engine."""
    from vllm import SamplingParams

    def complete(prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, first: int = 0) -> list[Completion]:
        params = [
            SamplingParams(
                max_tokens=sampling.max_completion_length,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=derive_seed(seed, "vllm", index) % 2**31,
            )
            for index in range(first, first + len(prompts))
        ]
        encoded = encode(tokenizer, prompts, **template_options)
        outputs = engine.generate([{"prompt_token_ids": ids} for ids in encoded], params, use_tqdm=False)
        said = [output.outputs[0] for output in outputs]  # one of each prompt
        sampled, cut_off = [list(one.token_ids) for one in said], [one.finish_reason == "length" for one in said]
        return answers(tokenizer, prompts, encoded, sampled, cut_off)

    return complete


# -- a server ----------------------------------------------------------------------------------------------------------


def served_model(name: str, make: Callable[[Sampling], Endpoint]) -> FrozenModel:
    """A model behind an endpoint.

    Args:
        name: of the model, for messages.
        make: the endpoint for a sampling, with `empty_answers=True`.
    """

    def complete(prompts: Sequence[Prompt], *, sampling: Sampling, seed: int) -> list[Completion]:
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else with_urls(p) for p in prompts]
        completions = make(sampling).complete(chats, seed=seed)
        failed = [completion.error for completion in completions if completion.error]
        if failed:
            raise GenerationError(f"{len(failed)} of {len(completions)} completions by {name} failed: {failed[0]}")
        return completions

    return FrozenModel(complete)
