"""A teacher that estimates the Bayes conditional distribution (MCMI, arXiv 2401.08732).

It is fine-tuned with the conditional mutual information of input and output given the label as a reward,

    L = CE(t, y) - lambda CMI,    CMI = mean_x KL(P_x || Q_y),    P_x = softmax(t(x)), Q_y = mean of P_x over label y

Q is computed once, before the fine-tuning, and held fixed. With the centroids of the moment CMI is I(X; Y' | Y) =
sum_y pi_y H(Q_y) - mean_x H(P_x); with fixed ones it is that at the start only, and has no upper bound: too large a
lambda destroys the teacher. Its students are trained by Hinton's loss or any other.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_floats, as_labels, at_least_float32, check_count, check_mass, check_number, got
from kd.classification.inputs import cross_entropy
from kd.divergences import divergence, textbook_terms
from kd.typing import Array, Number

SMALLEST_PROBABILITY = 1e-12  # of a centroid, whose class may never have been seen


def mcmi_teacher(
    t: ArrayInput, y: ArrayInput, centroids: ArrayInput, *, weight: Number = 0.2, temperature: Number = 1.0
) -> Array:
    """The loss of the teacher in its second stage, CE(t, y) - weight CMI; see the module.

    Args:
        t: the logits of the teacher that is trained (B, C).
        y: labels (B).
        centroids: Q (C, C), one row for each label; no gradient goes into them.
        weight: lambda; the paper takes 0.15 to 0.8, by network.
        temperature: of P in the CMI; the centroids are then of the same one.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> t, y = jnp.array([[2.0, 0.0], [1.0, 0.0]]), jnp.array([0, 0])
        >>> print(f"{mcmi_teacher(t, y, class_centroids(jax.nn.softmax(t), y, 2), weight=1.0):.4f}")
        0.2018
    """
    check_number("weight", weight)
    cmi = conditional_information(t, y, centroids, temperature=temperature)
    (t,) = as_floats("B C", t=t)
    return cross_entropy(at_least_float32(t), jnp.asarray(y)) - weight * jnp.mean(cmi)


def conditional_information(t: ArrayInput, y: ArrayInput, centroids: ArrayInput, *, temperature: Number = 1.0) -> Array:
    """KL(P_x || Q_y) of each sample, whose mean is the conditional mutual information; see the module.

    Args:
        t: logits (B, C).
        y: labels (B).
        centroids: Q (C, C).
        temperature: of P.

    Returns:
        (B), with the gradient by t through both places where P stands.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> t = jnp.array([[0.0, 0.0]])
        >>> conditional_information(t, jnp.array([1]), jnp.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
        [0.0]
    """
    (t,) = as_floats("B C", t=t)
    (centroids,) = as_floats("C C", centroids=centroids)
    check_number("temperature", temperature, above=0)
    classes = t.shape[1]
    if centroids.shape != (classes, classes):
        raise ValueError(f"centroids: got {got(centroids)}, expected a float array (C, C) = ({classes}, {classes})")
    check_mass("centroids", centroids)
    y = as_labels(y, t.shape[:1], classes)
    Q = at_least_float32(jax.lax.stop_gradient(centroids))[y]
    log_p = jax.nn.log_softmax(at_least_float32(t) / temperature)
    # the centroid of a label without samples does not sum to 1
    return textbook_terms(divergence("reverse_kl"), jnp.log(jnp.maximum(Q, SMALLEST_PROBABILITY)), log_p).sum(1)


def class_centroids(P: ArrayInput, y: ArrayInput, C: int) -> Array:
    """Q_y, the mean of the probabilities over the samples of each label.

    Args:
        P: probabilities (B, V), of the whole training set.
        y: labels (B).
        C: number of labels.

    Returns:
        (C, V); 0 for a label without samples.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> class_centroids(jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([1, 1]), 2).tolist()
        [[0.0, 0.0], [0.75, 0.25]]
    """
    (P,) = as_floats("B V", P=P)
    check_count("C", C)
    y = as_labels(y, P.shape[:1], C)
    check_mass("P", P)
    total = jax.ops.segment_sum(at_least_float32(P), y, C)
    count = jax.ops.segment_sum(jnp.ones_like(y), y, C)
    return total / jnp.maximum(count, 1)[:, None]
