"""Logits and labels of a batch, checked and in float32 at least; the cross-entropy that the objectives share."""

import jax.numpy as jnp
import optax

from kd.checks import ArrayInput, as_floats, as_labels, at_least_float32
from kd.typing import Array


def as_batch(s: ArrayInput, t: ArrayInput) -> tuple[Array, Array]:
    """Logits (B, C) of student and teacher.

    Raises:
        ValueError: they are no float arrays of one shape.

    Example:
        >>> s, t = as_batch(jnp.zeros((2, 3), jnp.bfloat16), jnp.ones((2, 3)))
        >>> s.dtype
        dtype('float32')
    """
    s, t = as_floats("B C", s=s, t=t)
    return at_least_float32(s), at_least_float32(t)


def as_labelled_batch(s: ArrayInput, t: ArrayInput, y: ArrayInput) -> tuple[Array, Array, Array]:
    """Logits (B, C) of student and teacher and labels (B).

    Raises:
        ValueError: a shape, kind or label is not as stated.

    Example:
        >>> s, t, y = as_labelled_batch(jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.array([2]))
        >>> as_labelled_batch(s, t, y + 1)
        Traceback (most recent call last):
        ValueError: y: got 3 at [0], expected labels from 0 to 2
    """
    s, t = as_batch(s, t)
    return s, t, as_labels(y, s.shape[:1], s.shape[1])


def cross_entropy(s: Array, y: Array) -> Array:
    """Mean over the batch of -log softmax(s)_y.

    Example:
        >>> print(f"{cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])):.4f}")
        1.3863
    """
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(s, y))
