"""Models that propose instructions: the frozen reference, the policy, an endpoint, a function."""
