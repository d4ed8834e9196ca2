"""Digits as teachers and students of several papers see them: the parts, the few images to learn from, their order.

The images are split once, for all seeds: 719 to test on (40 %), and of the others 278 to choose temperatures on and 800
to train teachers on. A student sees few of these 800, drawn by its seed, with the same number from each class.
Importing this module imports no JAX.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments import results
from experiments.training.config import require

if TYPE_CHECKING:
    from experiments.sources.digits import Digits

CLASSES = 10
TEST, VALIDATION = 719, 278
KINDS = ("mlp", "conv")
TUNING = 1_000_000


class Parts(NamedTuple):
    """The images by what they are for, and the hash of all."""

    train: Digits
    validation: Digits
    test: Digits
    sha256: str


@dataclass(frozen=True)
class FitConfig:
    """A training with Adam, whose rate falls to 0 along a cosine."""

    steps: int = 2000
    """Updates."""
    batch_size: int = 64
    """Images per update."""
    learning_rate: float = 3e-3
    """At the start."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require("steps", self.steps, 1)
        require("batch_size", self.batch_size, 2)
        require("learning_rate", self.learning_rate, 0)


@dataclass(frozen=True)
class DigitsConfig(results.Config):
    """Teachers and students of every seed: a seed has its own teacher, images, order and initial values."""

    seeds: tuple[int, ...] = tuple(range(10))
    """One teacher, and one student of each kind, per seed."""
    teacher: str = "mlp-256-256"
    """Kind and widths of the teacher, trained on the labels of 800 images."""
    student: str = "mlp-16"
    """Kind and widths of the student."""
    images: int = 100
    """Labelled images that a student learns from, the same with every objective."""
    teacher_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=1000, learning_rate=1e-3))
    """Training of the teacher."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Training of the student, the same for every objective."""
    at_once: int = 1
    """Networks that are computed at the same time; one after the other is fastest on a CPU."""

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        super().__post_init__()
        for name in ("teacher", "student"):
            read_network(getattr(self, name), name)
        require("images", self.images, CLASSES, 700)
        require("at_once", self.at_once, 1)
        if max(self.seeds) >= TUNING:
            raise ValueError(f"seeds: got {max(self.seeds)}, expected below {TUNING}, where those begin that choose")


def tuning_seeds(count: int) -> tuple[int, ...]:
    """Seeds with which something is chosen, and of which nothing is reported.

    Example:
        >>> tuning_seeds(2)
        (1000000, 1000001)
    """
    return tuple(range(TUNING, TUNING + count))


def digit_parts() -> Parts:
    """The three parts.

    Returns:
        800 images to train on, 278 to choose on, 719 to test on.

    Example:
        >>> [len(part) for part in digit_parts()[:3]]
        [800, 278, 719]
    """
    from experiments.sources.digits import load_digits

    digits = load_digits()
    rest, test = digits.split(TEST / len(digits))
    train, validation = rest.split(VALIDATION / len(rest), seed=1)
    return Parts(train, validation, test, digits.sha256)


def transfer_rows(labels: np.ndarray, count: int, seed: int, without: int | None = None) -> np.ndarray:
    """Rows of the images that a student learns from, as many of each class as of any other, up to one.

    Args:
        labels: of the images there are (n,).
        count: how many are drawn, before any class is left out.
        seed: of the draw.
        without: a class of which none is kept.

    Returns:
        Rows, ascending.

    Raises:
        ValueError: there are not so many images of a class.

    Example:
        >>> labels = np.arange(30) % 10
        >>> rows = transfer_rows(labels, 20, seed=0)
        >>> np.bincount(labels[rows]).tolist(), len(transfer_rows(labels, 20, seed=0, without=3))
        ([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 18)
    """
    shuffled = np.random.default_rng([seed, count]).permutation(len(labels))
    chosen = []
    for label in range(CLASSES):
        share = count // CLASSES + (label < count % CLASSES)
        there = shuffled[labels[shuffled] == label]
        if len(there) < share:
            raise ValueError(f"count: got {count}, expected at most {len(there)} images of the class {label}")
        chosen.append(there[: 0 if label == without else share])
    return np.sort(np.concatenate(chosen))


def long_tail(labels: np.ndarray, most: int, imbalance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Rows of images of which the classes have ever fewer, and how many each class has.

    .. math:: n_k = most \cdot imbalance^{-k / 9}

    for the class at rank k; which class has which rank is drawn by the seed.

    Args:
        labels: of the images there are (n,).
        most: images of the most frequent class.
        imbalance: of the most frequent to the rarest.
        seed: of the draw.

    Returns:
        Rows, ascending, and the number of images of each class (10,).

    Raises:
        ValueError: there are not so many images of a class.

    Example:
        >>> rows, counts = long_tail(np.arange(200) % 10, 20, 10.0, seed=0)
        >>> sorted(counts.tolist(), reverse=True), len(rows)
        ([20, 15, 12, 9, 7, 6, 4, 3, 3, 2], 81)
    """
    random = np.random.default_rng([seed, most, 2])
    rank = random.permutation(CLASSES)
    counts = np.maximum(1, np.round(most * imbalance ** (-rank / (CLASSES - 1)))).astype(int)
    shuffled, chosen = random.permutation(len(labels)), []
    for label, count in enumerate(counts):
        there = shuffled[labels[shuffled] == label]
        if len(there) < count:
            raise ValueError(f"most: got {most}, expected at most {len(there)} images of the class {label}")
        chosen.append(there[:count])
    return np.sort(np.concatenate(chosen)), counts


def schedule(rows: np.ndarray, fit: FitConfig, seed: int) -> np.ndarray:
    """The rows of each update: one random order of all after the other, cut into batches.

    Args:
        rows: to learn from (n,).
        fit: updates and batch size.
        seed: of the orders.

    Returns:
        (steps, batch_size) int32.

    Example:
        >>> schedule(np.array([4, 7]), FitConfig(steps=3, batch_size=2), seed=0).sum(axis=1).tolist()
        [11, 11, 11]
    """
    random, total = np.random.default_rng([seed, len(rows), 1]), fit.steps * fit.batch_size
    rounds = -(-total // len(rows))
    orders = random.permuted(np.tile(rows, (rounds, 1)), axis=1)
    return orders.reshape(-1)[:total].reshape(fit.steps, fit.batch_size).astype(np.int32)


def read_network(name: str, field: str) -> tuple[str, tuple[int, ...]]:
    """Kind and widths of a network by its name.

    Args:
        name: "mlp" or "conv" and the width of each hidden layer.
        field: for the error message.

    Returns:
        (kind, widths).

    Raises:
        ValueError: it is no such name.

    Example:
        >>> read_network("mlp-256-256", "teacher")
        ('mlp', (256, 256))
    """
    kind, *widths = name.split("-")
    if kind not in KINDS or not widths or not all(width.isdecimal() and int(width) for width in widths):
        raise ValueError(f"{field}: got {name!r}, expected mlp or conv and widths, such as mlp-256-256")
    return kind, tuple(int(width) for width in widths)
