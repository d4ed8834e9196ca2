"""Weights and temperatures that follow the epochs. What is linear is optax's."""

import jax.numpy as jnp
import optax

from kd.checks import check_count, check_number
from kd.typing import Array, Number


def dkd_warmup(epoch: Number, *, epochs: int = 20) -> Array:
    """Weight of the teacher in DKD's first epochs: min(epoch / epochs, 1).

    Args:
        epoch: from 0.
        epochs: after which it is 1.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> float(dkd_warmup(5)), float(dkd_warmup(40))
        (0.25, 1.0)
    """
    return _line(epoch, 0.0, 1.0, epochs)


def mdcs_weight(epoch: Number, *, largest: Number = 0.6, epochs: int = 20) -> Array:
    """Weight of MDCS's consistency: largest min(epoch / epochs, 1).

    Args:
        epoch: from 0.
        largest: what it ends at.
        epochs: after which it is that.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> print(f"{mdcs_weight(10):.2f}")
        0.30
    """
    return _line(epoch, 0.0, largest, epochs)


def temperature_anneal(epoch: Number, *, start: Number, epochs: int) -> Array:
    """A temperature that falls to 1 in the last epoch, as in SinKD: start + (1 - start) epoch / (epochs - 1).

    Args:
        epoch: from 0 to epochs - 1.
        start: the temperature of the first epoch.
        epochs: of the training, at least 2.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> [float(temperature_anneal(epoch, start=4.0, epochs=3)) for epoch in range(3)]
        [4.0, 2.5, 1.0]
    """
    check_number("start", start, above=0)
    check_count("epochs", epochs, at_least=2)
    return _line(epoch, start, 1.0, epochs - 1)


def _line(epoch: Number, start: Number, end: Number, epochs: int) -> Array:
    check_number("epoch", epoch, at_least=0)
    check_count("epochs", epochs)
    return jnp.asarray(optax.linear_schedule(start, end, epochs)(jnp.asarray(epoch, jnp.float32)))
