"""exp(x) h + b of a state h that hardly fades, without the drift that rounding exp(x) would cause."""

import jax.numpy as jnp

from lightnet.typing import Array

# Below it 1 + x + x^2 / 2 is closer to exp(x) than its rounding in float32 is. A longer series would reach further, but
# where there are more operations than bytes, XLA on CPU spreads each step of a loop over threads, and takes longer.
NEAR = 1 / 256


def fade(log_decay: Array, h: Array, b: Array | None = None) -> Array:
    """exp(log_decay) h + b, next to 1 as h + ((exp(log_decay) - 1) h + b).

    A decay next to 1 is rounded by up to 3e-8 in float32. Where it is the same at every token so is its rounding, and
    after n tokens the state would be wrong by n times that. What is left is the rounding of the state itself, which
    has no direction as long as b, or the change of h, is not far below 1e-7 of h.

    Args:
        log_decay: at most 0, but for a state that grows. -inf is exact, but not for automatic differentiation.
        h: the state.
        b: what is added; None is nothing.

    Returns:
        The sum, in their common shape.

    Example:
        >>> fade(jnp.float32(-1e-9), jnp.float32(0.0), jnp.float32(2.0)).item()
        2.0
        >>> fade(jnp.float32(-jnp.inf), jnp.float32(1e30), jnp.float32(2.0)).item()
        2.0
    """

    def plus(x: Array) -> Array:
        return x if b is None else x + b

    if log_decay.dtype != jnp.float32:
        return plus(jnp.exp(log_decay) * h)
    square = log_decay * log_decay
    near = square < NEAR**2
    rest = jnp.where(near, log_decay + 0.5 * square, jnp.exp(log_decay))
    return jnp.where(near, h, 0) + plus(rest * h)
