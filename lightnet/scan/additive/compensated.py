"""LightNet's sums without drift: what rounding leaves out of them is carried along (Kahan 1965).

After t tokens the sum of the keys' weights is about t, and a key that is added to it is rounded to a multiple of about
1e-7 t. Where keys are much alike so is their rounding, and in float32 the sum is wrong by 1e-4 of itself after some ten
thousand tokens. So each sum x is kept as two numbers, the rounded one and the rest r:

    y' = y + r,    x' = round(x + y'),    r' = y' - (x' - x)

which is exact but for the rounding of y'. Both are rescaled where the running maximum grows. The decay exp(m - m') is
next to 1 where the maximum creeps, and rounded as a number near 1 it would be wrong by 3e-8 at each token, the same way
each time; so its difference to 1 is what x is multiplied by, and the product belongs to y'.

A chunk or a step reads the rounded sums, which are right to their last bit; the rest only enters the next sum. A
compiler that simplified (x + y) - x to y would undo all this; XLA does not, and a test would see it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lightnet.scan.additive.chunk import AdditiveState, AdditiveSummary, dot, finite, repeat
from lightnet.typing import Array


class Remainder(NamedTuple):
    """What rounding left out of a state, in the same units.

    Attributes:
        total: (B, H, K).
        state: (B, H, F*K, V).
    """

    total: Array
    state: Array


def no_remainder(state: AdditiveState) -> Remainder:
    """That of sums that count as exact, such as those of an empty state."""
    return Remainder(jnp.zeros_like(state.total), jnp.zeros_like(state.state))


def compensated_update(
    q: Array, logits: Array, v: Array, factor: Array | None, state: AdditiveState, remainder: Remainder
) -> tuple[Array, AdditiveState, Remainder]:
    """`additive_update` of sums with their remainders.

    Args:
        q: (B, H, F*K).
        logits: (B, H, K).
        v: (B, H, V).
        factor: (B or 1, H or 1, F, K), or None for 1.
        state: the rounded sums.
        remainder: what they lack.

    Returns:
        o (B, H, V), 0 while every logit has been -inf; the state; and its remainder.
    """
    factors = q.shape[-1] // logits.shape[-1]
    maximum = jnp.maximum(state.maximum, logits)
    key = jnp.exp(logits - finite(maximum))
    keys = repeat(key, factors)
    if factor is not None:
        keys = keys * factor.reshape((*factor.shape[:2], -1))
    after, remainder = _added(state, remainder, maximum, key, keys[..., None] * v[..., None, :])
    normalised = q / repeat(jnp.where(after.total > 0, after.total, 1), factors)
    return dot("bhk,bhkv->bhv", normalised, after.state), after, remainder


def compensated_enter(
    summary: AdditiveSummary, state: AdditiveState, remainder: Remainder
) -> tuple[AdditiveState, Remainder]:
    """The state behind a stretch that `state` enters, as `enter`, of sums with their remainders."""
    alone = summary.last
    maximum = jnp.maximum(state.maximum, alone.maximum)
    scale = jnp.exp(alone.maximum - finite(maximum))
    scales = repeat(scale, state.state.shape[-2] // scale.shape[-1])[..., None]
    merged = _added(state, remainder, maximum, scale * alone.total, scales * alone.state)

    def choose(restarted: Array, continued: Array) -> Array:
        return jnp.where(summary.restarts.reshape((-1,) + (1,) * (continued.ndim - 1)), restarted, continued)

    return jax.tree.map(choose, (alone, no_remainder(alone)), merged)


def _added(
    state: AdditiveState, remainder: Remainder, maximum: Array, total: Array, inner: Array
) -> tuple[AdditiveState, Remainder]:
    """The state in units of a new maximum, with something added to its sums."""
    log_decay = state.maximum - finite(maximum)
    decay, change = jnp.exp(log_decay), jnp.expm1(log_decay)
    factors = state.state.shape[-2] // maximum.shape[-1]
    decays, changes = (repeat(x, factors)[..., None] for x in (decay, change))
    total, total_left = fade_and_add(state.total, remainder.total, decay, change, total)
    inner, inner_left = fade_and_add(state.state, remainder.state, decays, changes, inner)
    return AdditiveState(maximum, total, inner), Remainder(total_left, inner_left)


def fade_and_add(x: Array, left: Array, decay: Array, change: Array, y: Array) -> tuple[Array, Array]:
    """decay (x + left) + y, rounded, and what rounding left out of it.

    Args:
        x: a rounded sum.
        left: what it lacks.
        decay: from 0 to 1.
        change: decay - 1, more precise than that.
        y: what is added.

    Returns:
        Both, in their common shape. The second has no gradient: it stands for digits and not for a dependence.

    Example:
        >>> x, left = jnp.float32(2**24), jnp.float32(0)
        >>> for _ in range(3):
        ...     x, left = fade_and_add(x, left, jnp.float32(1), jnp.float32(0), jnp.float32(1))
        >>> int(x) + int(left) - 2**24, int(jnp.float32(2**24) + 1 + 1 + 1) - 2**24
        (3, 0)
    """
    # A sum that at least halves may be rounded as it is rescaled: what that leaves behind halves from then on too.
    near = change > -0.5
    start = jnp.where(near, 1, decay) * x
    added = jnp.where(near, change, 0) * x + (decay * left + y)
    rounded = start + added
    return rounded, lax.stop_gradient(added - (rounded - start))
