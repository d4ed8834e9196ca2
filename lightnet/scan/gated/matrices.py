"""One chunk of gated linear attention with a decay per head, for several heads at once, as matrix products for TPUs.

The same as in `lightnet.scan.gated.chunk`: the C x C products of decays are exponentials of sums of log decays, each
taken by itself. Here these sums are one product with a triangle of ones, exact to float32, because log decays are three
bfloat16 numbers each and ones are one.

Every phase is made for all heads before the next one: so heads fill each other's waits for the matrix units, which
takes a quarter off the time of a forward pass. Scores of heads that share a query and a key are made once. All is
differentiable in place.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.fade import fade
from lightnet.scan.kernels import FORMS, matmul
from lightnet.typing import Array

Heads = list[Array]


def output_and_state(
    q: Heads, k: Heads, v: Heads, log_decay: Heads, state: Heads, *, half: bool
) -> tuple[Heads, Heads]:
    """Outputs (C, V) of one chunk and the states (K, V) behind it, for each head.

    Args:
        q: queries (C, K), one for each `len(v) / len(q)` heads side by side.
        k: keys, as many.
        v: (C, V).
        log_decay: rows (1, C), finite; below -200 it is a reset.
        state: (K, V) before the chunk.
        half: round the factors of matrix products to bfloat16.
    """
    members = len(v) // len(q)
    turned, sums = [x.T for x in k], [_log_sums(x) for x in log_decay]
    scores = [matmul(x, y, "nn", half) for x, y in zip(q, turned, strict=True)]
    within = [jnp.where(_below(x), jnp.exp(x), 0.0) for x in sums]
    past = [matmul(q[i // members], x, "nn", half) for i, x in enumerate(state)]
    now = [matmul(scores[i // members] * x, y, "nn", half) for i, (x, y) in enumerate(zip(within, v, strict=True))]
    after = _behind(turned, v, log_decay, sums, within, state, half)
    start = [jnp.exp(x[:, :1] + y[:, :1]) for x, y in zip(sums, log_decay, strict=True)]
    return [x + y * z for x, y, z in zip(now, start, past, strict=True)], after


def state_behind(k: Heads, v: Heads, log_decay: Heads, state: Heads, *, half: bool) -> Heads:
    """The states alone."""
    sums = [_log_sums(x) for x in log_decay]
    return _behind([x.T for x in k], v, log_decay, sums, [jnp.exp(x) for x in sums], state, half)


def _behind(turned: Heads, v: Heads, log_decay: Heads, sums: Heads, within: Heads, state: Heads, half: bool) -> Heads:
    members = len(v) // len(turned)
    added = [
        matmul(turned[i // members] * decay[-1:], x, "nn", half)
        for i, (decay, x) in enumerate(zip(within, v, strict=True))
    ]
    total = [x[-1:, :1] + y[:, :1] for x, y in zip(sums, log_decay, strict=True)]
    return [fade(*x) for x in zip(total, state, added, strict=True)]


@jax.custom_vjp
def _log_sums(log_decay: Array) -> Array:
    """(1, C) -> (C, C): at [i, j] the sum over the tokens j + 1 to i, 0 if there are none."""
    until = _below(jnp.zeros((log_decay.shape[1],) * 2))
    return sum(_with_ones(jnp.where(until, x, 0.0), "nn") for x in _thirds(log_decay))  # type: ignore[return-value]


def _log_sums_backward(_: None, bar: Array) -> tuple[Array]:
    before = sum(_with_ones(x, "nt") for x in _thirds(bar))
    return (jnp.where(_below(bar), before, 0.0).sum(axis=0, keepdims=True),)


_log_sums.defvjp(lambda x: (_log_sums(x), None), _log_sums_backward)


def _with_ones(x: Array, form: str) -> Array:
    """x y, or x y^T, where y has ones below its diagonal; exact, for x in the precision of bfloat16."""
    y = jnp.where(_below(x, strictly=True), 1.0, 0.0).astype(jnp.bfloat16)
    left, right = FORMS[form]
    contract = (((left,), (right,)), ((), ()))
    return lax.dot_general(x.astype(jnp.bfloat16), y, contract, preferred_element_type=jnp.float32)


def _thirds(x: Array) -> Heads:
    """Three numbers of bfloat16's precision, the sum of which is x: 8 of its 24 bits each."""
    thirds = []
    for _ in range(3):
        # Not by conversion and back: XLA leaves both out.
        bits = lax.bitcast_convert_type(x, jnp.int32) & ~0xFFFF
        thirds.append(lax.bitcast_convert_type(bits, jnp.float32))
        x = x - thirds[-1]
    return thirds


def _below(x: Array, *, strictly: bool = False) -> Array:
    """Whether an element of a square matrix is on the diagonal or below it."""
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in range(2))
    return column < row if strictly else column <= row
