"""h_t = a_t h_{t-1} + b_t, token by token: the definition that everything else is tested against."""

import jax
import jax.numpy as jnp

from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array


def linear_reference(
    operands: tuple[Array, Array], initial_state: Array, tokens: Tokens, *, reverse: bool
) -> tuple[Array, Array]:
    """One `lax.scan` over time.

    Args:
        operands: a (B or 1, L or 1, D) and b (B, L, D).
        initial_state: (B, D), in the precision of the state.
        tokens: which tokens begin a run, and which are real.
        reverse: from the last token to the first.

    Returns:
        h (B, L, D) in the precision of the state and the last one (B, D).
    """
    a, b = operands
    every = jnp.ones(b.shape[:2], bool)
    keep, real = (every if flag is None else flag for flag in tokens)

    def step(h: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        a_t, b_t, keep_t, real_t = token
        before = jnp.where(keep_t[:, None], h, 0)
        h = jnp.where(real_t[:, None], a_t.astype(h.dtype) * before + b_t.astype(h.dtype), h)
        return h, h

    # A masked token may contain anything; what is not used must not reach the gradient either.
    a, b = (jnp.where(real[..., None], x, 0) for x in (jnp.broadcast_to(a, b.shape), b))
    over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (a, b, keep, real))
    final, h = jax.lax.scan(step, initial_state, over_time, reverse=reverse)
    return h.swapaxes(0, 1), final
