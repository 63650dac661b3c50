"""Where completions come from: transformers, vLLM, a server."""
