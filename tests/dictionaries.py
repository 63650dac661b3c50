"""A dictionary of the embedded model without any training: random directions, half of which count as reasoning."""

import torch

from p2o.features.activations import find_layer
from p2o.features.autoencoder import Dictionary, Shape
from p2o.features.labels import Labels
from p2o.features.saved import Origin, SavedDictionary, architecture
from p2o.features.spans import COMPUTATION, DIRECT, KINDS
from trainers import load


def save_dictionary(directory, kinds=(COMPUTATION, DIRECT)):
    """Writes it, with labels of these kinds in turns; returns the directory as text."""
    model = load()
    dictionary = Dictionary(Shape(width=128, features=64, high=12, k=8))
    with torch.no_grad():
        dictionary.fit_units(torch.randn(99, 128, generator=torch.Generator().manual_seed(1)))
    labels = Labels(tuple(kinds[n % len(kinds)] for n in range(64)), ((0.25,) * 4,) * 64, dict.fromkeys(KINDS, 99))
    SavedDictionary(dictionary, Origin("pico", find_layer(model, None), architecture(model.config)), labels).save(
        directory
    )
    return str(directory)
