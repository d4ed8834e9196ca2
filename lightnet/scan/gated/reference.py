"""S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, token by token: the definition of gated linear attention."""

import jax
import jax.numpy as jnp

from lightnet.scan.recurrence import Tokens, only_real
from lightnet.typing import Array


def gated_reference(
    operands: tuple[Array, Array, Array, Array], initial_state: Array, tokens: Tokens
) -> tuple[Array, Array]:
    """One `lax.scan` over time.

    Args:
        operands: q, k (B, L, G, K), v (B, L, H, V) and log_decay (B, L, H, K or 1).
        initial_state: (B, H, K, V), in the precision of the state.
        tokens: which tokens begin a run, and which are real.

    Returns:
        o (B, L, H, V) in the precision of the state and the last state (B, H, K, V).
    """
    # A masked token becomes one with a key of 0 and a decay of 1.
    q, k, v, log_decay = (x.astype(initial_state.dtype) for x in only_real(tokens, *operands))
    q, k = (jnp.repeat(x, v.shape[2] // x.shape[2], axis=2) for x in (q, k))
    decay = jnp.exp(log_decay)
    if tokens.keep is not None:
        decay = jnp.where(tokens.keep[..., None, None], decay, 0)

    def step(state: Array, token: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v, decay = token
        state = decay[..., None] * state + k[..., None] * v[..., None, :]
        return state, jnp.einsum("bhkv,bhk->bhv", state, q, precision=jax.lax.Precision.HIGHEST)

    over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (q, k, v, decay))
    final, o = jax.lax.scan(step, initial_state, over_time)
    return o.swapaxes(0, 1), final
