"""The diagonal recurrence token by token: the definition that everything else is tested against."""

import jax
import jax.numpy as jnp

from lightnet.scan.diagonal.chunk import Diagonal
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array


def diagonal_reference(operands: Diagonal, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """One `lax.scan` over time.

    Args:
        operands: as in `diagonal_ssm`.
        initial_state: (B, D, N), in the precision of the state.
        tokens: which tokens begin a run, and which are real.

    Returns:
        y (B, L, D) in the dtype of x and the last state (B, D, N).
    """
    x, a, b, c = (v.astype(initial_state.dtype) for v in operands)
    keep, real = (jnp.ones(x.shape[:2], bool) if flag is None else flag for flag in tokens)

    def step(h: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        x, keep, real = token
        new = a[None] * jnp.where(keep[:, None, None], h, 0) + b[None] * x[:, :, None]
        h = jnp.where(real[:, None, None], new, h)
        return h, jnp.real(c[None] * h).sum(axis=-1)

    over_time = jax.tree.map(lambda v: v.swapaxes(0, 1), (x, keep, real))
    final, y = jax.lax.scan(step, initial_state, over_time)
    return y.swapaxes(0, 1).astype(operands.x.dtype), final
