"""What the mixers do between their projections, as functions of arrays alone, under one set of names.

| name | reads | operands |
|---|---|---|
| `lightnet` | all tokens, without an order | q, key logits, v |
| `linear` | all tokens, without an order | q, k, v |
| `multiplicative`, `-2`, `-4` | the tokens before, in 1, 2 or 4 orders | q, k, v, log decays |
| `softmax` | all tokens, without an order | q, k, v |

Gates are operands, never constants of a program, which XLA would evaluate when it compiles.
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp

from lightnet.mixers import scan_orders
from lightnet.scan import additive_global, gated_linear_attention
from lightnet.typing import Array

CORES = ("lightnet", "linear", "multiplicative", "multiplicative-2", "multiplicative-4", "softmax")


def core(name: str, grid: tuple[int, ...] | None = None) -> Callable[..., Array]:
    """The mixing itself.

    Args:
        name: one of CORES.
        grid: size along each axis, for four scans; None is a sequence.

    Returns:
        Function of the operands, each (B, L, H, K), that gives (B, L, H, K).

    Raises:
        ValueError: an unknown name.

    Example:
        >>> ones = jnp.ones((1, 3, 1, 2))
        >>> core("lightnet")(*operands("lightnet", ones, ones, ones)).shape
        (1, 3, 1, 2)
    """
    if name not in CORES:
        raise ValueError(f"core: got {name!r}, expected one of {', '.join(CORES)}")
    if name.startswith("multiplicative"):
        return partial(_scans, int(name.partition("-")[2] or 1), grid)
    whole: dict[str, Callable[..., Array]] = {
        "lightnet": additive_global,
        "linear": _linear,
        "softmax": jax.nn.dot_product_attention,
    }
    return whole[name]


def operands(name: str, q: Array, logits: Array, v: Array, decay_bias: float = 2.0) -> tuple[Array, ...]:
    """What a core is given, made from one set of projections.

    Args:
        name: one of CORES.
        q: (B, L, H, K), behind its activation.
        logits: of keys, or of forget gates f = sigmoid(logits + c), (B, L, H, K).
        v: (B, L, H, K).
        decay_bias: c.

    Returns:
        The operands.
    """
    if name.startswith("multiplicative"):
        return q, jax.nn.sigmoid(-logits - decay_bias), v, jax.nn.log_sigmoid(logits + decay_bias)
    return q, jax.nn.silu(logits) if name == "linear" else logits, v


def _linear(q: Array, k: Array, v: Array) -> Array:
    return jnp.einsum("blhk,bhkv->blhv", q, jnp.einsum("blhk,blhv->bhkv", k, v))


def _scans(num_scans: int, grid: tuple[int, ...] | None, *arrays: Array) -> Array:
    """The sum of what scans in several orders read; one scan needs no reordering."""
    if num_scans == 1:
        return gated_linear_attention(*arrays)[0]
    orders = scan_orders(arrays[0].shape[1], num_scans, grid)
    read = [gated_linear_attention(*(x[:, order] for x in arrays))[0][:, order.argsort()] for order in orders]
    return reduce(jnp.add, read)
