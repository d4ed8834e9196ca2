"""The normaliser of LightNet's keys, by itself: where decays or shares are needed and not only normalised keys.

    z_t = log sum_{j <= t} exp(a_j)        per channel, from the start of each segment

The recurrence of `lightnet.scan` carries a running maximum and a sum instead, which is more precise on steep logits.
"""

import jax
import jax.numpy as jnp

from lightnet.scan import AdditiveState
from lightnet.scan.recurrence import tokens_of
from lightnet.typing import Array

EMPTY = -1e30  # the log of an empty sum; finite, so that its gradients are


def log_normalisers(
    logits: Array, before: Array | None = None, *, segment_ids: Array | None = None, mask: Array | None = None
) -> tuple[Array, Array]:
    """z up to each token, and up to the one before it.

    Args:
        logits: (B, L, H, K).
        before: z (B, H, K) of earlier tokens of the first segment; None is `EMPTY`.
        segment_ids: (B, L); z starts anew at each run of equal ids.
        mask: (B, L), true at real tokens; the others add nothing.

    Returns:
        Both (B, L, H, K), float32 at least.

    Example:
        >>> z, z_before = log_normalisers(jnp.zeros((1, 3, 1, 1)))
        >>> jnp.exp(z).ravel().round(4).tolist(), jnp.exp(z_before).ravel().round(4).tolist()
        ([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    keep, _ = tokens_of(segment_ids, mask)
    if mask is not None:
        logits = jnp.where(mask[..., None, None], logits, EMPTY)
    first = jnp.full_like(logits[:, 0], EMPTY) if before is None else before.astype(logits.dtype)
    starts = jnp.zeros(logits.shape[:2], bool) if keep is None else ~keep
    # The state before is one more token in front, so that it enters the first segment and no other.
    values = jnp.concatenate([first[:, None], logits], axis=1)
    flags = jnp.pad(starts, ((0, 0), (1, 0)))[..., None, None]
    _, z = jax.lax.associative_scan(_join, (flags, values), axis=1)
    return z[:, 1:], jnp.where(starts[..., None, None], EMPTY, z[:, :-1])


def _join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two stretches: whether a segment starts in them, and z of their last segment."""
    (starts, z), (starts_later, z_later) = earlier, later
    return starts | starts_later, jnp.where(starts_later, z_later, jnp.logaddexp(z, z_later))


def log_decay(logits: Array, before: Array) -> Array:
    """The decay z_{t-1} - z_t of LightNet's recurrence, as -log(1 + exp(a_t - z_{t-1})), which is at most 0.

    Args:
        logits: a_t.
        before: z_{t-1}, of the same shape.

    Returns:
        Of the same shape.

    Example:
        >>> jnp.exp(log_decay(jnp.zeros(2), jnp.log(jnp.array([1.0, 3.0])))).round(4).tolist()
        [0.5, 0.75]
    """
    return -jax.nn.softplus(logits - before)


def normaliser_of(state: AdditiveState) -> Array:
    """z (B, H, K) of what the state has read.

    Example:
        >>> one = jnp.ones((1, 1, 1))
        >>> normaliser_of(AdditiveState(2 * one, one, one[..., None])).item()
        2.0
    """
    read = state.total > 0
    z = jnp.where(read, state.maximum, 0) + jnp.log(jnp.where(read, state.total, 1))
    return jnp.where(read, z, EMPTY)
