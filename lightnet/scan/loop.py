"""Loops over time that work in place, in pieces of a few tokens."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from lightnet.typing import Array

CHUNK = 32


def over_chunks(length: int, body: Callable[[Any, int, Any], Any], carry: Any, *, reverse: bool = False) -> Any:
    """Call `body(start, size, carry)` for each chunk in turn; the last chunk may be shorter than the others.

    Args:
        length: number of tokens.
        body: gives the next carry. `start` may be traced, `size` is static.
        carry: what enters the first call.
        reverse: from the last chunk to the first.

    Returns:
        What the last call gave.

    Example:
        >>> int(over_chunks(70, lambda start, size, total: total + size, jnp.array(0)))
        70
    """
    whole, rest = divmod(length, CHUNK)
    if rest and reverse:
        carry = body(whole * CHUNK, rest, carry)
    if whole:
        carry = lax.fori_loop(0, whole, lambda i, c: body((whole - 1 - i if reverse else i) * CHUNK, CHUNK, c), carry)
    if rest and not reverse:
        carry = body(whole * CHUNK, rest, carry)
    return carry


def take(x: Array, t: Any) -> Array:
    """x[:, t] of an array (B, L, ...)."""
    return lax.dynamic_slice_in_dim(x, t, 1, axis=1)[:, 0]


def put(x: Array, value: Array, t: Any) -> Array:
    """The array (B, L, ...) with `value` at x[:, t]; in place where x is the carry of a loop."""
    return lax.dynamic_update_slice_in_dim(x, value[:, None].astype(x.dtype), t, axis=1)


def kept(flag: Array | None, state: Array, t: Any) -> Array:
    """The state (B, N, D) where the flag (B, L) of token t is true, else 0; None is true everywhere."""
    return state if flag is None else jnp.where(take(flag, t)[:, None, None], state, jnp.zeros((), state.dtype))
