"""LightNet on one chunk of one head, for kernels that hold matrices (C, K): what `chunk` does with all heads at once.

The state is transposed, (V, F K), so that its decays lie along a row. All maxima are constants of differentiation, as
they only choose units; so `jax.vjp` of these functions, in place in a kernel, is the backward pass of a chunk. Matrix
products round their factors to bfloat16 (`half`), or are exact to float32.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.additive.chunk import finite
from lightnet.scan.kernels import matmul
from lightnet.typing import Array

BLOCK = 8  # tokens that `exactly` takes at once
LEAST = float(jnp.finfo(jnp.float32).tiny) ** 0.7  # normalisers below it may have lost keys beside the largest one


class Tokens(NamedTuple):
    """Operands of one head: q (C, F*K), logits (C, K), v (C, V), factor (C, F*K) or None."""

    q: Array
    logits: Array
    v: Array
    factor: Array | None


class State(NamedTuple):
    """Of one head: running maximum and sum (1, K), and the transposed state (V, F*K), both relative to the maximum."""

    maximum: Array
    total: Array
    inner: Array


class Sight(NamedTuple):
    """Which tokens of a chunk count for which; None where all do.

    Attributes:
        pairs: (C, C), true where the token of the column counts for that of the row.
        entering: (C, 1), true where the entering state counts.
        leaving: (C, 1), true at tokens that count for the leaving state.
        enters: (1, 1), whether the entering state counts for the first token.
        stays: (1, 1), whether it counts for the last one.
    """

    pairs: Array | None = None
    entering: Array | None = None
    leaving: Array | None = None
    enters: Array | None = None
    stays: Array | None = None


@partial(jax.jit, static_argnames="half")
def together(x: Tokens, state: State, sees: Sight, *, half: bool) -> tuple[Array, State, Array]:
    """Outputs (C, V), the state that leaves, and the normalisers (C, K) relative to the largest logit."""
    assert sees.pairs is not None
    entering = _if(sees.enters, state.maximum, -jnp.inf)
    reference = lax.stop_gradient(finite(jnp.maximum(largest(x.logits), entering)))
    keys, decay = jnp.exp(x.logits - reference), jnp.exp(entering - reference)
    normalisers = matmul(jnp.where(sees.pairs, 1.0, 0.0), keys, "nn", half)
    normalisers += _if(sees.entering, decay * state.total, 0.0)
    q = _over(x.q, wide(nonzero(normalisers), x.q))
    scores = jnp.where(sees.pairs, matmul(q, weighted(keys, x), "nt", half), 0.0)
    past = _if(sees.entering, matmul(q, wide(decay, q) * state.inner, "nt", half), 0.0)
    return matmul(scores, x.v, "nn", half) + past, behind(x, state, sees, half=half), normalisers


def behind(x: Tokens, state: State, sees: Sight, *, half: bool) -> State:
    """The state that leaves a chunk, whatever its logits."""
    logits, staying = _if(sees.leaving, x.logits, -jnp.inf), _if(sees.stays, state.maximum, -jnp.inf)
    maximum = lax.stop_gradient(jnp.maximum(largest(logits), staying))
    keys, decay = jnp.exp(logits - finite(maximum)), jnp.exp(staying - finite(maximum))
    inner = wide(decay, x.q) * state.inner + matmul(x.v, weighted(keys, x), "tn", half)
    return State(maximum, decay * state.total + keys.sum(axis=0, keepdims=True), inner)


def exactly(x: Tokens, state: State, run: Array | None, before: Array) -> tuple[Array, State, Array]:
    """Outputs and the state that leaves for any logits, a few tokens at a time.

    Args:
        x: a multiple of `BLOCK` tokens.
        state: that enters.
        run: (C, 1) number of each token's run, or None if all belong to that of the state.
        before: (1, 1) number of the run that the state is of.

    Returns:
        o (C, V), the state, and the number (1, 1) of the run that it is of.
    """
    outputs = []
    for start in range(0, x.v.shape[0], BLOCK):
        part, its = jax.tree.map(lambda y, start=start: y[start : start + BLOCK], (x, run))
        o, state = _block(part, state, its, before)
        before = before if its is None else last_row(its)
        outputs.append(o)
    return jnp.concatenate(outputs, axis=0), state, before


@jax.jit
def _block(x: Tokens, state: State, run: Array | None, before: Array) -> tuple[Array, State]:
    """Each token relative to its own running maximum."""
    index = lax.broadcasted_iota(jnp.int32, (x.v.shape[0], 1), 0)
    scores, of_state = jnp.zeros((x.v.shape[0],) * 2, jnp.float32), jnp.zeros_like(x.q)
    for t in range(x.v.shape[0]):
        here, seen, entering = index == t, index <= t, state.maximum
        if run is not None:
            its = _row(here, run)
            seen, entering = seen & (run == its), jnp.where(its == before, entering, -jnp.inf)
        logits = jnp.where(seen, x.logits, -jnp.inf)
        maximum = lax.stop_gradient(jnp.maximum(largest(logits), entering))
        keys, decay = jnp.exp(logits - finite(maximum)), jnp.exp(entering - finite(maximum))
        total = decay * state.total + keys.sum(axis=0, keepdims=True)
        q = jnp.where(here, _over(x.q, jnp.broadcast_to(wide(nonzero(total), x.q), x.q.shape)), 0.0)
        scores += matmul(q, weighted(keys, x), "nt", False)
        of_state += q * wide(decay, q)
    o = matmul(scores, x.v, "nn", False) + matmul(of_state, state.inner, "nt", False)
    inner = wide(decay, x.q) * state.inner + matmul(x.v, weighted(keys, x), "tn", False)
    return o, State(maximum, total, inner)


def largest(x: Array) -> Array:
    """(C, K) -> (1, K)."""
    return lax.stop_gradient(x).max(axis=0, keepdims=True)


def last_row(x: Array) -> Array:
    """(C, 1) -> (1, 1), of integers."""
    return _row(lax.broadcasted_iota(jnp.int32, x.shape, 0) == x.shape[0] - 1, x)


def _row(here: Array, x: Array) -> Array:
    """The row of x that is meant."""
    return jnp.where(here, x, jnp.zeros((), x.dtype)).sum(axis=0, keepdims=True)


def _if(flag: Array | None, x: Array, otherwise: float) -> Array:
    return x if flag is None else jnp.where(flag, x, otherwise)


def wide(x: Array, like: Array) -> Array:
    """(..., K) for each of the factors, (..., F*K)."""
    factors = like.shape[1] // x.shape[1]
    return x if factors == 1 else jnp.concatenate([x] * factors, axis=1)


def added(x: Array, like: Array) -> Array:
    """(..., F*K) summed over the factors, (..., K)."""
    size = like.shape[1]
    parts = [x[:, start : start + size] for start in range(0, x.shape[1], size)]
    return sum(parts[1:], parts[0])


def weighted(keys: Array, x: Tokens) -> Array:
    """Keys (C, K) times their factors, (C, F*K)."""
    return wide(keys, x.q) if x.factor is None else wide(keys, x.q) * x.factor


def nonzero(normalisers: Array) -> Array:
    """Before the first token there is nothing to divide."""
    return jnp.where(normalisers > 0, normalisers, 1.0)


@jax.custom_vjp
def _over(x: Array, y: Array) -> Array:
    """x / y, whose derivative has no square of y, which may be too small for one."""
    return x / y


def _over_backward(residuals: tuple[Array, Array], bar: Array) -> Any:
    quotient, y = residuals
    x_bar = bar / y
    return x_bar, -x_bar * quotient


_over.defvjp(lambda x, y: (x / y, (x / y, y)), _over_backward)
