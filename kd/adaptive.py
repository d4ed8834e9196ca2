"""Targets and weights that move with the training: TAID and AKL, token by token.

**TAID** (arXiv 2501.16937): the target lies between student and teacher, p_lambda = softmax((1 - lambda) s + lambda t),
with the student in it held fixed, and the loss is -sum p_lambda log q. At lambda 0 that is the student's entropy and
has no gradient, at 1 the cross-entropy to the teacher. With the relative improvement of the loss,

    delta = (L' - L) / L',    m <- beta m + (1 - beta) delta
    lambda <- min(end, max(line, lambda + a sigmoid(m) (1 - lambda)))

where L' is the loss before and the line goes from start to end over all steps. A loss that is not finite, of an update
that a training skips, says nothing: m and L' stay, lambda goes on.

**AKL** (arXiv 2404.02657): w KL(p || q) + (1 - w) KL(q || p), w = g_head / (g_head + g_tail), where g sums |p - q| over
the head and the tail of the teacher's vocabulary; the head is its largest entries as long as their mass is at most mu,
and at least the first. w has no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd.checks import ArrayInput, as_mask, check_count, check_number
from kd.divergences import admitting, as_logits, token_divergence
from kd.rows import times
from kd.typing import Array, Number


def taid(
    s: ArrayInput, t: ArrayInput, interpolation: Number, *, mask: ArrayInput = None, common_vocab: int | None = None
) -> Array:
    """-sum p_lambda log q at every token; see the module.

    An entry that both exclude (a logit of -inf) costs nothing.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., V).
        interpolation: lambda, from 0 to 1.
        mask: (...), true at tokens that count; the others give 0, with gradient 0.
        common_vocab: entries of the vocabulary that the two share, its first ones.

    Returns:
        (...), float32 at least.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]])
        >>> [f"{taid(s, t, x)[0]:.4f}" for x in (0.0, 1.0)], jax.grad(lambda s: taid(s, t, 0.0).sum())(s).tolist()
        (['0.6931', '0.6931'], [[0.0, 0.0]])
    """
    s, t = as_logits(s, t, common_vocab)
    check_number("interpolation", interpolation, at_least=0, at_most=1)
    mask = as_mask(mask, s.shape[:-1])
    if mask is not None:
        s, t = (jnp.where(mask[..., None], x, 0) for x in (s, t))
    share = jnp.asarray(interpolation, s.dtype)
    between = jax.lax.stop_gradient(times(1 - share, s) + times(share, t))
    value = -jnp.sum(times(jax.nn.softmax(between), jax.nn.log_softmax(s)), axis=-1)
    return value if mask is None else jnp.where(mask, value, 0)


class TAIDState(NamedTuple):
    """Where TAID's schedule stands.

    Attributes:
        interpolation: lambda.
        momentum: m.
        loss: the last finite one; infinite where there was none.
    """

    interpolation: Array
    momentum: Array
    loss: Array


def taid_start(start: Number = 0.4) -> TAIDState:
    """The state before the first step.

    Example:
        >>> print(f"{taid_start().interpolation:.1f}")
        0.4
    """
    check_number("start", start, at_least=0, at_most=1)
    return TAIDState(*(jnp.asarray(x, jnp.float32) for x in (start, 0.0, jnp.inf)))


def taid_update(
    state: TAIDState,
    loss: Number,
    step: Number,
    *,
    steps: int,
    start: Number = 0.4,
    end: Number = 1.0,
    beta: Number = 0.99,
    rate: Number = 5e-4,
) -> TAIDState:
    """The state after a step with this loss; see the module.

    Args:
        state: before.
        loss: of the step; what is not finite is ignored.
        step: steps done, this one included.
        steps: of the whole training.
        start: lambda at the start.
        end: largest lambda.
        beta: of the momentum.
        rate: a.

    Returns:
        The new state; lambda never falls and never exceeds the end.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> state = taid_update(taid_start(), 2.0, 50, steps=100)
        >>> print(f"{state.interpolation:.2f}")
        0.70
    """
    check_count("steps", steps)
    check_number("end", end, at_least=0, at_most=1)
    check_number("beta", beta, at_least=0, below=1)
    check_number("rate", rate, at_least=0)
    loss = jnp.asarray(loss, jnp.float32)
    told = jnp.isfinite(loss)
    before = jnp.where(jnp.isfinite(state.loss), state.loss, loss)
    momentum = jnp.where(told, beta * state.momentum + (1 - beta) * (before - loss) / (before + 1e-15), state.momentum)
    line = start + (end - start) * jnp.asarray(step / steps, jnp.float32)
    faster = state.interpolation + rate * jax.nn.sigmoid(momentum) * (1 - state.interpolation)
    return TAIDState(jnp.minimum(end, jnp.maximum(line, faster)), momentum, jnp.where(told, loss, state.loss))


def akl(
    s: ArrayInput,
    t: ArrayInput,
    *,
    mu: Number = 0.5,
    temperature: Number = 1.0,
    mask: ArrayInput = None,
    common_vocab: int | None = None,
) -> Array:
    """w KL(p || q) + (1 - w) KL(q || p) at every token; see the module.

    An entry that the teacher alone excludes (a logit of -inf) makes KL(q || p) infinite and leaves it no gradient:
    here it has e^-20 of the student's probability, so that the student is driven from it.

    Args:
        s: student logits (..., V).
        t: teacher logits (..., V).
        mu: mass of the head.
        temperature: divides both.
        mask: (...), true at tokens that count; the others give 0, with gradient 0.
        common_vocab: entries of the vocabulary that the two share, its first ones.

    Returns:
        (...), float32 at least.

    Raises:
        ValueError: an argument is not as stated.

    Example:
        >>> s, t = jnp.array([[1.0, 0.0, 0.5]]), jnp.array([[2.0, 0.0, 0.1]])
        >>> f = jax.jit(akl)
        >>> f(t, t).tolist(), bool(f(s, t)[0] > 0)
        ([0.0], True)
    """
    s, t = as_logits(s, t, common_vocab)
    check_number("mu", mu, above=0, at_most=1)
    mask = as_mask(mask, s.shape[:-1])
    t = admitting(s, t, temperature)
    weight = akl_weight(s, t, mu=mu, temperature=temperature, mask=mask)
    forward = token_divergence("forward_kl", s, t, temperature=temperature, mask=mask)
    reverse = token_divergence("reverse_kl", s, t, temperature=temperature, mask=mask)
    return weight * forward + (1 - weight) * reverse


def akl_weight(s: Array, t: Array, *, mu: Number = 0.5, temperature: Number = 1.0, mask: Array | None = None) -> Array:
    """w of every token, without gradient; 1/2 where teacher and student agree.

    Example:
        >>> jax.jit(akl_weight)(jnp.zeros((1, 2)), jnp.zeros((1, 2))).tolist()
        [0.5]
    """
    if mask is not None:
        s, t = (jnp.where(mask[..., None], x, 0) for x in (s, t))
    p, q = (jax.nn.softmax(jax.lax.stop_gradient(z) / temperature) for z in (t, s))
    order = jnp.argsort(-p, axis=-1)
    p, gap = (jnp.take_along_axis(x, order, -1) for x in (p, jnp.abs(p - q)))
    first = jnp.arange(p.shape[-1]) == 0
    head = (jnp.cumsum(p, axis=-1) <= mu) | first.reshape((1,) * (p.ndim - 1) + (-1,))
    of_head, whole = jnp.sum(jnp.where(head, gap, 0), -1), jnp.sum(gap, -1)
    return jnp.where(whole > 0, of_head / jnp.where(whole > 0, whole, 1), 0.5)
