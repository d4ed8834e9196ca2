"""State space duality: the recurrence of Mamba-2 as one matrix product with a mask (arXiv 2405.21060, section 5).

With one decay a_t per head, S_t = a_t S_{t-1} + B_t x_t^T and y_t = S_t^T C_t unroll to

    y_i = sum_{j <= i} (a_{j+1} ... a_i) <C_i, B_j> x_j,        Y = (M o (C B^T)) X,

linear attention under a 1-semiseparable mask M. It costs L^2 and is here to be read and tested against: the mixer runs
`lightnet.scan.gated_linear_attention`, which takes this form within chunks and the recurrence between them.
"""

import jax.numpy as jnp
from jax.lax import Precision, broadcasted_iota

from lightnet.typing import Array


def segment_sums(log_decay: Array) -> Array:
    """Sums of log decays between any two tokens: s_ij = sum of log_decay_k over j < k <= i, -inf for j > i.

    Each is a sum by itself. The difference of two cumulative sums would lose digits next to a strong decay, and be NaN
    behind one of 0.

    Args:
        log_decay: (..., L).

    Returns:
        (..., L, L).

    Example:
        >>> segment_sums(jnp.array([-1.0, -2.0, -jnp.inf])).tolist()
        [[0.0, -inf, -inf], [-2.0, 0.0, -inf], [-inf, -inf, 0.0]]
    """
    shape = (*log_decay.shape, log_decay.shape[-1])
    row, column = (broadcasted_iota(jnp.int32, shape, axis) for axis in (len(shape) - 2, len(shape) - 1))
    terms = jnp.where(row > column, jnp.expand_dims(log_decay, -1), 0)
    return jnp.where(row >= column, jnp.cumsum(terms, axis=-2), -jnp.inf)


def ssd_quadratic(
    x: Array, log_decay: Array, B: Array, C: Array, initial_state: Array | None = None
) -> tuple[Array, Array]:
    """The dual form Y = (M o (C B^T)) X with M_ij = a_{j+1} ... a_i (arXiv 2405.21060, section 5.1).

    Args:
        x: inputs (batch, L, H, P), the step size in them.
        log_decay: log a (batch, L, H).
        B: input weights (batch, L, G, N); head h uses those of group h // (H / G).
        C: readout weights (batch, L, G, N).
        initial_state: (batch, H, N, P); None is 0.

    Returns:
        Y (batch, L, H, P), and the last state (batch, H, N, P).

    Example:
        >>> one = jnp.ones((1, 3, 1, 1))
        >>> y, final = ssd_quadratic(one, jnp.log(0.5 * one[..., 0]), one, one)
        >>> y[0, :, 0, 0].tolist(), final.item()
        ([1.0, 1.5, 1.75], 1.75)
    """
    repeats = x.shape[2] // B.shape[2]
    B, C = (jnp.repeat(weights, repeats, axis=2) for weights in (B, C))
    decay = jnp.exp(segment_sums(jnp.moveaxis(log_decay, 1, 2)))
    scores = decay * jnp.einsum("bihn,bjhn->bhij", C, B, precision=Precision.HIGHEST)
    y = jnp.einsum("bhij,bjhp->bihp", scores, x, precision=Precision.HIGHEST)
    state = jnp.einsum("bhj,bjhn,bjhp->bhnp", decay[:, :, -1], B, x, precision=Precision.HIGHEST)
    if initial_state is not None:
        since = jnp.exp(jnp.cumsum(log_decay, axis=1))
        y += jnp.einsum("bih,bihn,bhnp->bihp", since, C, initial_state, precision=Precision.HIGHEST)
        state += since[:, -1, :, None, None] * initial_state
    return y, state
