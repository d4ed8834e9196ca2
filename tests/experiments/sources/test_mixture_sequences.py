"""Items and labels in context: norms, copies, who is in the context, labels, positions."""

import math

import jax
import numpy as np
import pytest

from experiments.sources import MixtureSequences
from experiments.sources.mixture_sequences import NOVEL_CLASSES, Means, Sequences

TASK = MixtureSequences(classes=96, labels=16, pairs=6, copies=2, exponent=0.7, most_pairs=8)
BATCH = 1500


@pytest.fixture(scope="module")
def drawn() -> tuple[Means, Sequences]:
    means = TASK.means(jax.random.key(0))
    batch = TASK.sample(jax.random.key(1), means, BATCH, bursty=0.6, novel=0.3)
    return means, Sequences(*map(np.asarray, batch))


@pytest.mark.slow
def test_shares(drawn: tuple) -> None:
    _, batch = drawn
    for found, share in ((batch.novel.mean(), 0.3), (batch.bursty[~batch.novel].mean(), 0.6)):
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / (0.7 * BATCH))
    assert batch.bursty[batch.novel].all()


def test_bursty_contexts_repeat_each_class(drawn: tuple) -> None:
    """N / B classes, B times each; the target is one of them, in each place of the shuffled context equally often."""
    _, batch = drawn
    for classes in batch.classes[batch.bursty]:
        _, counts = np.unique(classes[:-1], return_counts=True)
        assert (counts == TASK.copies).all()
        assert classes[-1] in classes[:-1]
    first = batch.classes[batch.bursty][:, 0] == batch.classes[batch.bursty][:, -1]
    neighbours = batch.classes[batch.bursty][:, 0] == batch.classes[batch.bursty][:, 1]
    for found, share in ((first, TASK.copies / TASK.pairs), (neighbours, (TASK.copies - 1) / (TASK.pairs - 1))):
        assert abs(found.mean() - share) < 4 * math.sqrt(share * (1 - share) / len(found))


def test_other_contexts_follow_the_ranks(drawn: tuple) -> None:
    """Classes are independent draws, so the target is in the context by chance only."""
    _, batch = drawn
    classes = batch.classes[~batch.bursty]
    law = TASK.class_law()
    np.testing.assert_allclose(law[9] / law[0], 10**-0.7, rtol=1e-12)
    frequency = np.bincount(classes.ravel(), minlength=TASK.classes) / classes.size
    assert np.all(np.abs(frequency - law) < 4.5 * np.sqrt(law / classes.size))
    chance = float(law @ (1 - (1 - law) ** TASK.pairs))
    inside = (classes[:, :-1] == classes[:, -1:]).any(axis=1).mean()
    assert abs(inside - chance) < 4 * math.sqrt(chance / len(classes))


@pytest.mark.slow
def test_vectors(drawn: tuple) -> None:
    """E |x|^2 = 1; items scatter around the mean of their class, labels do not; positions share one shift."""
    means, batch = drawn
    room = 2 * TASK.most_pairs + 1
    positions, vectors = batch.inputs[..., :room], batch.inputs[..., room:]
    places = positions.argmax(axis=2)
    assert (positions.sum(axis=2) == 1).all()
    assert (np.diff(places, axis=1) == 1).all()
    assert set(places[:, 0]) == set(range(room - 2 * TASK.pairs))
    np.testing.assert_allclose(vectors[:, 1::2], np.asarray(means.labels)[batch.labels[:, :-1]], atol=1e-6)
    known = ~batch.novel
    noise = vectors[known, ::2] * math.sqrt(1 + 0.1**2) - np.asarray(means.classes)[batch.classes[known]]
    variance = (noise**2).mean() * TASK.dimension
    assert abs(variance - 0.01) < 4 * 0.01 * math.sqrt(2 / noise.size)
    noisy = MixtureSequences(noise=2.0)
    norms = (noisy.items(jax.random.key(3), noisy.means(jax.random.key(2)).classes) ** 2).sum(axis=1)
    assert abs(norms.mean() - 1) < 4 * norms.std() / math.sqrt(len(norms))


def test_labels(drawn: tuple) -> None:
    means, batch = drawn
    np.testing.assert_array_equal(batch.labels, batch.classes % TASK.labels)
    assert batch.classes[batch.novel].max() >= TASK.classes
    swapped = TASK.sample(jax.random.key(1), means, BATCH, bursty=1, novel=0, swapped=True)
    np.testing.assert_array_equal(swapped.labels, (np.asarray(swapped.classes) + 1) % TASK.labels)
    assert bool(swapped.bursty.all())


def test_novel_classes_are_drawn_for_each_batch(drawn: tuple) -> None:
    """Two items of one novel class are close to each other and far from all known means."""
    means, batch = drawn
    room = 2 * TASK.most_pairs + 1
    items, classes = batch.inputs[batch.novel][:, ::2, room:], batch.classes[batch.novel]
    known = np.linalg.norm(items[:, -1][:, None] - np.asarray(means.classes), axis=2)
    partner = (classes[:, :-1] == classes[:, -1:]).argmax(axis=1)
    twin = np.linalg.norm(items[:, -1] - items[np.arange(len(items)), partner], axis=1)
    assert twin.max() < 0.35 < 0.8 < known.min()
    again = TASK.sample(jax.random.key(7), means, BATCH, bursty=0, novel=1)
    assert int(again.classes.max()) < NOVEL_CLASSES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 100}, "labels: got 32 for 100 classes"),
        ({"labels": 24, "classes": 48}, "labels: got 24"),
        ({"copies": 3}, "copies: got 3"),
        ({"pairs": 0}, "pairs: got 0"),
        ({"classes": 4, "labels": 4}, "no more different classes"),
        ({"most_pairs": 7}, "most_pairs: got 7"),
        ({"noise": -1.0}, "noise: got -1.0"),
        ({"noise": np.inf}, "noise: got inf"),
        ({"exponent": np.nan}, "exponent: got nan"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureSequences(**arguments)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_are_checked(share: float, drawn: tuple) -> None:
    with pytest.raises(ValueError, match="bursty: got"):
        TASK.sample(jax.random.key(0), drawn[0], 1, bursty=share, novel=0)
    with pytest.raises(ValueError, match="novel: got"):
        TASK.sample(jax.random.key(0), drawn[0], 1, bursty=0, novel=share)
