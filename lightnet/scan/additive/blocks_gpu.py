"""How the kernels of causal LightNet for Hopper GPUs cut up their arrays, and which tokens of a chunk count for which.

A chunk is as many tokens as one product has rows. Its keys are relative to one reference per channel, the largest logit
of the chunk and of the state that enters it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.additive import launch_gpu
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

CHUNK = 64  # tokens
GROUP = PART = hopper.ROWS  # key channels whose numbers are in registers at once, and value channels of a program
STAGES = 2  # chunks on their way
LANES = plgpu.LoweringSemantics.Lane  # others look for layouts by themselves, in newer releases for minutes
# Bits of a token's code: its run, counted from the beginning of its chunk; whether it counts for the state that leaves,
# whether the state that enters does, whether that state counts for the first token, and whether the token is real.
RUN, LEAVES, STAYS, ENTERS, REAL = 127, 128, 256, 512, 1024
START_UNIT = 2048
START = 63 * START_UNIT  # the first token of its run in the chunk


class Plan(NamedTuple):
    """Sizes of one call: tokens, chunks of a program, channels; and whether the states that enter are stored."""

    length: int
    each: int
    key: int
    value: int
    dtype: Any
    stores: bool = False

    @property
    def groups(self) -> list[Any]:
        """Of key channels."""
        return hopper.parts_of(self.key)

    @property
    def parts(self) -> int:
        """Of value channels."""
        return self.value // PART


class Before(NamedTuple):
    """What the forward pass stores of the state that enters each chunk.

    Attributes:
        maximum: (B, H, chunks, K), whether the state counts in the chunk or not.
        total: (B, H, chunks, K), likewise.
        reference: (B, H, chunks, K), of the chunk.
        state: (B, H, chunks, K, V) in half precision, relative to the reference; 0 where it does not count.
    """

    maximum: Array
    total: Array
    reference: Array
    state: Array


class Sight(NamedTuple):
    """Which tokens of a chunk count for which, read anew from their codes wherever it is asked for."""

    codes: Any

    def of_row(self, like: Array, bits: int) -> Array:
        """Some bits of the code of the token of the row."""
        codes = hopper.load(self.codes, hopper.PER_ROW) & bits
        return plgpu.layout_cast(hopper.of_rows(codes, like.shape[1]), hopper.MATRIX)

    def of_column(self, like: Array, bits: int) -> Array:
        """Some bits of the code of the token of the column."""
        codes = hopper.load(self.codes, hopper.PER_COLUMN) & bits
        return plgpu.layout_cast(hopper.of_columns(codes, like.shape[0]), hopper.MATRIX)

    def of_chunk(self, like: Array, bits: int) -> Array:
        """Some bits that all tokens share."""
        layout = hopper.MATRIX if like.ndim == 2 else hopper.PER_ROW
        return plgpu.layout_cast(lax.broadcast_in_dim(self.codes[0] & bits, like.shape, []), layout)


def only(sees: Sight | None, x: Array, bits: int, value: int | None = None) -> Array:
    """Rows of tokens with all of these bits, or with this value of them; 0 in the place of others."""
    if sees is None:
        return x
    return jnp.where(sees.of_row(x, bits) == (bits if value is None else value), x, 0.0)


def where_steep(steep: Array, found: Any, exactly: Callable, given: Any) -> Any:
    """What XLA's form makes of what is given, in the place of what was found where logits rise steeply."""

    def again(carry: Any) -> Any:
        # What could be done before a loop would be done even if it has no step.
        _, held = lax.optimization_barrier((carry, given))
        return jnp.zeros((), bool), exactly(*held)

    # One step or none: what was found stays where and as it is. A choice would copy it.
    return lax.while_loop(lambda carry: carry[0], again, (steep, found))[1]


def padded(x: Array, filling: float = 0.0) -> Array:
    """(B, L, H, size) as kernels take it."""
    return launch_gpu.aligned(x, filling)


def masked(logits: Array, tokens: Tokens) -> Array:
    """-inf at tokens that are not real, and behind the end."""
    if tokens.real is not None:
        logits = jnp.where(tokens.real[..., None, None], logits, -jnp.inf)
    return padded(logits, -jnp.inf)


def flags(tokens: Tokens, batch: int, length: int, multiple: int, dtype: Any) -> list[Array]:
    """Codes (B, tokens), and pairs (B, tokens, CHUNK), 1 where the token of the row counts for that of the column.

    For a multiple of tokens; nothing if all are alike.
    """
    if tokens == (None, None):
        return []
    keep, real = (jnp.ones((batch, length), bool) if flag is None else flag for flag in tokens)
    missing = ((0, 0), (0, -length % multiple))
    keep, real = jnp.pad(keep, missing, constant_values=True), jnp.pad(real, missing)
    run = jnp.cumsum(~keep.reshape(batch, -1, CHUNK), axis=2, dtype=jnp.int32)
    first, last = run[..., :1], run[..., -1:]
    start = lax.cummax(jnp.where(keep.reshape(run.shape), 0, jnp.arange(CHUNK)), axis=2)
    codes = start * START_UNIT + run + LEAVES * (run == last) + STAYS * (last == 0) + ENTERS * (first == 0)
    pairs = jnp.triu(run[..., :, None] == run[..., None, :])
    return [codes.reshape(batch, -1) + REAL * real, pairs.reshape(batch, -1, CHUNK).astype(dtype)]


def flag_blocks(batch: Any, number: Callable) -> list[Any]:
    """Of codes and pairs; number: step -> of the chunk."""
    return [
        plgpu.BlockSpec((None, CHUNK), lambda t: (batch, number(t))),
        plgpu.BlockSpec((None, CHUNK, CHUNK), lambda t: (batch, number(t), 0), transforms=hopper.swizzled(CHUNK)),
    ]


def square(flagged: Any, dtype: Any) -> Any:
    """Shared memory for pairs of tokens that all chunks share, if they do."""
    return hopper.tile(hopper.TILE if flagged else CHUNK, CHUNK, dtype=dtype)


def fill_square(ones: Any) -> None:
    """1 where the token of the row counts for that of the column."""
    ones[...] = causal_pairs(0, hopper.filled((CHUNK, CHUNK), 1.0), lambda row, column: row <= column).astype(
        ones.dtype
    )


def causal_pairs(t: Any, like: Array, order: Callable) -> Array:
    """0 in the place of pairs of tokens in another order."""
    # Numbers that change from chunk to chunk: others would be kept in registers, of which there are too few.
    row, column = (hopper.index(like.shape, i) + t for i in (0, 1))
    return jnp.where(order(row, column), like, 0.0)
