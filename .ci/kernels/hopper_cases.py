"""The kernels for Hopper GPUs, at the sizes that budgets are for."""

from typing import Any

import jax
import jax.numpy as jnp

from kernels.case import BATCH, HEADS, LENGTH, SIZE, Case, by_head, packed
from lightnet import scan

OF_TOKENS = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), jnp.bfloat16)


def linear(dtype: Any, shape: tuple[int, int, int] = (8, 8192, 1536), *, backward: bool = False) -> Case:
    """Each sequence as a whole, or in segments where there are few."""
    x = jax.ShapeDtypeStruct(shape, dtype)
    return Case(lambda a, b, **given: scan.linear_scan(a, b, implementation="pallas", **given)[0], [x, x], backward)


def order_free(*, backward: bool = False) -> Case:
    """One head per program."""
    call = by_head(lambda *x, **given: scan.additive_global(*x, implementation="pallas", **given))
    return Case(call, [OF_TOKENS] * 3, backward)


def causal(*, backward: bool = False) -> Case:
    """One head and half of its values per program."""
    call = by_head(lambda *x, **given: scan.additive_recurrence(*x, implementation="pallas", **given)[0])
    return Case(call, [OF_TOKENS] * 3, backward)


def gated(decays: int, dtype: Any = jnp.float32, *, size: int = SIZE, backward: bool = False) -> Case:
    """So many decays per head."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS, size), jnp.bfloat16)
    decay = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS, decays), dtype)
    call = lambda *x, **given: scan.gated_linear_attention(*x, implementation="pallas", **given)[0]  # noqa: E731
    return Case(call, [x, x, x, decay], backward)


def selective(dtype: Any, shape: tuple[int, int, int] = (8, 2048, 2048), *, backward: bool = False) -> Case:
    """With gates, and step sizes in float32."""
    x, dt, of_token = (
        jax.ShapeDtypeStruct(s, d) for s, d in ((shape, dtype), (shape, jnp.float32), ((*shape[:2], 16), dtype))
    )
    A, D = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((shape[2], 16), shape[2:]))

    call = lambda x, dt, z, *weights, **given: scan.selective_scan(  # noqa: E731
        x, dt, *weights, z=z, implementation="pallas", **given
    )[0]
    return Case(call, [x, dt, x, A, of_token, of_token, D], backward)


CASES: dict[str, Case] = {
    "linear_scan float32": linear(jnp.float32),
    "linear_scan float32 backward": linear(jnp.float32, backward=True),
    "linear_scan bfloat16": linear(jnp.bfloat16),
    "linear_scan bfloat16 backward": linear(jnp.bfloat16, backward=True),
    "linear_scan bfloat16 in segments": linear(jnp.bfloat16, (1, 65536, 512)),
    "linear_scan bfloat16 packed": packed(linear(jnp.bfloat16)),
    "linear_scan complex64": linear(jnp.complex64),
    "linear_scan complex64 backward": linear(jnp.complex64, backward=True),
    "additive_recurrence bfloat16": causal(),
    "additive_recurrence bfloat16 packed": packed(causal()),
    "additive_recurrence bfloat16 backward": causal(backward=True),
    "additive_recurrence bfloat16 packed backward": packed(causal(backward=True)),
    "additive_global bfloat16": order_free(),
    "additive_global bfloat16 backward": order_free(backward=True),
    "gated_linear_attention bfloat16": gated(SIZE),
    "gated_linear_attention bfloat16, heads of 64": gated(64, size=64),
    "gated_linear_attention bfloat16, decays too": gated(SIZE, jnp.bfloat16),
    "gated_linear_attention bfloat16, backward": gated(SIZE, backward=True),
    "gated_linear_attention bfloat16, one decay per head": gated(1),
    "gated_linear_attention bfloat16, one decay per head, backward": gated(1, backward=True),
    "selective_scan bfloat16": selective(jnp.bfloat16),
    "selective_scan bfloat16 packed": packed(selective(jnp.bfloat16)),
    "selective_scan bfloat16 backward": selective(jnp.bfloat16, backward=True),
    "selective_scan float32": selective(jnp.float32),
    "selective_scan bfloat16 in segments": selective(jnp.bfloat16, (1, 65536, 512)),
}
