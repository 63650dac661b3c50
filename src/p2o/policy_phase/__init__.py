"""The policy phase: sample under T(x, z), learn on x."""
