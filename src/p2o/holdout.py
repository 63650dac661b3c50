"""Questions that are kept for evaluation, told from those of training by themselves. Pure."""

import hashlib


def is_held_out(question: str) -> bool:
    """Whether a question is kept for evaluation: one in eight is, by its hash, whatever set it is drawn for."""
    return hashlib.sha256(question.encode()).digest()[0] % 8 == 0
