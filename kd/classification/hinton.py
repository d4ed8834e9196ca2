"""Hinton's distillation, and the same with an AB-divergence (ABKD)."""

from kd.checks import ArrayInput, check_number
from kd.classification.inputs import as_labelled_batch, cross_entropy
from kd.divergences import token_divergence
from kd.typing import Array, Number


def hinton(
    s: ArrayInput,
    t: ArrayInput,
    y: ArrayInput,
    *,
    temperature: Number = 4.0,
    ce_weight: Number = 0.1,
    kd_weight: Number = 0.9,
    tau_squared: bool = True,
) -> Array:
    """Cross-entropy and KL at a temperature: ce_weight CE(s, y) + kd_weight tau^2 mean KL(p || q) (arXiv 1503.02531).

    The defaults are those of mdistiller and of MCMI's students.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        y: labels (B).
        temperature: tau.
        ce_weight: of the labels.
        kd_weight: of the teacher.
        tau_squared: whether tau^2 is there; the code of SinKD, for one, leaves it out.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]])
        >>> print(f"{hinton(s, t, jnp.array([0])):.4f}")
        0.1390
    """
    s, t, y = as_labelled_batch(s, t, y)
    _check_weights(ce_weight, kd_weight)
    soft = token_divergence("forward_kl", s, t, temperature=temperature, tau_squared=tau_squared).mean()
    return ce_weight * cross_entropy(s, y) + kd_weight * soft


def abkd(
    s: ArrayInput,
    t: ArrayInput,
    y: ArrayInput,
    *,
    alpha: float | int = 0.5,
    beta: float | int = 0.5,
    temperature: Number = 4.0,
    ce_weight: Number = 0.1,
    kd_weight: Number = 0.9,
    tau_squared: bool = False,
) -> Array:
    """Hinton's loss with an AB-divergence for KL: ce_weight CE(s, y) + kd_weight mean D_AB(p, q), without tau^2.

    A larger alpha looks at the largest |p - q|, a larger beta at what the student is confident of. The singular lines
    are the limits; the released code divides by alpha or beta there where alpha^2 or beta^2 is right, so that its
    weight is another one.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C).
        y: labels (B).
        alpha: of the divergence, see `kd.rows.alpha_beta`; (1, 0) is KL(p || q).
        beta: of the divergence; (0, 1) is KL(q || p).
        temperature: tau.
        ce_weight: of the labels.
        kd_weight: of the teacher.
        tau_squared: whether the divergence is multiplied by tau^2.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> import jax.numpy as jnp
        >>> s, t, y = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]]), jnp.array([0])
        >>> float(abs(abkd(s, t, y, alpha=1, beta=0, tau_squared=True) - hinton(s, t, y))) < 1e-6
        True
    """
    s, t, y = as_labelled_batch(s, t, y)
    _check_weights(ce_weight, kd_weight)
    soft = token_divergence(
        "alpha_beta", s, t, temperature=temperature, tau_squared=tau_squared, alpha=alpha, beta=beta
    )
    return ce_weight * cross_entropy(s, y) + kd_weight * soft.mean()


def _check_weights(ce_weight: Number, kd_weight: Number) -> None:
    check_number("ce_weight", ce_weight)
    check_number("kd_weight", kd_weight)
