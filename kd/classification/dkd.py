"""Decoupled knowledge distillation (DKD, arXiv 2203.08679): target and other classes apart.

With b^p = (p_y, 1 - p_y) and p' = p / (1 - p_y) on the C - 1 other classes, of both,

    KL(p || q) = TCKD + (1 - p_y) NCKD,    TCKD = KL(b^p || b^q),    NCKD = KL(p' || q')

and DKD weights the two by constants instead. Everything is in logarithms, log(1 - p_y) a log-sum-exp of the others:
the released code takes the logarithm of sums of probabilities, which is -inf for a confident teacher.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, check_number
from kd.classification.inputs import as_labelled_batch, cross_entropy
from kd.divergences import divergence, terms
from kd.typing import Array, Number


def dkd(
    s: ArrayInput,
    t: ArrayInput,
    y: ArrayInput,
    *,
    alpha: Number = 1.0,
    beta: Number = 8.0,
    temperature: Number = 4.0,
    ce_weight: Number = 1.0,
    kd_weight: Number = 1.0,
) -> Array:
    """Decoupled distillation: ce_weight CE(s, y) + kd_weight tau^2 mean(alpha TCKD + beta NCKD).

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        y: labels (B).
        alpha: weight of the target class.
        beta: weight of the others; the paper takes 2 to 8, by pair of networks.
        temperature: tau.
        ce_weight: of the labels.
        kd_weight: of the teacher; `dkd_warmup` in the first epochs.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]])
        >>> print(f"{dkd(s, t, jnp.array([0])):.4f}")
        0.4329
    """
    for name, x in (("alpha", alpha), ("beta", beta), ("ce_weight", ce_weight), ("kd_weight", kd_weight)):
        check_number(name, x)
    s, t, y = as_labelled_batch(s, t, y)
    target, others = dkd_terms(s, t, y, temperature=temperature)
    soft = jnp.mean(alpha * target + beta * others) * temperature**2
    return ce_weight * cross_entropy(s, y) + kd_weight * soft


def dkd_terms(s: ArrayInput, t: ArrayInput, y: ArrayInput, *, temperature: Number = 4.0) -> tuple[Array, Array]:
    """TCKD and NCKD of each sample; see the module.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        y: labels (B).
        temperature: tau.

    Returns:
        TCKD (B) and NCKD (B); with two classes NCKD is 0.

    Raises:
        ValueError: an argument is not as stated, or there is one class.

    Example:
        >>> target, others = dkd_terms(jnp.zeros((1, 3)), jnp.array([[0.0, 1.0, 1.0]]), jnp.array([0]))
        >>> print(f"{target[0]:.4f} {others[0]:.4f}")
        0.0065 0.0000
    """
    s, t, y = as_labelled_batch(s, t, y)
    check_number("temperature", temperature, above=0)
    if s.shape[1] < 2:
        raise ValueError(f"s: got {s.shape[1]} class, expected at least 2")
    t = jax.lax.stop_gradient(t)
    target = jnp.arange(s.shape[1])[None] == y[:, None]
    kl = divergence("forward_kl")
    binary, rest = zip(*(_split(z / temperature, y, target) for z in (t, s)), strict=True)
    return terms(kl, *binary).sum(-1), terms(kl, *rest).sum(-1)


def _split(z: Array, y: Array, target: Array) -> tuple[Array, Array]:
    """Logarithms of (p_y, 1 - p_y) (B, 2), and of p' (B, C), -inf at the target."""
    log_p = jax.nn.log_softmax(z)
    others = jnp.where(target, -jnp.inf, log_p)
    binary = [jnp.take_along_axis(log_p, y[:, None], 1), jax.nn.logsumexp(others, axis=1, keepdims=True)]
    return jnp.concatenate(binary, 1), jax.nn.log_softmax(jnp.where(target, -jnp.inf, z))
