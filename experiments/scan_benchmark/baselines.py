"""What a user would write instead: each recurrence as one step, and the ways to drive it over time.

A step takes the state and one token and returns the new state and the output. It is written once, for NumPy, JAX and
torch alike (`xp` is the module), for a batch or for a single row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.scan_benchmark.functions import Operands


@dataclass(frozen=True)
class Step:
    """A recurrence token by token.

    Attributes:
        split: operands -> (arrays over time, the rest, states); the states are what is carried.
        step: (xp, rest, states, token) -> (states, output of the token).
        finish: (xp, output over time, operands) -> output; what needs no state.
    """

    split: Callable[[Operands], tuple[Operands, Operands, Operands]]
    step: Callable[[Any, Operands, Operands, Operands], tuple[Operands, Any]]
    finish: Callable[[Any, Any, Operands], Any] = lambda xp, y, operands: y


def scanned(recurrence: Step) -> Callable[..., Operands]:
    """`lax.scan` over time-major arrays, the output computed in the step."""

    def run(*operands: Any) -> Operands:
        tokens, rest, states = recurrence.split(operands)
        major = tuple(x.swapaxes(0, 1) for x in tokens)
        states, y = lax.scan(lambda h, token: recurrence.step(jnp, rest, h, token), states, major)
        return recurrence.finish(jnp, y.swapaxes(0, 1), operands), *states

    return run


def mapped(recurrence: Step) -> Callable[..., Operands]:
    """`lax.scan` over the tokens of one row, mapped over the rows."""

    def run(*operands: Any) -> Operands:
        tokens, rest, states = recurrence.split(operands)

        def row(tokens: Operands, states: Operands) -> tuple[Operands, Any]:
            return lax.scan(lambda h, token: recurrence.step(jnp, rest, h, token), states, tokens)

        states, y = jax.vmap(row)(tokens, states)
        return recurrence.finish(jnp, y, operands), *states

    return run


def looped(recurrence: Step, xp: Any) -> Callable[..., Operands]:
    """A Python loop over time, in NumPy or torch."""

    def run(*operands: Any) -> Operands:
        tokens, rest, states = recurrence.split(operands)
        outputs = []
        # Iterated, not indexed: torch's gradient of one index is an array of full size, at every token.
        for token in zip(*(x.swapaxes(0, 1) for x in tokens), strict=True):
            states, y = recurrence.step(xp, rest, states, token)
            outputs.append(y)
        return recurrence.finish(xp, xp.stack(outputs, 1), operands), *states

    return run


def associative(decay: jax.Array, value: jax.Array, state: jax.Array) -> jax.Array:
    """All states of h_t = decay_t h_{t-1} + value_t by `lax.associative_scan`; every decay and state is written out."""

    def combine(left: Operands, right: Operands) -> Operands:
        return left[0] * right[0], right[0] * left[1] + right[1]

    value = value.at[:, 0].add(decay[:, 0] * state)
    return lax.associative_scan(combine, (decay, value), axis=1)[1]


def linear_associative(a: jax.Array, b: jax.Array, state: jax.Array) -> Operands:
    """`linear_scan` by `lax.associative_scan`."""
    h = associative(jnp.broadcast_to(a, b.shape), b, state)
    return h, h[:, -1]


def diagonal_associative(x: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array, state: jax.Array) -> Operands:
    """`diagonal_ssm` by `lax.associative_scan`."""
    value = b[None, None] * x[..., None]
    h = associative(jnp.broadcast_to(a, value.shape), value, state)
    return jnp.einsum("bldn,dn->bld", h, c).real, h[:, -1]


def selective_associative(x: Any, dt: Any, A: Any, B: Any, C: Any, state: Any) -> Operands:
    """`selective_scan` by `lax.associative_scan`, with arrays (B, L, D, N)."""
    decay = jnp.exp(dt[..., None] * A[None, None])
    h = associative(decay, (dt * x)[..., None] * B[:, :, None], state)
    return jnp.einsum("bldn,bln->bld", h, C), h[:, -1]


def gated_associative(q: Any, k: Any, v: Any, log_decay: Any, state: Any) -> Operands:
    """`gated_linear_attention` by `lax.associative_scan`, with arrays (B, L, H, K, V)."""
    value = k[..., None] * v[..., None, :]
    states = associative(jnp.broadcast_to(jnp.exp(log_decay)[..., None], value.shape), value, state)
    return jnp.einsum("blhk,blhkv->blhv", q, states), states[:, -1]


def convolved(x: jax.Array, w: jax.Array, bias: jax.Array, state: jax.Array) -> Operands:
    """`causal_conv` by `lax.conv_general_dilated` with a group for each channel."""
    width, channels = w.shape
    padded = jnp.concatenate([state, x], axis=1)
    layout = ("NLC", "LIO", "NLC")
    y = lax.conv_general_dilated(
        padded, w[:, None], (1,), "VALID", dimension_numbers=layout, feature_group_count=channels
    )
    return y + bias[None, None], padded[:, padded.shape[1] - width + 1 :]


def shifted(x: np.ndarray, w: np.ndarray, bias: np.ndarray, state: np.ndarray) -> Operands:
    """`causal_conv` in NumPy, a product of the whole sequence for each tap."""
    padded, length = np.concatenate([state, x], axis=1), x.shape[1]
    y = bias + sum(tap * padded[:, j : j + length] for j, tap in enumerate(w))
    return y, padded[:, length:]


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> Operands:
    """Softmax attention over all tokens: not the same function as `additive_global`, but what it stands in for."""
    return (jax.nn.dot_product_attention(q, k, v),)


def gates_of(q: Any, logits: Any, v: Any, maximum: Any, total: Any, state: Any) -> Operands:
    """Operands of `gated_linear_attention` that give the outputs of `additive_recurrence`.

    Args:
        q: queries (B, L, H, K).
        logits: (B, L, H, K).
        v: values (B, L, H, V).
        maximum: (B, H, K), as `total` and `state` of an `AdditiveState`.
        total: (B, H, K).
        state: (B, H, K, V).

    Returns:
        q, normalised keys, v, log decays and the normalised state.
    """
    first = (maximum + jnp.log(total))[:, None]
    z = lax.cumlogsumexp(jnp.concatenate([first, logits], axis=1), axis=1)
    return q, jnp.exp(logits - z[:, 1:]), v, z[:, :-1] - z[:, 1:], state / total[..., None]


def _linear_step(xp: Any, rest: Operands, states: Operands, token: Operands) -> tuple[Operands, Any]:
    a, b = token
    h = a * states[0] + b
    return (h,), h


def _diagonal_step(xp: Any, rest: Operands, states: Operands, token: Operands) -> tuple[Operands, Any]:
    (x,) = token
    a, b, c = (_leading(weights, x.ndim - 1) for weights in rest)
    h = a * states[0] + b * x[..., None]
    return (h,), xp.real((c * h).sum(-1))


def _selective_step(xp: Any, rest: Operands, states: Operands, token: Operands) -> tuple[Operands, Any]:
    x, dt, B, C = token
    decay = xp.exp(dt[..., None] * _leading(rest[0], x.ndim - 1))
    h = decay * states[0] + (dt * x)[..., None] * B[..., None, :]
    return (h,), (h @ C[..., None])[..., 0]


def _straight_and_gate(xp: Any, y: Any, operands: Operands) -> Any:
    """What Mamba adds to the readout: D x, and the gate silu(z)."""
    x, D, z = operands[0], operands[5], operands[6]
    return (y + _leading(D, x.ndim - 1) * x) * z / (1 + xp.exp(-z))


def _gated_step(xp: Any, rest: Operands, states: Operands, token: Operands) -> tuple[Operands, Any]:
    q, k, v, log_decay = token
    state = xp.exp(log_decay)[..., None] * states[0] + k[..., None] * v[..., None, :]
    return (state,), (q[..., None, :] @ state)[..., 0, :]


def _additive_step(xp: Any, rest: Operands, states: Operands, token: Operands) -> tuple[Operands, Any]:
    (q, logits, v), (before, total, state) = token, states
    maximum = xp.maximum(before, logits)
    decay, key = xp.exp(before - maximum), xp.exp(logits - maximum)
    total = decay * total + key
    state = decay[..., None] * state + key[..., None] * v[..., None, :]
    return (maximum, total, state), ((q / total)[..., None, :] @ state)[..., 0, :]


def _leading(x: Any, axes: int) -> Any:
    """With so many axes of size 1 in front."""
    return x.reshape((1,) * axes + tuple(x.shape))


LINEAR = Step(lambda o: (o[:2], (), o[2:]), _linear_step)
DIAGONAL = Step(lambda o: (o[:1], o[1:4], o[4:]), _diagonal_step)
SELECTIVE = Step(lambda o: ((o[0], o[1], o[3], o[4]), (o[2],), o[5:]), _selective_step)
MAMBA = Step(lambda o: ((o[0], o[1], o[3], o[4]), (o[2],), o[7:]), _selective_step, _straight_and_gate)
GATED = Step(lambda o: (o[:4], (), o[4:]), _gated_step)
ADDITIVE = Step(lambda o: (o[:3], (), o[3:]), _additive_step)
