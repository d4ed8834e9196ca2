"""Items and labels in context: the mixture-of-Gaussians sequences of Reddy (arXiv 2312.03002).

A sequence shows N items, each followed by its label, and then a target item whose label is asked for. The label can be
known from the weights (the class was seen in training) or from the context (an item of the class is in it).

Translation: K classes, L labels, N pairs, D dimensions, B copies of a class in a bursty sequence.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sources.markov import is_count

NOVEL_CLASSES = 128
"""Number of fresh classes that the sequences of one batch with unknown classes draw from."""


class Means(NamedTuple):
    """What stays the same through training.

    Args:
        classes: mean of each class, (K, D).
        labels: vector of each label, (L, D).
    """

    classes: jax.Array
    labels: jax.Array


class Sequences(NamedTuple):
    """A batch.

    Args:
        inputs: (batch, 2 N + 1, 2 Nmax + 1 + D): item, label, item, label, ..., target item.
        classes: class of each item, the target last, (batch, N + 1); of the fresh ones where `novel`.
        labels: label of each item, the target's (the answer) last, (batch, N + 1).
        bursty: whether the target's class is in the context by design, (batch,).
        novel: whether the classes are fresh ones, (batch,).
    """

    inputs: jax.Array
    classes: jax.Array
    labels: jax.Array
    bursty: jax.Array
    novel: jax.Array


@dataclass(frozen=True)
class MixtureSequences:
    """The task; the defaults are those of the paper where it has any.

    Args:
        classes: K, a multiple of L; class c has label c mod L.
        labels: L, of which NOVEL_CLASSES is a multiple.
        pairs: N.
        copies: B, a divisor of N: a bursty sequence has N / B classes.
        dimension: D.
        noise: eps, how far items scatter around the mean of their class.
        exponent: alpha of the law of ranks.
        most_pairs: Nmax, the N that positions have room for.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> task = MixtureSequences(classes=64, labels=16, pairs=4, copies=2)
        >>> means = task.means(jax.random.key(0))
        >>> task.sample(jax.random.key(1), means, 5, bursty=0.5, novel=0.1).inputs.shape
        (5, 9, 128)
    """

    classes: int = 1024
    labels: int = 32
    pairs: int = 8
    copies: int = 1
    dimension: int = 63
    noise: float = 0.1
    exponent: float = 0.0
    most_pairs: int = 32

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("classes", "labels", "pairs", "copies", "dimension"):
            if not is_count(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected an integer, 1 or more")
        if self.classes % self.labels or NOVEL_CLASSES % self.labels:
            raise ValueError(
                f"labels: got {self.labels} for {self.classes} classes; expected a divisor of both these and of "
                f"{NOVEL_CLASSES}, the number of novel classes"
            )
        if self.pairs % self.copies:
            raise ValueError(f"copies: got {self.copies}; expected a divisor of the number of pairs, {self.pairs}")
        if self.pairs // self.copies > min(self.classes, NOVEL_CLASSES):
            raise ValueError(f"pairs: got {self.pairs}; expected no more different classes than there are")
        if not is_count(self.most_pairs) or self.most_pairs < self.pairs:
            raise ValueError(f"most_pairs: got {self.most_pairs}; expected an integer, {self.pairs} or more")
        if not 0 <= self.noise < np.inf:
            raise ValueError(f"noise: got {self.noise}; expected a number, 0 or more")
        if not np.isfinite(self.exponent):
            raise ValueError(f"exponent: got {self.exponent}; expected a number")

    def means(self, key: jax.Array) -> Means:
        """Means of the classes and vectors of the labels: mu ~ N(0, I / D), so E |mu|^2 = 1.

        Args:
            key: JAX random key.

        Returns:
            The two arrays.
        """
        keys = jax.random.split(key)
        return Means(*map(self._vectors, keys, (self.classes, self.labels)))

    def class_law(self) -> np.ndarray:
        """Law of the classes by rank: P(c) proportional to (c + 1)^-alpha, (K,) float64."""
        weights = np.arange(1, self.classes + 1, dtype=np.float64) ** -self.exponent
        return weights / weights.sum()

    def items(self, key: jax.Array, means: jax.Array) -> jax.Array:
        """Noisy items: x = (mu + eps eta) / sqrt(1 + eps^2), eta ~ N(0, I / D), so E |x|^2 = 1.

        Args:
            key: JAX random key.
            means: mu of each item, (..., D).

        Returns:
            The shape.
        """
        eta = jax.random.normal(key, means.shape) / np.sqrt(self.dimension)
        return (means + self.noise * eta) / np.sqrt(1 + self.noise**2)

    def sample(
        self, key: jax.Array, means: Means, batch: int, *, bursty: float, novel: float, swapped: bool = False
    ) -> Sequences:
        """A batch of the training distribution, or of one of its tests.

        A bursty sequence has N / B different classes, B times each, shuffled, and its target is an item of one of them,
        each with the same probability; else context and target are independent draws from the law of ranks. Sequences
        of novel classes are always bursty: their 128 classes are drawn anew for the batch and are equally likely.

        Tests: in weights, `bursty=0, novel=0` (the target's class is in the context only by chance); in context (IC),
        `bursty=1, novel=1`; labels swapped (IC2), `bursty=1, novel=0, swapped=True`.

        Args:
            key: JAX random key.
            means: from `means`.
            batch: number of sequences.
            bursty: share p_B of bursty sequences among those of known classes.
            novel: share p_C of sequences of novel classes.
            swapped: whether known classes have the label after their own: label + 1 mod L.

        Returns:
            The batch.

        Raises:
            ValueError: if a share is outside [0, 1].
        """
        for name, share in (("bursty", bursty), ("novel", novel)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: got {share}; expected a share in [0, 1]")
        return _sample(self, key, means, batch, float(bursty), float(novel), bool(swapped))

    def _vectors(self, key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, self.dimension)) / np.sqrt(self.dimension)


def _without_replacement(key: jax.Array, law: np.ndarray, shape: tuple[int, int]) -> jax.Array:
    """Different classes in each row, drawn one after the other: the largest of log P(c) plus Gumbel noise."""
    batch, count = shape
    ranked = jnp.log(jnp.asarray(law, jnp.float32))[None] + jax.random.gumbel(key, (batch, len(law)))
    return jax.lax.top_k(ranked, count)[1]


def _shuffled(key: jax.Array, chosen: jax.Array, copies: int) -> jax.Array:
    """Context and target: each class `copies` times in random order, then one of them again."""
    context = jnp.tile(chosen, copies)
    random = jax.random.uniform(key, (len(chosen), context.shape[1] + 1))
    context = jnp.take_along_axis(context, jnp.argsort(random[:, :-1], axis=1), axis=1)
    position = jnp.floor(random[:, -1:] * context.shape[1]).astype(jnp.int32)
    return jnp.concatenate([context, jnp.take_along_axis(context, position, axis=1)], axis=1)


@partial(jax.jit, static_argnames=("task", "batch"))
def _sample(
    task: MixtureSequences, key: jax.Array, means: Means, batch: int, bursty: float, novel: float, swapped: bool
) -> Sequences:
    names = ("kinds", "fresh", "known", "single", "order", "new", "noise", "shift")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    kinds = jax.random.uniform(keys["kinds"], (2, batch))
    is_novel = kinds[0] < novel
    is_bursty = (kinds[1] < bursty) | is_novel
    law = task.class_law()
    shape = (batch, task.pairs // task.copies)
    fresh = _without_replacement(keys["fresh"], np.full(NOVEL_CLASSES, 1 / NOVEL_CLASSES), shape)
    chosen = jnp.where(is_novel[:, None], fresh, _without_replacement(keys["known"], law, shape))
    ranks = jax.random.uniform(keys["single"], (batch, task.pairs + 1))
    alone = jnp.searchsorted(jnp.asarray(np.cumsum(law)[:-1], jnp.float32), ranks, side="right")
    classes = jnp.where(is_bursty[:, None], _shuffled(keys["order"], chosen, task.copies), alone)
    labels = (classes + (swapped & ~is_novel)[:, None]) % task.labels
    new = task._vectors(keys["new"], NOVEL_CLASSES)
    # Either look-up is out of range, hence clamped, only where the other one is taken.
    centres = jnp.where(is_novel[:, None, None], new[classes], means.classes[classes])
    items = task.items(keys["noise"], centres)
    pairs = jnp.stack([items, means.labels[labels]], axis=2).reshape(batch, 2 * task.pairs + 2, task.dimension)
    inputs = jnp.concatenate([_positions(task, keys["shift"], batch), pairs[:, :-1]], axis=2)
    return Sequences(inputs, classes.astype(jnp.int32), labels.astype(jnp.int32), is_bursty, is_novel)


def _positions(task: MixtureSequences, key: jax.Array, batch: int) -> jax.Array:
    """One-hot positions (batch, 2 N + 1, 2 Nmax + 1), shifted by a random number that is the same along a sequence."""
    length, room = 2 * task.pairs + 1, 2 * task.most_pairs + 1
    shift = jax.random.randint(key, (batch, 1), 0, room - length + 1)
    return jax.nn.one_hot(shift + np.arange(length)[None], room)
