"""More diverse experts with consistency self-distillation (MDCS, arXiv 2308.09922), for long-tailed classes.

K experts see the classes with different priors; with n_c the samples of class c,

    diversity     sum_k CE(z_k + tau_k log n, y),    tau = -0.5, 1, 2.5: experts of many, all and few samples
    consistency   mean over chosen i of KL(softmax(z_k(x1)) || softmax(z_k(x2))), summed over the experts

x1 and x2 are a weakly and a strongly augmented view; samples are chosen of which the expert is right on x1. Only x2 has
a gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kd.checks import ArrayInput, as_floats, as_labels, at_least_float32, got, known
from kd.classification.inputs import cross_entropy
from kd.divergences import reduce_tokens, token_divergence
from kd.typing import Array

EXPERTS = (-0.5, 1.0, 2.5)


def mdcs_diversity(
    z: ArrayInput, y: ArrayInput, counts: ArrayInput, *, taus: tuple[float | int, ...] = EXPERTS
) -> Array:
    """The sum over the experts of the cross-entropy with their priors; see the module.

    Args:
        z: logits of the experts (K, B, C).
        y: labels (B).
        counts: samples of each class (C), integers or floats, at least 1; a common factor changes nothing.
        taus: an exponent for each expert.

    Returns:
        One number, each expert's a mean over the batch.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> z, y = jnp.zeros((3, 1, 2)), jnp.array([0])
        >>> print(f"{mdcs_diversity(z, y, jnp.array([1.0, 1.0])):.4f}")
        2.0794
    """
    (z,) = as_floats("K B C", z=z)
    if isinstance(counts, jax.Array | np.ndarray) and jnp.issubdtype(counts.dtype, jnp.integer):
        counts = counts.astype(np.float32)
    (counts,) = as_floats("C", counts=counts)
    if counts.shape != z.shape[2:]:
        raise ValueError(f"counts: got {got(counts)}, expected a float array (C,) = ({z.shape[2]},)")
    if known(counts) and not (np.asarray(counts) > 0).all():
        raise ValueError(f"counts: got {float(np.asarray(counts).min()):g}, expected at least one sample of each class")
    if len(taus) != len(z):
        raise ValueError(f"taus: got {len(taus)}, expected one for each of the {len(z)} experts")
    y = as_labels(y, z.shape[1:2], z.shape[2])
    prior = jnp.asarray(taus, jnp.float32)[:, None] * jnp.log(at_least_float32(counts))[None]
    return jnp.sum(jax.vmap(cross_entropy, (0, None))(at_least_float32(z) + prior[:, None], y))


def mdcs_consistency(weak: ArrayInput, strong: ArrayInput, y: ArrayInput) -> Array:
    """The sum over the experts of their consistency on the samples that they are confident of; see the module.

    Args:
        weak: logits of the experts on weakly augmented samples (K, B, C).
        strong: on strongly augmented ones (K, B, C).
        y: labels (B).

    Returns:
        One number; an expert that is right nowhere adds 0.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> weak, strong = jnp.array([[[1.0, 0.0], [1.0, 0.0]]]), jnp.zeros((1, 2, 2))
        >>> print(f"{mdcs_consistency(weak, strong, jnp.array([0, 1])):.4f}")
        0.1109
    """
    weak, strong = as_floats("K B C", weak=weak, strong=strong)
    y = as_labels(y, weak.shape[1:2], weak.shape[2])
    chosen = jnp.argmax(weak, axis=2) == y[None]
    value = token_divergence("forward_kl", strong, weak, mask=chosen)
    return jnp.sum(jax.vmap(reduce_tokens)(value, chosen))
