"""Divergences from a teacher of whom only the largest K log probabilities are stored.

Four conventions are in use, and they are not compatible. With I the K stored entries:

    bucket           K + 1 entries, the last one all that is not in I. 0 and stationary where the student equals the
                     teacher; of an f-divergence (not of l2, nor of most AB-divergences) never more than the whole one.
    renorm           both renormalised on I (OSTQuant's KL-Top). Blind to the mass outside.
    teacher_renorm   the teacher renormalised on I, the student on the whole vocabulary. Pushes the student to have no
                     mass outside of I; at s = t neither 0 nor stationary.
    partial          the terms of I of the whole divergence, nothing renormalised. 0 at s = t but not stationary there,
                     and it can be negative.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd.checks import (
    ArrayInput,
    as_floats,
    as_mask,
    at_least_float32,
    check_choice,
    check_number,
    got,
    known,
)
from kd.divergences import divergence, terms, textbook_terms, token_divergence
from kd.rows import Row
from kd.typing import Array, Number

CONVENTIONS = ("bucket", "renorm", "teacher_renorm", "partial")
LARGEST_LOG_MASS = -1e-7  # of the stored entries together: the bucket is never empty
LARGEST_MASS = 1.05  # of what are log probabilities, and not logits, rounded as they may be


def sparse_divergence(
    kind: str,
    s: ArrayInput,
    topk_ids: ArrayInput,
    topk_logprobs: ArrayInput,
    *,
    convention: str = "bucket",
    temperature: Number = 1.0,
    tau_squared: bool = False,
    mask: ArrayInput = None,
    **kind_args: Any,
) -> Array:
    """A divergence at every token from the teacher's largest K log probabilities; see the module for the conventions.

    Log probabilities of another temperature need all of them, so that a temperature is possible only where both are
    renormalised on the K entries.

    Args:
        kind: a name in `DIVERGENCES`.
        s: student logits (..., V).
        topk_ids: the K entries (..., K), all different.
        topk_logprobs: the teacher's log probabilities of them (..., K); with "renorm" logits will do.
        convention: one of "bucket", "renorm", "teacher_renorm" and "partial".
        temperature: 1, or any above 0 with "renorm": it divides the student's logits and the log probabilities.
        tau_squared: whether the divergence is multiplied by temperature^2.
        mask: (...), true at tokens that count; the others give 0, with gradient 0, whatever they contain.
        **kind_args: see `divergence`.

    Returns:
        (...), float32 at least.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, ids, logprobs = jnp.zeros((1, 4)), jnp.array([[2, 0]]), jnp.log(jnp.array([[0.5, 0.25]]))
        >>> f = jax.jit(sparse_divergence, static_argnums=0)
        >>> print(f"{f('forward_kl', s, ids, logprobs)[0]:.4f}")
        0.1733
    """
    row = divergence(kind, **kind_args)
    check_choice("convention", convention, CONVENTIONS)
    s, ids, log_p, mask = _checked(s, topk_ids, topk_logprobs, mask)
    if convention == "renorm":
        args = {"temperature": temperature, "tau_squared": tau_squared, "mask": mask}
        return token_divergence(kind, jnp.take_along_axis(s, ids, -1), log_p, **args, **kind_args)
    _check_mass(log_p, mask)
    check_number("temperature", temperature)
    if not known(temperature) or float(temperature) != 1:
        raise ValueError(f"temperature: got {temperature}, expected 1: only the convention renorm has others")
    if mask is not None:
        s, log_p = (jnp.where(mask[..., None], x, 0) for x in (s, log_p))
    log_p = jax.lax.stop_gradient(log_p)
    value = {"bucket": _bucket, "teacher_renorm": _teacher_renormalised, "partial": _partial}[convention](
        row, s, ids, log_p
    )
    return value if mask is None else jnp.where(mask, value, 0)


def _bucket(row: Row, s: Array, ids: Array, log_p: Array) -> Array:
    if ids.shape[-1] < s.shape[-1]:
        others = jax.nn.logsumexp(_put(jnp.maximum(s, jnp.finfo(s.dtype).min / 2), ids, -jnp.inf), -1, keepdims=True)
        mass = jnp.minimum(jax.nn.logsumexp(log_p, -1, keepdims=True), LARGEST_LOG_MASS)
        s = jnp.concatenate([jnp.take_along_axis(s, ids, -1), others], -1)
        log_p = jnp.concatenate([log_p, jnp.log(-jnp.expm1(mass))], -1)
    else:
        s = jnp.take_along_axis(s, ids, -1)
    return terms(row, jax.nn.log_softmax(log_p), jax.nn.log_softmax(s)).sum(-1)


def _teacher_renormalised(row: Row, s: Array, ids: Array, log_p: Array) -> Array:
    lp = _put(jnp.full_like(s, -jnp.inf), ids, jax.nn.log_softmax(log_p))
    return terms(row, lp, jax.nn.log_softmax(s)).sum(-1)


def _partial(row: Row, s: Array, ids: Array, log_p: Array) -> Array:
    lq = jnp.take_along_axis(jax.nn.log_softmax(s), ids, -1)
    return textbook_terms(row, log_p, lq).sum(-1)


def _put(x: Array, ids: Array, values: Array | float) -> Array:
    return jnp.put_along_axis(x, ids, values, axis=-1, inplace=False)


def _check_mass(log_p: Array, mask: Array | None) -> None:
    if not known(log_p) or not known(mask):
        return
    counted = np.asarray(log_p) if mask is None else np.asarray(log_p)[np.asarray(mask)]
    mass = np.exp(counted).sum(-1).max(initial=0)
    if mass > LARGEST_MASS:
        raise ValueError(f"topk_logprobs: got a mass of {mass:g}, expected log probabilities, of at most 1 together")


def _checked(
    s: ArrayInput, ids: ArrayInput, log_p: ArrayInput, mask: ArrayInput
) -> tuple[Array, Array, Array, Array | None]:
    (s,) = as_floats("... V", s=s)
    (log_p,) = as_floats("... K", topk_logprobs=log_p)
    if log_p.shape[:-1] != s.shape[:-1] or log_p.shape[-1] > s.shape[-1]:
        raise ValueError(f"topk_logprobs: got {got(log_p)}, expected the axes of s, {got(s)}, with at most its last")
    fits = isinstance(ids, jax.Array | np.ndarray) and jnp.issubdtype(ids.dtype, jnp.integer)
    if not fits or ids.shape != log_p.shape:
        raise ValueError(f"topk_ids: got {got(ids)}, expected integer{list(log_p.shape)}")
    mask = as_mask(mask, s.shape[:-1])
    if mask is not None:
        ids = jnp.where(mask[..., None], ids, jnp.arange(ids.shape[-1]).reshape((1,) * (ids.ndim - 1) + (-1,)))
    if known(ids):
        ordered = np.sort(np.asarray(ids), -1)
        if ordered.min() < 0 or ordered.max() >= s.shape[-1] or (np.diff(ordered) == 0).any():
            raise ValueError(f"topk_ids: got {got(ids)}, expected different entries from 0 to {s.shape[-1] - 1}")
    return at_least_float32(s), jnp.asarray(ids), at_least_float32(log_p), mask
