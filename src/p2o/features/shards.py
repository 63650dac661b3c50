"""Activations on disk: shards that are written once, whole, and read memory-mapped, so that only a batch is in memory.

A shard is two files: `NAME.npy`, an array of shape (tokens, width), and `NAME.json`, its passages one behind the other.
"""

import copy
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from p2o.features.autoencoder import DictionaryError
from p2o.files import write_whole

HELD_OUT_EVERY = 10  # questions
AGAIN = "Delete it and run the same command again: what is missing is collected anew."


@dataclass(frozen=True)
class Passage:
    """A rollout whose activations are recorded from the last token of the prompt on, which decides how it begins.

    Args:
        ids: tokens with an activation: the last one of the prompt, then the completion's.
        context: the other tokens of the prompt, in front.
        question: row of the question.
        text: the completion.
        reward: None where it could not be scored, or was not.
        instructed: whether it was sampled under an instruction.
        family: of the question, where its row has one.
    """

    ids: list[int]
    context: list[int]
    question: int
    text: str
    reward: float | None = None
    instructed: bool = False
    family: str | None = None

    @property
    def input_ids(self) -> list[int]:
        return [*self.context, *self.ids]


def write_shard(path: Path, passages: Sequence[Passage], activations: Float[Tensor, "tokens width"]) -> None:
    """Writes a shard, its `.json` last: what has one is complete.

    Args:
        path: without ending.

    Raises:
        DictionaryError: activations that are not finite in the shards' float16.
        OSError: it cannot be written.
    """
    array = activations.to(torch.float16).numpy()
    if not np.isfinite(array).all():
        raise DictionaryError(
            "Some activations are not finite in half precision. Choose another --layer: the last ones of some models "
            "have a few huge activations."
        )
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, array)
    temporary.replace(path.with_suffix(".npy"))
    write_whole(path.with_suffix(".json"), json.dumps([asdict(passage) for passage in passages]))


class Activations:
    """The shards of a directory as one sequence of tokens.

    Args:
        directory: with the shards.
        held_out: whether to read the passages of the questions that are kept for measuring quality, or all others.
            Questions are held out whole, every tenth by a shuffled order; of a single question, every tenth passage.

    Raises:
        DictionaryError: a shard that is damaged or truncated, naming it; no passage at all.
    """

    def __init__(self, directory: Path, *, held_out: bool) -> None:
        self.passages: list[Passage] = []
        self._arrays: list[np.ndarray] = []
        self._at: list[tuple[int, int]] = []  # of each passage, its shard and its first token there
        shards = sorted(directory.glob("*.json"))
        everything = [(shard, number, p) for shard, path in enumerate(shards) for number, p in self._read(path)]
        held = _held_out([passage for *_, passage in everything])
        for (shard, start, passage), out in zip(everything, held, strict=True):
            if out is held_out:
                self.passages.append(passage)
                self._at.append((shard, start))
        if not self.passages:
            raise DictionaryError(f"{directory} holds no activations to {'measure' if held_out else 'train'} with.")
        self._ends = list(accumulate(len(passage.ids) for passage in self.passages))

    def _read(self, path: Path) -> Iterator[tuple[int, Passage]]:
        array_path = path.with_suffix(".npy")
        try:
            passages = [Passage(**record) for record in json.loads(path.read_text())]
            array = np.load(array_path, mmap_mode="r")
        except (OSError, ValueError, TypeError) as error:
            raise DictionaryError(f"The shard {path.stem} in {path.parent} is damaged ({error}). {AGAIN}") from None
        tokens = sum(len(passage.ids) for passage in passages)
        if array.ndim != 2 or len(array) != tokens:
            raise DictionaryError(
                f"The shard {array_path} has activations of {len(array)} tokens, its passages have {tokens}. {AGAIN}"
            )
        if self._arrays and array.shape[1] != self.width:
            raise DictionaryError(f"{array_path} has width {array.shape[1]}, the shards before {self.width}. {AGAIN}")
        self._arrays.append(array)
        start = 0
        for passage in passages:
            yield start, passage
            start += len(passage.ids)

    @property
    def width(self) -> int:
        return int(self._arrays[0].shape[1])

    @property
    def tokens(self) -> int:
        return self._ends[-1]

    def spread(self, count: int) -> list[int]:
        """Numbers of at most so many passages, evenly spread over all."""
        total = len(self.passages)
        return [total * place // min(count, total) for place in range(min(count, total))]

    def sample(self, count: int) -> "Activations":
        """At most so many of the passages, evenly spread over all."""
        chosen = self.spread(count)
        few = copy.copy(self)
        few.passages, few._at = [self.passages[n] for n in chosen], [self._at[n] for n in chosen]
        few._ends = list(accumulate(len(passage.ids) for passage in few.passages))
        return few

    def of_passage(self, number: int) -> Float[Tensor, "tokens width"]:
        """The activations of one passage."""
        shard, start = self._at[number]
        return _tensor(self._arrays[shard][start : start + len(self.passages[number].ids)])

    def pair_starts(self) -> Int[np.ndarray, "pairs"]:
        """Places of the tokens that have a next one in their passage."""
        is_last = np.zeros(self.tokens, bool)
        is_last[np.asarray(self._ends) - 1] = True
        return np.flatnonzero(~is_last)

    def pairs(self, places: Int[np.ndarray, "pairs"]) -> Float[Tensor, "two pairs width"]:
        """The activations of tokens and of the next ones.

        Args:
            places: among [`pair_starts`].
        """
        found = np.empty((2, len(places), self.width), np.float16)
        for number, place in enumerate(places.tolist()):
            passage = bisect_right(self._ends, place)
            shard, start = self._at[passage]
            first = start + place - (self._ends[passage - 1] if passage else 0)
            found[:, number] = self._arrays[shard][first : first + 2]
        return _tensor(found)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


def _held_out(passages: Sequence[Passage]) -> list[bool]:
    """Of each passage, whether it is for measuring."""
    questions = sorted({passage.question for passage in passages})
    if len(questions) == 1:
        return [number % HELD_OUT_EVERY == 0 for number in range(len(passages))]
    order = np.random.default_rng(0).permutation(len(questions))
    chosen = {questions[place] for place in order[: max(len(questions) // HELD_OUT_EVERY, 1)]}
    return [passage.question in chosen for passage in passages]
