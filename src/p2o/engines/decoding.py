"""Completions from tokens to what reward functions are handed: in training, in its prompt phase, for a frozen model."""

from collections.abc import Sequence
from typing import Any

from trl.chat_template_utils import parse_response

from p2o.completions import Decoded, as_message
from p2o.thoughts import decoder, special_marks


def decode(
    tokenizer: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], *, chat: bool
) -> list[Decoded]:
    """Completions as `GRPOTrainer._generate` hands them to reward functions, each decoded once.

    Args:
        tokenizer: one with a response template, or a response schema, parses what answers a chat.
        prompt_ids: tokens that the completions go on from; the start of a message may stand there.
        chat: whether the prompts are chats, not texts.
    """
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    if chat and (getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None)):
        parsed = [
            parse_response(tokenizer, list(ids), prefix=list(prefix))
            for prefix, ids in zip(prompt_ids, completion_ids, strict=True)
        ]
        thought = [bool(m.get("reasoning_content") or m.get("thinking")) for m in parsed]
        found = zip(parsed, texts, thought, completion_ids, strict=True)
        return [Decoded([m], text, m.get("content") or "", taken_out, ids) for m, text, taken_out, ids in found]
    answers = texts
    if special_marks(tokenizer):
        answers = [*map(decoder(tokenizer), completion_ids)]
    return [
        as_message(text, chat=chat, answer=answer, ids=ids)
        for text, answer, ids in zip(texts, answers, completion_ids, strict=True)
    ]
