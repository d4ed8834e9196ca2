"""Distillation from a stronger teacher (DIST, arXiv 2205.10536): correlations of rows and of columns.

    inter = mean_i (1 - rho(q_i, p_i)),    intra = mean_c (1 - rho(q^c, p^c))

rho is Pearson's correlation, q_i a sample's probabilities and q^c those that the samples of the batch give to a class.
A positive affine map of a row leaves inter as it is, one of a column intra. With two classes rho of a row is 1 or -1,
and has no gradient.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, check_number
from kd.classification.inputs import as_labelled_batch, cross_entropy
from kd.typing import Array, Number

SMALLEST_PRODUCT = 1e-8  # of two norms for which there is a correlation


def dist(
    s: ArrayInput,
    t: ArrayInput,
    y: ArrayInput,
    *,
    beta: Number = 1.0,
    gamma: Number = 1.0,
    temperature: Number = 1.0,
    ce_weight: Number = 1.0,
    tau_squared: bool = False,
) -> Array:
    """ce_weight CE(s, y) + beta inter + gamma intra.

    The intra term is of the batch that the function is given: where it is one part of a larger one, gather first.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        y: labels (B).
        beta: weight of the correlations of rows.
        gamma: weight of those of columns.
        temperature: of both.
        ce_weight: of the labels.
        tau_squared: whether the two terms are multiplied by tau^2, as in torchdistill and not in the released code.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated, or the batch is one sample, which has no correlation of columns.

    Example:
        >>> s = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
        >>> print(f"{dist(s, s + 1.0, jnp.array([2, 1]), ce_weight=0.0):.4f}")
        0.0000
    """
    s, t, y = as_labelled_batch(s, t, y)
    check_number("temperature", temperature, above=0)
    for name, x in (("beta", beta), ("gamma", gamma), ("ce_weight", ce_weight)):
        check_number(name, x)
    if len(s) < 2:
        raise ValueError(f"s: got {len(s)} sample, expected at least 2: the correlations of columns are over the batch")
    q = jax.nn.softmax(s / temperature)
    p = jax.nn.softmax(jax.lax.stop_gradient(t) / temperature)
    inter, intra = jnp.mean(1 - correlation(q, p)), jnp.mean(1 - correlation(q.T, p.T))
    factor = temperature**2 if tau_squared else 1.0
    return ce_weight * cross_entropy(s, y) + factor * (beta * inter + gamma * intra)


def correlation(x: ArrayInput, y: ArrayInput) -> Array:
    """Pearson's correlation of the rows of two arrays; 0, with gradient 0, where one does not vary.

    Args:
        x: (B, D).
        y: (B, D).

    Returns:
        (B).

    Raises:
        ValueError: they are no float arrays of one shape.

    Example:
        >>> x = jnp.array([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
        >>> correlation(x, 1.0 - 2.0 * x).round(5).tolist()
        [-1.0, 0.0]
    """
    x, y = as_floats("B D", x=x, y=y)
    x, y = (each - each.mean(1, keepdims=True) for each in (x, y))
    squared = jnp.sum(x * x, 1) * jnp.sum(y * y, 1)
    varies = squared > SMALLEST_PRODUCT**2
    return jnp.where(varies, jnp.sum(x * y, 1), 0) / jnp.sqrt(jnp.where(varies, squared, 1))
