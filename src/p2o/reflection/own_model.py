"""Reflections of the model in training: as it is, or as it was before training."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import use_adapter

from p2o.completions import Sampling
from p2o.config import P2OConfig
from p2o.engines import vllm, vllm_sampling
from p2o.engines.frozen import completion, encode, stop_tokens
from p2o.engines.memory import out_of_memory
from p2o.engines.processes import Tasks, is_sharded, run_in_batches, share
from p2o.engines.seeing import Seen, complete_seen, encode_seen, sees, token_counts
from p2o.prompt_phase.traces import PromptLimit, prompt_limit
from p2o.prompt_phase.types import Reflection, ReflectionError
from p2o.reflection.model import as_requests, prompt_tokens, transformers_reflection
from p2o.reflection.reference import Reference
from p2o.thoughts import decoder

OUT_OF_MEMORY = (
    "Memory does not suffice for a single reflection. Lower reflection_max_prompt_tokens or reflection_max_tokens, or "
    "reflect with vLLM or an endpoint."
)


@dataclass(frozen=True)
class OwnReflection:
    """A [`ReflectionFn`] of the policy or of a frozen one; the first process calls it, the others serve its task.

    Args:
        policy: the model in training, at present: sharding replaces it.
        frozen: a copy of it from before training; None where the policy reflects, or the two below have one.
        reference_model: the reference model that TRL keeps for its KL term; None where it needs none.
        present: whether the policy reflects as it is.
        engine: TRL's vLLM, which then reflects; None for transformers.
        template_options: for the chat template, as rollouts have them.
        prompt_limit: the longest prompt; None for no limit.
        events: incidents by their names, for whoever collects them.
        tasks: through which the first process has all of them reflect.
        processor: of texts and images; None for a model of texts.
    """

    accelerator: Accelerator
    policy: Callable[[], Any]
    tokenizer: Any
    frozen: Reference | None
    reference_model: Any
    present: bool
    engine: VLLMGeneration | None
    max_new_tokens: int
    temperature: float
    batch_size: int
    template_options: dict[str, Any]
    prompt_limit: PromptLimit | None
    events: Counter[str] = field(default_factory=Counter)
    tasks: Tasks = field(default_factory=Tasks)
    processor: Any = None

    @property
    def sees_images(self) -> bool:
        return self.processor is not None

    def __call__(self, prompts: list[str], *, seed: int, images: Sequence[Any] = ()) -> list[Reflection]:
        """Reflections in the order of the prompts; one for which even alone memory does not suffice has an `error`.

        Args:
            images: of each prompt those that its marks stand for; empty where none has any.

        Raises:
            ReflectionError: that is so of all of them.
        """
        texts = list(zip(prompts, images or [()] * len(prompts), strict=True))
        reflections = self.tasks.run("reflections", self.in_all_processes, texts, seed)
        if reflections and all(reflection.error for reflection in reflections):
            raise ReflectionError(reflections[0].error, reflections)
        return reflections

    def in_all_processes(self, texts: list[Seen], seed: int) -> list[Reflection]:
        return self._with_transformers(texts, seed) if self.engine is None else self._with_vllm(texts, seed)

    def _with_vllm(self, texts: list[Seen], seed: int) -> list[Reflection]:
        engine = self.engine
        assert engine is not None
        self._load(engine)
        sampling = Sampling(self.max_new_tokens, self.temperature)
        stops = stop_tokens(self.accelerator.unwrap_model(self.policy()), self.tokenizer)
        decode = decoder(self.tokenizer)

        def reflect(batch: list[Seen], stream: int) -> list[Reflection]:
            shown = [list(images) or None for _, images in batch]
            if self.processor is not None:
                encoded = list(encode_seen(self.processor, batch, self.template_options)["input_ids"])
            else:
                prompts = as_requests(self.tokenizer, [text for text, _ in batch])
                encoded = encode(self.tokenizer, prompts, **self.template_options)
            sampled = vllm_sampling.sample(engine, encoded, sampling, shown if any(shown) else None)
            return [completion(decode, *ids, stops) for ids in zip(encoded, sampled, strict=True)]

        everything = len(share(self.accelerator, len(texts)))  # vLLM makes its own batches
        return run_in_batches(self.accelerator, reflect, texts, batch_size=everything, seed=seed)

    def _load(self, engine: VLLMGeneration) -> None:
        """Gives the engine the weights of the model that reflects."""
        if self.present:
            vllm_sampling.load_policy(engine)
        elif self.frozen is not None:
            vllm_sampling.load_weights(engine, self.frozen.weights(self.accelerator.device))
        elif self.reference_model is not None:
            vllm_sampling.load_model(engine, self.accelerator.unwrap_model(self.reference_model))
        else:
            vllm_sampling.load_base(engine, "ref" if "ref" in engine.model.peft_config else None)

    def _with_transformers(self, texts: list[Seen], seed: int) -> list[Reflection]:
        with self._model() as model:
            reflection = self._reflection(model)

            def reflect(batch: list[Seen], stream: int) -> list[Reflection]:
                try:
                    return reflection(batch, stream)
                except RuntimeError as error:
                    if len(batch) > 1 or not out_of_memory(error):
                        raise
                return [Reflection("", error=OUT_OF_MEMORY)]

            return run_in_batches(
                self.accelerator,
                reflect,
                texts,
                batch_size=self.batch_size,
                seed=seed,
                halve=self.frozen is not None or not is_sharded(self.accelerator),
                count=lambda event, times: self.events.update({event: times}),
            )

    def _reflection(self, model: Any) -> Callable[[list[Seen], int], list[Reflection]]:
        """Reflections of a batch, by this model; from a stream of this seed."""
        options = self.template_options
        if self.processor is not None:
            sampling = Sampling(self.max_new_tokens, self.temperature)
            return lambda batch, stream: complete_seen(
                model, self.processor, batch, sampling, seed=stream, template_options=options
            )
        lengths = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        reflection = transformers_reflection(
            model, self.tokenizer, **lengths, temperature=self.temperature, template_options=options
        )
        return lambda batch, stream: reflection([text for text, _ in batch], seed=stream)

    @contextlib.contextmanager
    def _model(self) -> Iterator[Any]:
        """The policy, its frozen copy, TRL's reference model, or the base without its adapter."""
        if self.present:
            yield self.accelerator.unwrap_model(self.policy())
        elif self.frozen is not None:
            with self.frozen.on(self.accelerator.device) as frozen:
                yield frozen
        elif self.reference_model is not None:
            yield self.reference_model
        else:
            policy = self.accelerator.unwrap_model(self.policy())
            with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
                yield policy


