"""Decides by a question's hash whether it is held out for evaluation. Pure."""

import hashlib


def is_held_out(question: str) -> bool:
    """Whether a question is held out for evaluation: one in eight is, by its hash, in every set."""
    return hashlib.sha256(question.encode()).digest()[0] % 8 == 0
