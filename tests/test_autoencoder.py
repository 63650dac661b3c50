"""The temporal sparse autoencoder on made-up streams whose features are known, and what it is measured by."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from p2o.features.autoencoder import Dictionary, DictionaryError, Objective, Shape, agreement_loss, batch_top_k
from p2o.features.quality import measure
from p2o.features.shards import Activations, Passage, write_shard
from p2o.features.training import TrainingOptions, train_dictionary

LASTING, FLEETING, WIDTH = 6, 18, 32
QUICK = TrainingOptions(steps=500, pairs_per_batch=256, dead_after=40, save_every=300)
PLANTED = Shape(width=WIDTH, features=32, high=8, k=3)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Shards of passages in which one lasting feature is active throughout, and two fleeting ones, new at every token.

    Returns:
        The directory, and the directions of the lasting and the fleeting features.
    """
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(LASTING + FLEETING, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directory = tmp_path_factory.mktemp("planted")
    for shard in range(4):
        passages, rows = [], []
        for number in range(60):
            length = int(rng.integers(8, 20))
            strengths = np.zeros((length, LASTING + FLEETING))
            strengths[:, rng.integers(LASTING)] = rng.uniform(1, 2)
            for token in range(length):
                active = LASTING + rng.choice(FLEETING, 2, replace=False)
                strengths[token, active] = rng.uniform(1, 2, 2)
            rows.append(strengths @ directions)
            passages.append(Passage([0] * length, [], question=60 * shard + number, text=""))
        write_shard(directory / f"{shard:05d}", passages, torch.tensor(np.concatenate(rows)).float() * 7 + 3)
    return directory, torch.tensor(directions).float()


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    activations = Activations(planted[0], held_out=False)
    return train_dictionary(activations, PLANTED, QUICK, tmp_path_factory.mktemp("trained") / "training.pt")


def matched(dictionary, directions):
    """Of each planted direction the feature that it is matched with, and their cosine similarity."""
    similarity = directions @ dictionary.decoder.detach().T
    rows, columns = linear_sum_assignment(-similarity)
    return columns, similarity[rows, columns]


def test_planted_features_are_recovered_and_the_lasting_ones_are_high_level(planted, trained):
    columns, similarity = matched(trained, planted[1])
    assert similarity.mean() > 0.92 and (similarity > 0.85).float().mean() > 0.9
    assert (columns[:LASTING] < PLANTED.high).mean() > 0.8, "what lasts is high-level"
    quality = measure(trained, Activations(planted[0], held_out=True))
    assert quality.explained_variance > 0.9 and quality.active == pytest.approx(PLANTED.k, rel=0.2)
    assert quality.high_smoothness > 0.8 > 0.3 > quality.low_smoothness


def test_without_the_contrastive_term_the_same_features_do_not_last(planted, trained, tmp_path):
    """A plain BatchTopK of the same size, and the split alone: neither sorts features by how long they last."""
    held_out = Activations(planted[0], held_out=True)
    without = dataclasses.replace(QUICK, objective=Objective(contrastive=0))
    smoothness = {}
    for name, high in (("plain", PLANTED.features), ("split", PLANTED.high)):
        shape = dataclasses.replace(PLANTED, high=high)
        other = train_dictionary(Activations(planted[0], held_out=False), shape, without, tmp_path / name)
        smoothness[name] = measure(other, held_out).high_smoothness
    with_it = measure(trained, held_out).high_smoothness
    assert with_it > smoothness["split"] + 0.1 and with_it > smoothness["plain"] + 0.3


def test_an_interrupted_training_ends_with_the_same_dictionary(planted, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(step, losses):
        if step == 50:
            raise Interrupted

    activations = Activations(planted[0], held_out=False)
    short = dataclasses.replace(QUICK, steps=80, save_every=30)
    whole = train_dictionary(activations, PLANTED, short, tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        train_dictionary(activations, PLANTED, short, tmp_path / "training.pt", interrupt)
    steps = []
    again = train_dictionary(
        activations, PLANTED, short, tmp_path / "training.pt", lambda step, losses: steps.append(step)
    )
    assert steps[0] == 31, "the last checkpoint was at 30"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(DictionaryError, match=r"of another training: k was 3, is 4"):
        train_dictionary(activations, dataclasses.replace(PLANTED, k=4), short, tmp_path / "training.pt")
    (tmp_path / "training.pt").write_bytes(b"half a file")
    with pytest.raises(DictionaryError, match=r"training.pt is damaged .* Delete it to train the dictionary anew"):
        train_dictionary(activations, PLANTED, short, tmp_path / "training.pt")


def test_a_single_token_is_read_as_within_a_batch(planted, trained):
    """The threshold stands in for the selection by batches, in the model's own units."""
    inner = torch.cat([Activations(planted[0], held_out=True).of_passage(n) for n in range(6)])
    together = trained.encode(inner)
    assert torch.allclose(torch.stack([trained.encode(row) for row in inner]), together, atol=1e-4)
    selected = batch_top_k(torch.relu((trained.normalised(inner) - trained.centre) @ trained.encoder + trained.bias), 3)
    assert ((selected > 0) == (together > 0)).float().mean() > 0.98


# -- parts -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(2, 30), st.data())
def test_a_batch_keeps_its_largest_activations(tokens, features, data):
    k = data.draw(st.integers(1, features))
    found = torch.rand(tokens, features, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    kept = batch_top_k(found, k)
    assert int((kept > 0).sum()) == k * tokens
    assert kept[kept > 0].min() >= found[kept == 0].max() if k < features else torch.equal(kept, found)


def test_agreement_is_least_where_pairs_find_each_other():
    one = torch.eye(8)
    assert agreement_loss(one, one, 0.1) < 0.01
    assert agreement_loss(one, one.roll(1, 0), 0.1) > 5
    silent = torch.zeros(8, 4)
    assert agreement_loss(silent, silent, 0.1) == pytest.approx(math.log(8))


def test_loss_recovered_compares_with_the_mean(planted, trained):
    """A made-up model whose loss is the squared error of what it is given: what is recovered is explained variance."""
    held_out = Activations(planted[0], held_out=True)

    def loss(number, splice):
        inner = held_out.of_passage(number)
        given_to_it = inner if splice is None else splice(inner)
        passage = held_out.passages[number]
        return float((given_to_it - inner).square().sum()) / (len(passage.ids) - 1)

    quality = measure(trained, held_out, loss)
    assert quality.loss_recovered == pytest.approx(quality.explained_variance, abs=1e-3)
    assert measure(trained, held_out, lambda number, splice: 1.0).loss_recovered is None


# -- what cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"k": 1}, "k=1: a single active feature cannot be both"),
        ({"k": 99}, "k=99 is more than the 32 features"),
        ({"high": 0}, "0 high-level features of 32"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(sizes, message):
    with pytest.raises(DictionaryError, match=message):
        dataclasses.replace(PLANTED, **sizes)


def test_a_dictionary_of_another_width_is_refused(trained):
    with pytest.raises(DictionaryError, match="of width 32, these activations have 16: it is of another model"):
        trained.encode(torch.zeros(3, 16))


def test_activations_that_do_not_vary_are_refused():
    with pytest.raises(DictionaryError, match="do not vary"):
        Dictionary(PLANTED).fit_units(torch.ones(9, WIDTH))


def test_too_few_tokens_are_refused(tmp_path):
    write_shard(tmp_path / "00000", [Passage([0] * 9, [], 0, "")] * 20, torch.rand(180, WIDTH))
    with pytest.raises(DictionaryError, match=r"162 tokens with 144 adjacent pairs are too few .* Sample more answers"):
        train_dictionary(Activations(tmp_path, held_out=False), PLANTED, QUICK, tmp_path / "x.pt")


def test_shards_that_are_damaged_are_named(planted, tmp_path):
    for file in planted[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "00001.npy").read_bytes()
    (tmp_path / "00001.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DictionaryError, match=r"The shard 00001 in .* is damaged .* Delete it and run the same command"
    ):
        Activations(tmp_path, held_out=False)
    (tmp_path / "00001.npy").write_bytes((tmp_path / "00002.npy").read_bytes())
    with pytest.raises(DictionaryError, match=r"has activations of \d+ tokens, its passages have \d+"):
        Activations(tmp_path, held_out=False)
    (tmp_path / "00001.json").write_text("[{}]")
    with pytest.raises(DictionaryError, match="The shard 00001"):
        Activations(tmp_path, held_out=False)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(DictionaryError, match="holds no activations to train with"):
        Activations(tmp_path, held_out=False)
    with pytest.raises(DictionaryError, match="not finite in half precision"):
        write_shard(tmp_path / "00000", [Passage([0], [], 0, "")], torch.full((1, WIDTH), 1e6))


def test_questions_are_held_out_whole(planted):
    kept, out = (Activations(planted[0], held_out=held) for held in (False, True))
    assert len(out.passages) == 24 and len(kept.passages) == 216
    assert not {p.question for p in kept.passages} & {p.question for p in out.passages}
    pairs = out.pair_starts()
    before, after = out.pairs(pairs)
    assert len(pairs) == out.tokens - 24
    first = out.of_passage(0)
    assert torch.equal(before[: len(first) - 1], first[:-1]) and torch.equal(after[: len(first) - 1], first[1:])
