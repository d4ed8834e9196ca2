"""Balanced divergence (BD-KD, arXiv 2212.12965): teacher and student are trained together.

    student   CE(s, y) + lambda tau^2 mean(w^f KL(p || q) + w^r KL(q || p))
    teacher   CE(t, y) + lambda_t tau^2 mean KL(p || q)

w^f = delta where H(p) > H(q), the student being too certain, and else 1; w^r = delta where H(q) > H(p), and else 1.
Each loss has no gradient into the other network. Official code was not found: the weights are those of ABKD's
implementation, whose delta is 3, and the teacher's term and the scale of both are ours where the paper's were not to be
had. The weights sum to 1 + delta: a fair comparison multiplies by 2 / (1 + delta).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, check_number
from kd.classification.inputs import as_batch, as_labelled_batch, cross_entropy
from kd.divergences import token_divergence
from kd.typing import Array, Number


class BothLosses(NamedTuple):
    """The losses of two networks that learn from each other; their sum has the gradients of both."""

    student: Array
    teacher: Array


def bd_kd(
    s: ArrayInput,
    t: ArrayInput,
    y: ArrayInput,
    *,
    delta: Number = 3.0,
    temperature: Number = 4.0,
    kd_weight: Number = 1.0,
    teacher_weight: Number = 1.0,
    tau_squared: bool = True,
) -> BothLosses:
    """Losses of student and teacher; see the module.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        y: labels (B).
        delta: how much more the chosen divergence weighs.
        temperature: tau of the divergences; the entropies are at 1.
        kd_weight: lambda.
        teacher_weight: lambda_t.
        tau_squared: whether tau^2 is there.

    Returns:
        Both losses.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]])
        >>> losses = bd_kd(s, t, jnp.array([0]), temperature=1.0)
        >>> print(f"{losses.student:.4f} {losses.teacher:.4f}")
        0.6282 0.1941
    """
    s, t, y = as_labelled_batch(s, t, y)
    for name, x in (("kd_weight", kd_weight), ("teacher_weight", teacher_weight)):
        check_number(name, x)
    forward_weight, reverse_weight = bd_weights(s, t, delta=delta)

    def kl(kind: str, trained: Array, fixed: Array) -> Array:
        return token_divergence(kind, trained, fixed, temperature=temperature, tau_squared=tau_squared)

    forward, reverse = kl("forward_kl", s, t), kl("reverse_kl", s, t)
    # to the teacher the student is the fixed one
    towards_student = kl("reverse_kl", t, s)
    student = cross_entropy(s, y) + kd_weight * jnp.mean(forward_weight * forward + reverse_weight * reverse)
    return BothLosses(student, cross_entropy(t, y) + teacher_weight * jnp.mean(towards_student))


def bd_weights(s: ArrayInput, t: ArrayInput, *, delta: Number = 3.0) -> tuple[Array, Array]:
    """Weights of KL(p || q) and KL(q || p) of each sample, from the two entropies; both 1 where these are equal.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        delta: the larger weight, above 0.

    Returns:
        (B) and (B), without gradient.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> forward, reverse = bd_weights(jnp.array([[9.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
        >>> forward.tolist(), reverse.tolist()
        ([3.0, 1.0], [1.0, 3.0])
    """
    s, t = as_batch(s, t)
    check_number("delta", delta, above=0)
    teacher, student = entropy(jax.lax.stop_gradient(t)), entropy(jax.lax.stop_gradient(s))
    return jnp.where(teacher > student, delta, 1.0), jnp.where(student > teacher, delta, 1.0)


def entropy(z: Array) -> Array:
    """-sum p log p of softmax(z), along the last axis; a logit may be -inf.

    Example:
        >>> print(f"{entropy(jnp.zeros(4)):.4f}")
        1.3863
    """
    log_p = jax.nn.log_softmax(z)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p == -jnp.inf, 0, log_p), axis=-1)
