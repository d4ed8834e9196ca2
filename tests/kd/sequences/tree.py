"""All sequences of three tokens of three, with logits for every prefix, so that expectations are sums.

Token 0 ends a sequence: what follows it is not counted, and stands there in every way it can.
"""

import jax
import jax.numpy as jnp
import numpy as np

V, T = 3, 3
SEQUENCES = np.array(list(np.ndindex(*T * (V,))))
STATES = np.stack([0 * SEQUENCES[:, 0], 1 + SEQUENCES[:, 0], 4 + 3 * SEQUENCES[:, 0] + SEQUENCES[:, 1]], axis=1)
PREFIXES = 13
COUNTED = np.concatenate([np.ones((len(SEQUENCES), 1), bool), (SEQUENCES[:, :-1] != 0).cumprod(1).astype(bool)], axis=1)


def chances(table, counted=True):
    """Log probabilities of the sequences: of all their tokens, or of those that count."""
    log_q = jax.nn.log_softmax(table)[STATES]
    chosen = jnp.take_along_axis(log_q, SEQUENCES[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(COUNTED, chosen, 0) if counted else chosen, axis=1)


def expected(drawn_from, loss):
    """E loss(logits along a sequence, the other's, tokens, mask) over sequences drawn from a table of logits."""

    def whole(table, other):
        drawn = jax.lax.stop_gradient(jnp.exp(chances(drawn_from(table, other), counted=False)))
        each = jax.vmap(lambda s, t, y, m: loss(s[None], t[None], y[None], m[None]))
        return jnp.sum(drawn * each(table[STATES], other[STATES], SEQUENCES, COUNTED))

    return whole


def divergence(a, b):
    """KL(a || b) of whole sequences."""
    log_a = chances(a)
    return jnp.sum(jnp.exp(chances(a, counted=False)) * (log_a - chances(b)))
