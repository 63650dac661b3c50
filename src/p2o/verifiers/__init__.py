"""Verifiers: whether a completion answers its question, told by processes that can be killed."""

from p2o.verifiers.pool import Reason, Verdict, VerifierPool, shared_pool
from p2o.verifiers.rewards import exact_reward, math_reward

__all__ = ["Reason", "Verdict", "VerifierPool", "exact_reward", "math_reward", "shared_pool"]
