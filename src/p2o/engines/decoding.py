"""Completions from tokens to what reward functions are handed: in training, in its prompt phase, for a frozen model."""

from collections.abc import Sequence
from typing import Any

from trl.chat_template_utils import parse_response

from p2o.completions import Decoded, as_message
from p2o.thoughts import decoder, special_marks


def decode(
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    chats: Sequence[bool],
) -> list[Decoded]:
    """Completions as `GRPOTrainer._generate` hands them to reward functions, each decoded once.

    Args:
        tokenizer: one with a response template, or a response schema, parses what answers a chat.
        prompt_ids: tokens that the completions go on from; the start of a message may stand there.
        chats: of each prompt, whether it is a chat, not a text.
    """
    parses = getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None)
    marked = decoder(tokenizer) if special_marks(tokenizer) else None

    def one(prefix: Sequence[int], ids: Sequence[int], chat: bool, text: str) -> Decoded:
        if not (chat and parses):
            return as_message(text, chat=chat, answer=marked(ids) if marked else text, ids=ids)
        message = parse_response(tokenizer, list(ids), prefix=list(prefix))
        thought = bool(message.get("reasoning_content") or message.get("thinking"))
        return Decoded([message], text, message.get("content") or "", thought, ids)

    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    return [one(*row) for row in zip(prompt_ids, completion_ids, chats, texts, strict=True)]
