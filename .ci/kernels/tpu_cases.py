"""The kernels for TPUs, at the sizes that budgets are for."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels.case import BATCH, HEADS, LENGTH, SIZE, Case, by_head, packed
from lightnet import scan


def linear(dtype: Any, *, backward: bool = False) -> Case:
    """Tiles of 128 tokens and 2,048 numbers, or of 64 tokens and both parts of as many complex numbers.

    These are given and taken by their parts, as which XLA holds them within a program. At its ends alone it splits and
    joins complex arrays, whatever the program does with them.
    """
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, 2048), dtype)
    part = jax.ShapeDtypeStruct(x.shape, x.dtype.type(0).real.dtype)
    parts = 1 if part.dtype == dtype else 2

    def call(*numbers: jax.Array, **given: Any) -> Any:
        a, b = numbers if parts == 1 else (jax.lax.complex(*numbers[:2]), jax.lax.complex(*numbers[2:]))
        h, _ = scan.linear_scan(a, b, implementation="pallas", **given)
        return h if parts == 1 else (h.real, h.imag)

    tokens = 128 // parts
    return Case(call, [part] * 2 * parts, backward, (tokens // 16,), tokens / 8, "8 rows of 2,048 channels")


def gated(dtype: Any, *, backward: bool = False) -> Case:
    """Blocks of 4 or 2 chunks; the backward pass first makes the states of all but one again."""
    x, decay = (jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), d) for d in (dtype, jnp.float32))
    call = by_head(lambda *x, **given: scan.gated_linear_attention(*x, implementation="pallas", **given)[0])
    chunks, heads = (4 if dtype == jnp.bfloat16 else 2), (2 if backward else 4)
    trips = (3, 4) if backward and chunks > 2 else (chunks,)  # a loop that runs once is none
    return Case(call, [x, x, x, decay], backward, trips, 128 * chunks * heads, "token and head")


def gated_by_head(dtype: Any, *, groups: int = HEADS, backward: bool = False) -> Case:
    """One decay per head; and a query and a key for each, or for several."""
    size = lambda heads: (BATCH, LENGTH, heads)  # noqa: E731
    x, shared = (jax.ShapeDtypeStruct(size(heads * SIZE), dtype) for heads in (HEADS, groups))
    decay = jax.ShapeDtypeStruct(size(HEADS), jnp.float32)

    def call(*arrays: jax.Array, **given: Any) -> jax.Array:
        q, k, v = (x.reshape(*size(-1), SIZE) for x in arrays[:3])
        o, _ = scan.gated_linear_attention(q, k, v, arrays[3][..., None], implementation="pallas", **given)
        return o.reshape(*size(-1))

    chunks = 4 if dtype == jnp.bfloat16 else 2
    trips = (3, 4) if backward and chunks > 2 else (chunks,)
    return Case(call, [shared, shared, x, decay], backward, trips, 128 * chunks * 4, "token and head")


def causal(dtype: Any, *, backward: bool = False) -> Case:
    """As `gated`, in half precision two chunks at a time. What is done again for steep logits is not counted."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), dtype)
    call = by_head(lambda *x, **given: scan.additive_recurrence(*x, implementation="pallas", **given)[0])
    half, heads = dtype == jnp.bfloat16, (2 if backward else 4)
    rarely = (0,) if backward else (0,) * heads
    often = (3, 2) if half and backward else (2,)
    return Case(call, [x, x, x], backward, often + rarely, 128 * (4 if half else 2) * heads, "token and head")


def small_heads(dtype: Any) -> Case:
    """Two of 32 channels, which share rows of 128 numbers, backward."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, 2, 32), dtype)
    call = lambda *x: scan.additive_recurrence(*x, implementation="pallas")[0]  # noqa: E731
    return Case(call, [x, x, x], True, (2, 0), 128 * 2 * 2, "token and head")


def order_free(dtype: Any, *, backward: bool = False) -> Case:
    """Blocks of 1,024 tokens of 4 heads, or 512, once for the keys and once for the queries; half of them backward."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), dtype)
    call = by_head(lambda *x, **given: scan.additive_global(*x, implementation="pallas", **given))
    tokens = (1024 if dtype == jnp.bfloat16 else 512) // (2 if backward else 1)
    return Case(call, [x, x, x], backward, (), tokens * 4, "token and head")


def selective(dtype: Any, *, backward: bool = False) -> Case:
    """Mamba's sizes, with skip and gate: blocks of 128 tokens of 512 channels, in groups of 16 tokens."""
    x, weights = (jax.ShapeDtypeStruct((BATCH, LENGTH, size), dtype) for size in (2048, 16))
    A, D = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2048, 16), (2048,)))
    call = lambda *x, **given: scan.selective_scan(*x[:-1], z=x[-1], implementation="pallas", **given)[0]  # noqa: E731
    trips = (8, 8) if backward else (8,)
    return Case(call, [x, x, A, weights, weights, D, x], backward, trips, 128 * 512 / 128, "token and 128 channels")


