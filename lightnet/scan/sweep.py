"""Kernels for TPUs that take a few channels of one sequence through time, with all their states: what they share.

A program holds a state (N, channels) in registers and goes through the tokens one by one, in groups of `GROUP`, whose
rows it finds widened to float32 in VMEM. Blocks of `BLOCK` tokens stream through VMEM; states are stored between them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.kernels import KEEP, REAL, flags_of
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

BLOCK = 128  # tokens of a block, whose weights (N, tokens) fill rows of the vector unit
GROUP = 16  # tokens of a step: half-precision tiles are 16 rows high
LANES, SUBLANES = 128, 8  # of a register of the vector unit
NUMBERS = 8192  # of a program's state: eight registers, of 64
MOST_CHANNELS = 1024
MOST_ROWS = 128  # of a state, for which there is room for all those of a block

Given = Mapping[str, tuple[str, Any]]  # name -> how the array is cut up, and the array, or what describes it


class Plan(NamedTuple):
    """Sizes of one call.

    Attributes:
        batch: B.
        length: L.
        channels: D.
        tokens: of a block.
        width: channels of a block.
        blocks: of tokens.
        tiles: of channels.
        columns: L', tokens of weights (B, N, L'), `BLOCK` per block.
    """

    batch: int
    length: int
    channels: int
    tokens: int
    width: int
    blocks: int
    tiles: int
    columns: int

    @property
    def groups(self) -> int:
        """In a block of tokens."""
        return self.tokens // GROUP


class Place(NamedTuple):
    """Where a step of the grid is.

    Attributes:
        plan: the sizes.
        first: whether it is the first of its channels.
        start: its first token.
        exist: which channels of the tile exist, (1, channels); None if all do.
    """

    plan: Plan
    first: Any
    start: Any
    exist: Array | None


def plan_of(x: Array, states: int) -> Plan:
    """How to cut up x (B, L, D), with so many real numbers of state per channel."""
    batch, length, channels = x.shape
    most = min(NUMBERS // (pl.cdiv(states, SUBLANES) * SUBLANES), MOST_CHANNELS) // LANES * LANES
    tiles = pl.cdiv(channels, max(most, LANES))
    width = min(channels, pl.cdiv(pl.cdiv(channels, tiles), LANES) * LANES)
    tokens = min(BLOCK, pl.cdiv(length, GROUP) * GROUP)
    blocks = pl.cdiv(length, tokens)
    return Plan(batch, length, channels, tokens, width, blocks, tiles, blocks * BLOCK)


def run(
    kernel: Callable[[Mapping[str, Any], Place], None],
    plan: Plan,
    inputs: Given,
    outputs: Given,
    scratch: Mapping[str, Any],
    *,
    backwards: bool,
    interpret: bool,
) -> dict[str, Array]:
    """Call a kernel over sequences, channels and blocks of tokens, these from the last to the first if `backwards`.

    Args:
        kernel: of references to arrays by their names, and of the place.
        plan: the sizes.
        inputs: by name. Each is "tokens" (B, L, D), "weights" (B, N, L'), "fixed" (N, D), "state" (B, N, D), "states"
            (B, blocks, N, D) or "flags" (B, blocks, 1, tokens of a block).
        outputs: the same with shapes; or "parts" (tiles of channels, B, N, L'). The block of a "state" stays in VMEM
            from the first block of tokens to the last.
        scratch: by name.
        backwards: the order.
        interpret: whether to run anywhere, slowly.

    Returns:
        The outputs by name.
    """

    def body(*refs: Any) -> None:
        step, exist = pl.program_id(2), None
        if plan.channels % plan.width:
            channel = pl.program_id(1) * plan.width + lax.broadcasted_iota(jnp.int32, (1, plan.width), 1)
            exist = channel < plan.channels
        start = (plan.blocks - 1 - step if backwards else step) * plan.tokens
        kernel(dict(zip(names, refs, strict=True)), Place(plan, step == 0, start, exist))

    names = [*inputs, *outputs, *scratch]
    found = pl.pallas_call(
        body,
        grid=(plan.batch, plan.tiles, plan.blocks),
        in_specs=[_block(plan, kind, x.shape, backwards) for kind, x in inputs.values()],
        out_specs=[_block(plan, kind, x.shape, backwards) for kind, x in outputs.values()],
        out_shape=[x for _, x in outputs.values()],
        scratch_shapes=list(scratch.values()),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*(x for _, x in inputs.values()))
    return dict(zip(outputs, found, strict=True))


def _block(plan: Plan, kind: str, shape: tuple[int, ...], backwards: bool) -> pl.BlockSpec:
    """How an array of this kind, see `run`, is cut up."""

    def at(t: Any) -> Any:
        return plan.blocks - 1 - t if backwards else t

    rows, width = shape[-2], plan.width
    return {
        "tokens": pl.BlockSpec((None, plan.tokens, width), lambda b, d, t: (b, at(t), d)),
        "weights": pl.BlockSpec((None, rows, BLOCK), lambda b, d, t: (b, 0, at(t))),
        "parts": pl.BlockSpec((None, None, rows, BLOCK), lambda b, d, t: (d, b, 0, at(t))),
        "fixed": pl.BlockSpec((rows, width), lambda b, d, t: (0, d)),
        "state": pl.BlockSpec((None, rows, width), lambda b, d, t: (b, 0, d)),
        "states": pl.BlockSpec((None, None, rows, width), lambda b, d, t: (b, at(t), 0, d)),
        "flags": pl.BlockSpec((None, None, *shape[2:]), lambda b, d, t: (b, at(t), 0, 0), memory_space=pltpu.SMEM),
    }[kind]


def flags_given(tokens: Tokens, plan: Plan, *, behind: bool) -> dict[str, tuple[str, Array]]:
    """Of the tokens if they are not all alike, with those behind the sequence, which are masked, or without them."""
    padded, flags = plan.blocks * plan.tokens, None
    if behind or tokens != (None, None):
        flags = flags_of(tokens, plan.batch, plan.length, padded)
    return {} if flags is None else {"flags": ("flags", flags.reshape(plan.batch, plan.blocks, 1, plan.tokens))}


def like(x: Array, *, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """What describes an output of this shape."""
    return jax.ShapeDtypeStruct(x.shape, dtype)


def for_rows(count: int, plan: Plan) -> dict[str, Any]:
    """Scratch for the rows of a group, of `count` arrays."""
    return {"rows": pltpu.VMEM((count, GROUP, plan.width), jnp.float32)}


class Group:
    """The tokens of one group in their block.

    Attributes:
        start: of the first one, in the block.
        tokens: where they are in the block.
        turns: of the tokens, one after the other.
    """

    def __init__(self, refs: Mapping[str, Any], place: Place, g: Any) -> None:
        self._refs, self._plan = refs, place.plan
        self.start = pl.multiple_of(g * GROUP, GROUP)
        self.tokens = pl.ds(self.start, GROUP)
        self.turns = range(GROUP)
        self._terms: dict[tuple[int, int], Array] = {}
        self._first = place.start + self.start

    def read(self, name: str) -> Array:
        """(GROUP, channels) in float32, 0 behind the end of the sequence."""
        x = self._refs[name][self.tokens, :].astype(jnp.float32)
        if self._plan.length % self._plan.tokens == 0:
            return x
        return jnp.where(self._first + lax.broadcasted_iota(jnp.int32, (GROUP, 1), 0) < self._plan.length, x, 0.0)

    def write(self, name: str, x: Array) -> None:
        """The rows of an output."""
        ref = self._refs[name]
        ref[self.tokens, :] = x.astype(ref.dtype)

    def sum_later(self, i: int, t: int, terms: Array) -> None:
        """Make the row of its token t in array i of the scratch the sum over N of the terms (N, channels)."""
        self._terms[i, t] = terms.reshape(-1, SUBLANES, terms.shape[1]).sum(axis=0)
        start = t // SUBLANES * SUBLANES
        together = [(i, start + row) for row in range(SUBLANES)]
        if all(key in self._terms for key in together):
            self._refs["rows"][i, start : start + SUBLANES, :] = sums_over_rows([self._terms[key] for key in together])

    def row(self, i: int, t: int) -> Array:
        """Of array i of the scratch, the row of its token t."""
        return self._refs["rows"][i, t : t + 1, :]

    def columns(self, name: str) -> Array:
        """(N, tokens), of which the first `GROUP` columns are those of the group."""
        width = self._refs[name].shape[1]
        return pltpu.roll(self._refs[name][...], lax.rem(width - self.start, width), 1)

    def kept(self, t: int, h: tuple[Array, ...]) -> tuple[Array, ...]:
        """The state where its token t does not begin a new run, else 0."""
        return self._where(KEEP, t, h, tuple(map(jnp.zeros_like, h)))

    def moved(self, t: int, h: tuple[Array, ...], masked: tuple[Array, ...]) -> tuple[Array, ...]:
        """The first state where its token t is real, else the second."""
        return self._where(REAL, t, h, masked)

    def _where(self, bit: int, t: int, x: tuple[Array, ...], y: tuple[Array, ...]) -> tuple[Array, ...]:
        if "flags" not in self._refs:
            return x
        flag = (self._refs["flags"][0, self.start + t] & bit) != 0
        return tuple(jnp.where(flag, u, v) for u, v in zip(x, y, strict=True))


def sums_over_rows(tiles: list[Array]) -> Array:
    """The sums over rows of `SUBLANES` arrays with as many rows, one below the other.

    Two arrays at a time, each in half of the rows, are folded by half: 28 operations for eight registers, where eight
    sums one by one take 48.
    """
    row, half = lax.broadcasted_iota(jnp.int32, tiles[0].shape, 0), SUBLANES // 2
    while half:
        first = [lax.rem(row - i + SUBLANES, 2 * half) < half for i in range(half)]
        tiles = [
            jnp.where(own, x, y) + pltpu.roll(jnp.where(own, y, x), SUBLANES - half, 0)
            for own, x, y in zip(first, tiles[:half], tiles[half:], strict=True)
        ]
        half //= 2
    return tiles[0]


def whole_rows(x: Array) -> Array:
    """(..., N, D) with 0 behind, until N is a multiple of `SUBLANES`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % SUBLANES), (0, 0)])
