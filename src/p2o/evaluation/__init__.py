"""Evaluation of a frozen model: avg@n, pass@k, maj@k, and two models compared."""
