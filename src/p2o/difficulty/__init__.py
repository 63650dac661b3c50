"""How hard each question is for a model, what that means for a training run, and training on a part of them."""
