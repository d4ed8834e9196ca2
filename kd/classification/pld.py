"""Plackett-Luce distillation (PLD, arXiv 2506.12542).

With pi the label and then the other classes in the teacher's order, and alpha_k = softmax(t / tau) at pi_k,

    L = sum_k alpha_k (logsumexp_{l >= k} s_{pi_l} - s_{pi_k})

It is convex in s. alpha = (1, 0, ..., 0) is the cross-entropy and a constant alpha ListMLE. It transfers the order and
not the probabilities: s = t is not stationary, and the loss goes to 0 as logits in the right order grow, so that
something else (weight decay, an early end) has to set their size. tau is to be chosen by the gaps between the teacher's
logits: far below them it is the cross-entropy, and where the label is not the teacher's first the weight is on the
second place.
"""

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, check_count, check_number
from kd.classification.inputs import as_labelled_batch
from kd.rows import times
from kd.typing import Array, Number


def pld(s: ArrayInput, t: ArrayInput, y: ArrayInput, *, temperature: Number = 1.0, top_m: int | None = None) -> Array:
    """The mean over the batch of the teacher-weighted Plackett-Luce loss; see the module.

    It includes the labels: no cross-entropy is added. Only the teacher's weights have a temperature. A class that both
    exclude (a logit of -inf) costs nothing.

    Args:
        s: student logits (B, C).
        t: teacher logits (B, C); equal ones keep the order of their classes.
        y: labels (B).
        temperature: tau.
        top_m: places whose terms are kept, without sorting the rest; their terms are exact, and those left out have the
            smallest weights. None keeps all.

    Returns:
        One number.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([[5.0, 1.0, 2.0]])
        >>> print(f"{pld(s, t, jnp.array([0])):.4f} {pld(s, t, jnp.array([0]), temperature=0.01):.4f}")
        1.3238 1.4076
    """
    s, t, y = as_labelled_batch(s, t, y)
    check_number("temperature", temperature, above=0)
    classes = s.shape[1]
    if top_m is not None:
        check_count("top_m", top_m)
    places = classes if top_m is None else min(top_m, classes)
    t = jax.lax.stop_gradient(t)
    label = jnp.arange(classes)[None] == y[:, None]
    # of equal values the first comes first
    _, order = jax.lax.top_k(jnp.where(label, jnp.inf, t), places)
    weights = jnp.take_along_axis(jax.nn.softmax(t / temperature), order, 1)
    kept = jnp.take_along_axis(s, order, 1)
    # the log-sum-exp of excluded classes alone is not finite, nor is its gradient
    s = jnp.maximum(s, jnp.finfo(s.dtype).min / 2)
    if places == classes:
        ends = jnp.take_along_axis(s, order, 1)
    else:
        others = jnp.put_along_axis(s, order, -jnp.inf, axis=1, inplace=False)
        ends = jnp.concatenate([jnp.take_along_axis(s, order, 1), jax.nn.logsumexp(others, axis=1, keepdims=True)], 1)
    suffixes = jax.lax.cumlogsumexp(ends, axis=1, reverse=True)[:, :places]
    return jnp.mean(jnp.sum(times(weights, suffixes - kept), axis=1))