def make_own(
    accelerator: Accelerator,
    policy: Callable[[], Any],
    reference_model: Any,
    engine: VLLMGeneration | None,
    processing_class: Any,
    args: P2OConfig,
) -> OwnReflection:
    """The model that `reflection_model` names, 'reference' or 'policy'.

    Keeps a copy of the policy as it is now where the reference is to reflect and nothing else holds it: neither the
    base of an adapter nor TRL's reference model.

    Raises:
        OSError: the copy cannot be written.
        ValueError: reflections so long leave no room for a prompt; or FSDP1, see `_refuse_gathering`.
    """
    model, frozen = accelerator.unwrap_model(policy()), None
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    held = hasattr(model, "peft_config") or (reference_model is not None and not args.sync_ref_model)
    if args.prompt_phase and args.reflection_model == "reference" and not held:
        dtype = torch.bfloat16 if args.bf16 else None
        frozen = Reference(model, accelerator, Path(args.output_dir), dtype=dtype)
    if args.prompt_phase and args.reflection_model in ("reference", "policy"):
        _refuse_gathering(accelerator, needs=frozen is None and engine is None)
    options = args.chat_template_kwargs or {}
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, vllm.context_length(engine)) if limit is not None]
    context_length = min(limits, default=None) if args.prompt_phase else None  # else nobody reflects
    longest, processor = args.reflection_max_prompt_tokens, processing_class if sees(processing_class) else None
    counts = token_counts(processor, options) if processor else (prompt_tokens(tokenizer, options),)
    return OwnReflection(
        accelerator,
        policy,
        tokenizer,
        frozen,
        reference_model,
        present=args.reflection_model == "policy",
        engine=engine,
        max_new_tokens=args.reflection_max_tokens,
        temperature=args.reflection_temperature,
        batch_size=args.prompt_phase_batch_size,
        template_options=options,
        prompt_limit=prompt_limit(context_length, args.reflection_max_tokens, longest, *counts),
        processor=processor,
    )


def _refuse_gathering(accelerator: Accelerator, *, needs: bool) -> None:
    """
    Args:
        needs: whether transformers is to generate with the model in training, or with TRL's reference model.

    Raises:
        ValueError: that, under FSDP1, which hands a process only its own part of the weights.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if needs and plugin is not None and getattr(plugin, "fsdp_version", 1) == 1:
        raise ValueError(
            "Under FSDP1 the model in training cannot reflect: each process has only its part of the weights. Use "
            "fsdp_version 2, use_vllm=True, an endpoint as reflection_model, or a function."
        )
