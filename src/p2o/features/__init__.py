"""What happens inside a model: features of its residual stream, their quality and meaning, how training moves them."""
