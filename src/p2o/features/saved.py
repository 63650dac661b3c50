"""A dictionary on disk, with the model and the layer that it is of."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig

from p2o.continuation import differences
from p2o.features.autoencoder import Dictionary, DictionaryError, Shape, to_state
from p2o.features.labels import Labels
from p2o.files import write_errors
from p2o.state import write_json

WEIGHTS, ABOUT = "dictionary.safetensors", "dictionary.json"


@dataclass(frozen=True)
class Origin:
    """What a dictionary was trained on.

    Args:
        model: as it was named.
        layer: name of the module.
        architecture: by which another checkpoint of the same model is recognised, of [`architecture`].
    """

    model: str
    layer: str
    architecture: dict[str, Any]

    def check(self, config: PreTrainedConfig, name: str) -> None:
        """
        Args:
            config: of the model in question.
            name: of that model, for the message.

        Raises:
            DictionaryError: a model that cannot be a checkpoint of the one that the dictionary is of.
        """
        if changed := differences(self.architecture, architecture(config)):
            raise DictionaryError(
                f"The dictionary is of {self.model}, {name} is another model: {changed}. Train one for it with "
                f"`p2o features`."
            )


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """Type, width, layers and vocabulary of a model, by its configuration."""
    config = config.get_text_config()
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return {name: getattr(config, name, None) for name in names}


@dataclass(frozen=True)
class SavedDictionary:
    """A dictionary with its origin and its labels."""

    dictionary: Dictionary
    origin: Origin
    labels: Labels

    def save(self, directory: Path) -> None:
        """
        Raises:
            OSError: it cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        about = {
            "origin": asdict(self.origin),
            "shape": self.dictionary.shape.to_dict(),
            "labels": self.labels.to_dict(),
        }
        with write_errors(directory):
            save_file(to_state(self.dictionary), directory / WEIGHTS)
        write_json(directory / ABOUT, about)


def load_dictionary(directory: Path) -> SavedDictionary:
    """
    Raises:
        DictionaryError: none there, or one that is damaged.
    """
    where = next((path for path in (directory, directory / "dictionary") if (path / ABOUT).exists()), None)
    if where is None:
        raise DictionaryError(f"{directory} holds no dictionary: name a directory that `p2o features` wrote.")
    try:
        about: Mapping[str, Any] = json.loads((where / ABOUT).read_text())
        dictionary = Dictionary(Shape(**about["shape"]))
        dictionary.load_state_dict(load_file(where / WEIGHTS))
        return SavedDictionary(dictionary.eval(), Origin(**about["origin"]), Labels.from_dict(about["labels"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DictionaryError(f"The dictionary in {where} is damaged ({error}). Train it anew.") from None
