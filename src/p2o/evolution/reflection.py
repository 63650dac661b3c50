"""Reflection models: text in, text out, in batches."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.evolution.prompt_phase import Reflection
from p2o.seeding import random_stream


class TransformersReflection:
    """A `transformers` causal language model that reflects; a [`p2o.evolution.prompt_phase.ReflectionFn`].

    Args:
        max_new_tokens: longest reflection.
        temperature: of sampling; 0 is greedy.
        batch_size: prompts generated at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        batch_size: int = 32,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature, self.batch_size = max_new_tokens, temperature, batch_size

    @torch.no_grad()
    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        """Answers in the order of the prompts; the process-wide generators are as before afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with random_stream(seed):
                starts = range(0, len(prompts), self.batch_size)
                return [answer for s in starts for answer in self._generate(prompts[s : s + self.batch_size])]
        finally:
            self.model.train(was_training)

    def _generate(self, prompts: list[str]) -> list[Reflection]:
        encoded = self.tokenizer([self._as_chat(p) for p in prompts], add_special_tokens=False)["input_ids"]
        width = max(len(ids) for ids in encoded)
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded], device=device)
        # Nothing of the model's own generation settings: what is sampled from is the model.
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad,
            **sampling,
        )
        answers = output[:, width:]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        # Up to and with the token that ended it.
        ended = (answers == self.tokenizer.eos_token_id).int()
        lengths = ((ended.cumsum(1) - ended) == 0).sum(1).tolist()
        return [
            Reflection(text, len(prompt), length) for text, prompt, length in zip(texts, encoded, lengths, strict=True)
        ]

    def _as_chat(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt
        chat = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
