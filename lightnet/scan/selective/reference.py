"""The selective recurrence token by token: the definition that everything else is tested against."""

import jax
import jax.numpy as jnp

from lightnet.scan.recurrence import Tokens
from lightnet.scan.selective.chunk import Selective
from lightnet.typing import Array


def selective_reference(operands: Selective, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """One `lax.scan` over time.

    Args:
        operands: as in `selective_scan`.
        initial_state: (B, D, N), in the precision of the state.
        tokens: which tokens begin a run, and which are real.

    Returns:
        y (B, L, D) in the dtype of x and the last state (B, D, N).
    """
    x, dt, A, B, C, D, z = jax.tree.map(lambda v: v.astype(initial_state.dtype), operands)
    if tokens.real is not None:
        dt = jnp.where(tokens.real[..., None], dt, 0)
    keep = jnp.ones(x.shape[:2], bool) if tokens.keep is None else tokens.keep

    def step(h: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, B, C, keep = token
        decay = jnp.where(keep[:, None, None], jnp.exp(dt[:, :, None] * A[None]), 0)
        h = decay * h + (dt * x)[:, :, None] * B[:, None]
        return h, jnp.einsum("bdn,bn->bd", h, C, precision=jax.lax.Precision.HIGHEST)

    over_time = jax.tree.map(lambda v: v.swapaxes(0, 1), (x, dt, B, C, keep))
    final, y = jax.lax.scan(step, initial_state, over_time)
    y = y.swapaxes(0, 1)
    y = y if D is None else y + D[None, None] * x
    y = y if z is None else y * jax.nn.silu(z)
    return y.astype(operands.x.dtype), final
