"""Trains a dictionary on activations; interrupted, it continues exactly where its last checkpoint was."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2o.continuation import differences
from p2o.features.autoencoder import Dictionary, DictionaryError, Losses, Objective, Shape
from p2o.features.shards import Activations
from p2o.files import write_errors
from p2o.seeding import derive_seed

UNITS_FROM = 8192  # pairs, whose activations set the units


@dataclass(frozen=True)
class TrainingOptions:
    """How a dictionary is trained.

    Args:
        steps: updates.
        pairs_per_batch: pairs of adjacent tokens in a batch.
        learning_rate: of Adam, after a linear rise over the first twentieth of the steps, before a linear fall to 0
            over the last fifth.
        dead_after: steps without activity after which a feature counts as dead.
        save_every: steps between two checkpoints.
    """

    steps: int = 1500
    pairs_per_batch: int = 512
    learning_rate: float = 2e-3
    dead_after: int = 100
    save_every: int = 250
    seed: int = 0
    objective: Objective = field(default_factory=Objective)


def train_dictionary(
    activations: Activations,
    shape: Shape,
    options: TrainingOptions,
    checkpoint: Path,
    on_step: Callable[[int, Losses], None] = lambda step, losses: None,
) -> Dictionary:
    """A dictionary of these activations; a checkpoint of the same training is continued.

    Args:
        checkpoint: a file, written every `save_every` steps and at the end.
        on_step: called with the number of steps done and the losses of the last one.

    Raises:
        DictionaryError: too few tokens, or a checkpoint of another training.
        OSError: the checkpoint cannot be written.
    """
    starts = activations.pair_starts()
    if len(starts) < 2 * options.pairs_per_batch:
        raise DictionaryError(
            f"{activations.tokens} tokens with {len(starts)} adjacent pairs are too few to train on in batches of "
            f"{options.pairs_per_batch} pairs: at least {2 * options.pairs_per_batch} pairs are needed, and good "
            "dictionaries take hundreds of thousands. Sample more answers (--n), longer ones, or more questions."
        )
    if activations.width != shape.width:
        raise DictionaryError(f"The activations have width {activations.width}, the dictionary {shape.width}.")
    run = _Run(activations, starts, shape, options)
    run.restore(checkpoint)
    while run.step < options.steps:
        losses = run.update()
        on_step(run.step, losses)
        if run.step % options.save_every == 0 or run.step == options.steps:
            run.save(checkpoint)
    return run.dictionary


class _Run:
    """The state of a training: what a checkpoint holds."""

    def __init__(self, activations: Activations, starts: np.ndarray, shape: Shape, options: TrainingOptions) -> None:
        self.activations, self.starts, self.options = activations, starts, options
        self.dictionary = Dictionary(shape, derive_seed(options.seed, "dictionary"))
        sample = np.random.default_rng(derive_seed(options.seed, "units")).choice(
            starts, min(len(starts), UNITS_FROM), replace=False
        )
        self.dictionary.fit_units(activations.pairs(np.sort(sample)).flatten(0, 1))
        self.optimizer = torch.optim.Adam(self.dictionary.parameters(), lr=options.learning_rate)
        self.idle = torch.zeros(shape.features, dtype=torch.int64)  # steps since a feature was active
        self.step = 0
        self.identity: dict[str, Any] = {
            **shape.to_dict(),
            **asdict(options),
            "pairs": len(starts),
            "mean": float(self.dictionary.mean.double().sum()),
        }
        del self.identity["save_every"]
        self._epoch, self._order = -1, np.zeros(0, int)

    def batch(self) -> Tensor:
        """The pairs of this step: those of a seeded order of all, a new one for every pass through them."""
        size = self.options.pairs_per_batch
        epoch, place = divmod(self.step, len(self.starts) // size)
        if epoch != self._epoch:
            seed = derive_seed(self.options.seed, "pairs", epoch)
            self._epoch, self._order = epoch, np.random.default_rng(seed).permutation(len(self.starts))
        return self.activations.pairs(self.starts[self._order[place * size : (place + 1) * size]])

    def update(self) -> Losses:
        options = self.options
        rise, fall = max(options.steps // 20, 1), max(options.steps // 5, 1)
        factor = min(1.0, (self.step + 1) / rise, (options.steps - self.step) / fall)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.dictionary.losses(self.batch(), options.objective, self.idle >= options.dead_after)
        losses.total.backward()
        self.optimizer.step()
        self.dictionary.normalise_directions()
        self.idle = torch.where(losses.active, 0, self.idle + 1)
        self.step += 1
        return losses

    def save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "step": self.step,
            "dictionary": self.dictionary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "idle": self.idle,
        }
        temporary = path.with_suffix(".tmp")
        with write_errors(path.parent):
            torch.save(state, temporary)
            temporary.replace(path)

    def restore(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise DictionaryError(f"{path} is damaged ({error}). Delete it to train the dictionary anew.") from None
        if changed := differences(state["identity"], self.identity):
            raise DictionaryError(f"{path} is of another training: {changed}. Choose another --output_dir.")
        self.step, self.idle = state["step"], state["idle"]
        self.dictionary.load_state_dict(state["dictionary"])
        self.optimizer.load_state_dict(state["optimizer"])
