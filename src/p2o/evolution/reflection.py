"""Reflection models: text in, text out, in batches."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.evolution.prompt_phase import Reflection
from p2o.generation import Sampling, sample_tokens


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

    def __call__(self, prompts: list[str], *, seed: int) -> list[Reflection]:
        """Answers in the order of the prompts; the process-wide generators are as before afterwards."""
        encoded = self.tokenizer([self._as_chat(p) for p in prompts], add_special_tokens=False)["input_ids"]
        answers = sample_tokens(
            self.model,
            self.tokenizer,
            encoded,
            Sampling(self.max_new_tokens, self.temperature),
            batch_size=self.batch_size,
            seed=seed,
        )
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [
            Reflection(text, len(prompt), len(answer))
            for text, prompt, answer in zip(texts, encoded, answers, strict=True)
        ]

    def _as_chat(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt
        chat = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