def diagonal(kind: Any, *, backward: bool = False) -> Case:
    """S4D's sizes, 32 complex states, or 16 real ones: blocks of 128 tokens of 128 or 512 channels, in groups of 16."""
    parts, states, width = (2, 32, 128) if kind == jnp.complex64 else (1, 16, 512)
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, 2048), jnp.bfloat16)
    part = jax.ShapeDtypeStruct((2048, states), jnp.float32)

    def call(x: jax.Array, *numbers: jax.Array, **given: Any) -> jax.Array:
        weights = numbers if parts == 1 else [jax.lax.complex(*numbers[i : i + 2]) for i in (0, 2, 4)]
        return scan.diagonal_ssm(x, *weights, implementation="pallas", **given)[0]

    trips = (8, 8) if backward else (8,)
    return Case(call, [x, *[part] * 3 * parts], backward, trips, 128 * width / 128, "token and 128 channels")


def segments(dtype: Any) -> Case:
    """16 segments, backward: blocks of 128 tokens of 4 heads, three times."""
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * SIZE), dtype)
    ids = jnp.arange(LENGTH)[None].repeat(BATCH, axis=0) // (LENGTH // 16)
    given: dict[str, Any] = {"segment_ids": ids, "num_segments": 16, "implementation": "pallas"}
    call = by_head(lambda *x: scan.additive_global(*x, **given))
    return Case(call, [x, x, x], True, (), 128 * 4, "token and head")


def with_factors(dtype: Any) -> Case:
    """MD-LRPE, backward: two factors of 64 key channels, shared by sequences and heads."""
    x, logits = (jax.ShapeDtypeStruct((BATCH, LENGTH, HEADS * size), dtype) for size in (SIZE, SIZE // 2))
    factor = jax.ShapeDtypeStruct((1, LENGTH, SIZE), jnp.float32)

    def call(q: jax.Array, logits: jax.Array, v: jax.Array, factor: jax.Array) -> jax.Array:
        of_heads = [x.reshape(BATCH, LENGTH, HEADS, -1) for x in (q, logits, v)]
        factor = factor.reshape(1, LENGTH, 1, 2, -1)
        o, _ = scan.additive_recurrence(*of_heads, key_factor=factor, implementation="pallas")
        return o.reshape(BATCH, LENGTH, -1)

    return Case(call, [x, logits, x, factor], True, (3, 2, 0), 128 * 4 * 2, "token and head")


MESH = PartitionSpec("data", None, "tensor")
# Kinds of operands that take another way through a kernel, for one target.
ON_V5E = {
    "selective_scan float32 backward": selective(jnp.float32, backward=True),
    "gated_linear_attention float32": gated(jnp.float32),
    "gated_linear_attention by head float32": gated_by_head(jnp.float32),
    "gated_linear_attention by head bfloat16, shared keys": gated_by_head(jnp.bfloat16, groups=1),
    "additive_recurrence float32": causal(jnp.float32),
    "additive_recurrence float32 backward": causal(jnp.float32, backward=True),
    "additive_recurrence bfloat16 with factors backward": with_factors(jnp.bfloat16),
    "additive_global float32": order_free(jnp.float32),
    "additive_global float32 backward": order_free(jnp.float32, backward=True),
    "additive_global bfloat16 of segments backward": segments(jnp.bfloat16),
    "linear_scan bfloat16 packed backward": packed(linear(jnp.bfloat16, backward=True)),
    "diagonal_ssm complex64 packed": packed(diagonal(jnp.complex64)),
    "selective_scan bfloat16 packed backward": packed(selective(jnp.bfloat16, backward=True)),
    "gated_linear_attention bfloat16 packed backward": packed(gated(jnp.bfloat16, backward=True)),
    "gated_linear_attention by head bfloat16 packed": packed(gated_by_head(jnp.bfloat16)),
    "additive_recurrence bfloat16 packed backward": packed(causal(jnp.bfloat16, backward=True)),
    "additive_global bfloat16 masked": packed(order_free(jnp.bfloat16), "mask"),
    "gated_linear_attention bfloat16 on 2x2 chips": gated(jnp.bfloat16)._replace(over=MESH),
}
CASES = {
    "linear_scan float32": linear(jnp.float32),
    "linear_scan float32 backward": linear(jnp.float32, backward=True),
    "linear_scan bfloat16": linear(jnp.bfloat16),
    "linear_scan complex64": linear(jnp.complex64),
    "linear_scan complex64 backward": linear(jnp.complex64, backward=True),
    "diagonal_ssm complex64": diagonal(jnp.complex64),
    "diagonal_ssm complex64 backward": diagonal(jnp.complex64, backward=True),
    "diagonal_ssm float32 backward": diagonal(jnp.float32, backward=True),
    "selective_scan bfloat16": selective(jnp.bfloat16),
    "selective_scan bfloat16 backward": selective(jnp.bfloat16, backward=True),
    "gated_linear_attention bfloat16": gated(jnp.bfloat16),
    "gated_linear_attention bfloat16 backward": gated(jnp.bfloat16, backward=True),
    "gated_linear_attention by head bfloat16": gated_by_head(jnp.bfloat16),
    "gated_linear_attention by head bfloat16 backward": gated_by_head(jnp.bfloat16, backward=True),
    "additive_recurrence bfloat16": causal(jnp.bfloat16),
    "additive_recurrence bfloat16 backward": causal(jnp.bfloat16, backward=True),
    "additive_global bfloat16": order_free(jnp.bfloat16),
    "additive_global bfloat16 backward": order_free(jnp.bfloat16, backward=True),
    **{name: case._replace(targets=("v5e",)) for name, case in ON_V5E.items()},
    "additive_recurrence float32 of small heads backward": small_heads(jnp.float32)._replace(targets=("v5p",)),
}
