"""What the kernels for Hopper GPUs share that give each thread a channel of its own.

A program has one channel of one sequence per thread, keeps their states in registers and goes over the tokens in
blocks. While it works on one of them the next are copied into shared memory, and the last ones out of it. Threads
exchange nothing. Copies fill with zeros what they read behind the end of an array and leave out what they would write
there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.typing import Array

CHANNELS = 128  # of a program: one per thread
TOKENS = 32  # of a block
MEMORY = 220 << 10  # bytes of shared memory of a processor that are used
STAGES = (2, 6)  # blocks of an array in it, at least and at most
LEAST_BLOCKS = 32  # of a segment
ALIGNED = 16  # numbers that rows are multiples of: copies want 16 bytes


class Tiling(NamedTuple):
    """Of a sequence.

    Attributes:
        tokens: of a block.
        blocks: of a segment.
        segments: of the sequence; each has a program of its own.
        stages: blocks of an array in shared memory.
        length: L.
    """

    tokens: int
    blocks: int
    segments: int
    stages: int
    length: int


class Arrays(NamedTuple):
    """What a kernel reads.

    Attributes:
        flags: of the tokens (B, L), or none.
        narrow: arrays (B, L, numbers) that all channels share.
        wide: arrays (B or 1, L, D), or (B, blocks, ..., D).
        once: arrays (B or 1, segments or 1, ..., D).
    """

    flags: Sequence[Any]
    narrow: Sequence[Any]
    wide: Sequence[Any]
    once: Sequence[Any]


class Block(NamedTuple):
    """What of these arrays lies in shared memory, and what has no other place: flags are (tokens, 4), all alike."""

    flags: Sequence[Any]
    narrow: Sequence[Any]
    wide: Sequence[Any]
    out: Sequence[Any]
    sums: Sequence[Any]
    scratch: Sequence[Any]


class Program(NamedTuple):
    """What a kernel does.

    Attributes:
        start: (once, scratch) -> what stays the same, and what is carried from block to block, trees of rows
            (`CHANNELS`,).
        block: (what stays, a `Block`, carried, count) -> carried, behind `count` tokens; behind them lie zeros.
        reverse: from the last token to the first.
        scratch: shapes of arrays in float32 for the use of a block.
    """

    start: Callable
    block: Callable
    reverse: bool = False
    scratch: Sequence[tuple[int, ...]] = ()


def tiling(
    batch: int, length: int, size: int, token: int, enough: int, *, rest: int = 0, tokens: int | None = None
) -> Tiling:
    """How to cut up (B, L, D) arrays.

    Args:
        batch: B.
        length: L.
        size: D.
        token: bytes of one number of each array.
        enough: programs for which a sequence is not cut; else there are two for every processor.
        rest: bytes of shared memory that are not in blocks, of one channel.
        tokens: of a block; None is `TOKENS`.

    Returns:
        The tiling.

    Example:
        >>> tiling(8, 8192, 1536, 12, 64), tiling(1, 65536, 512, 6, 64)
        (Tiling(tokens=32, blocks=256, segments=1, stages=4, length=8192),
         Tiling(tokens=32, blocks=32, segments=64, stages=4, length=65536))
    """
    tokens = TOKENS if tokens is None else tokens
    blocks, programs = pl.cdiv(length, tokens), batch * pl.cdiv(size, CHANNELS)
    segments = 1 if programs >= enough else max(min(2 * hopper.PROCESSORS // programs, blocks // LEAST_BLOCKS), 1)
    each = pl.cdiv(blocks, segments)
    segments = pl.cdiv(blocks, each)
    memory = MEMORY // (2 if programs * segments > hopper.PROCESSORS else 1) - CHANNELS * rest
    stages = min(max(memory // (tokens * CHANNELS * token), STAGES[0]), STAGES[1])
    return Tiling(tokens, each, segments, stages, length)


def aligned(x: Array) -> Array:
    """With zeros behind its last axis, if need be.

    Example:
        >>> aligned(jnp.ones((2, 17))).shape
        (2, 32)
    """
    return hopper.aligned(x, -1, ALIGNED)


def run(
    name: str,
    program: Program,
    plan: Tiling,
    given: Arrays,
    out: Sequence[Any],
    last: Sequence[Any],
    sums: Sequence[Any] = (),
) -> Sequence[Array]:
    """Run a kernel.

    Args:
        name: of the kernel.
        program: what it does.
        plan: how the sequence is cut up.
        given: what it reads.
        out: what its blocks write: arrays (B, L, D), or (B, blocks, ..., D).
        last: (B, segments, ..., D), what is carried behind a segment, leaf by leaf.
        sums: what its blocks write of sums over their channels: (B, programs side by side, numbers of all blocks).

    Returns:
        The arrays `out`, `sums` and `last`.
    """
    batch, size = given.wide[-1].shape[0], given.wide[-1].shape[-1]
    given = given._replace(flags=[jnp.broadcast_to(x[..., None], (*x.shape, 4)) for x in given.flags])
    memory = [plgpu.SMEM((*x.shape[2:-1], CHANNELS), x.dtype) for x in (*given.once, *last)]
    counts = (*map(len, given), len(out), len(sums), len(last))
    return plgpu.kernel(
        partial(_run, program=program, plan=plan, counts=counts),
        out_type=[*out, *sums, *last],
        grid=(pl.cdiv(size, CHANNELS), plan.segments, batch),
        grid_names=("channels", "segment", "sequence"),
        scratch_types=[
            memory,
            plgpu.Barrier(num_arrivals=len(given.once)),
            [plgpu.SMEM(shape, jnp.float32) for shape in program.scratch],
        ],
        # Each thread reads and writes its own channel; where copies meet it, `commit_smem` and their barriers wait.
        # Exponentials within two units of the last place, as XLA's on GPUs are, take 2 instructions instead of 9.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True, approx_math=True),
        kernel_name=name,
    )(*jax.tree.leaves(given))


def _run(*refs: Any, program: Program, plan: Tiling, counts: tuple[int, ...]) -> None:
    *arrays, rows, arrived, scratch = refs
    flags, narrow, wide, once, out, sums, last = split(arrays, counts)
    place = [lax.axis_index(x) for x in ("channels", "segment", "sequence")]
    for x, row in zip(once, rows, strict=False):
        plgpu.copy_gmem_to_smem(_of_segment(x, *place), row, arrived)
    plgpu.barrier_wait(arrived)
    constant, carried = program.start(rows[: len(once)], scratch)

    def number(k: Any) -> Any:
        """Of a block of the sequence, in the order of the computation."""
        return place[1] * plan.blocks + (plan.blocks - 1 - k if program.reverse else k)

    def block(index: Any, *blocks: Any) -> Any:
        *given, carried = blocks
        count: Any = plan.tokens
        if plan.segments * plan.blocks * plan.tokens != plan.length:
            count = jnp.clip(plan.length - number(index[0]) * plan.tokens, 0, plan.tokens)
        parts = dict(zip(Block._fields, split(given, (*counts[:3], *counts[4:6])), strict=False))
        carried = program.block(constant, Block(**parts, scratch=scratch), carried, count)
        if not out:
            plgpu.commit_smem()  # nothing is fetched to where a thread still reads
        return carried

    carried = plgpu.emit_pipeline(
        block,
        grid=(plan.blocks,),
        in_specs=[
            *(_of_tokens(x, plan, number, place) for x in (*flags, *narrow)),
            *(_of_channels(x, plan, number, place) for x in wide),
        ],
        out_specs=[
            *(_of_channels(x, plan, number, place) for x in out),
            *(_of_sums(x, plan, number, place) for x in sums),
        ],
        max_concurrent_steps=plan.stages,
        init_carry=carried,
    )(*flags, *narrow, *wide, *out, *sums)
    values = iter(jax.tree.leaves(carried))
    for row in rows[len(once) :]:
        for i in np.ndindex(row.shape[:-1]):
            row[i or ...] = next(values)
    plgpu.commit_smem()
    for x, row in zip(last, rows[len(once) :], strict=True):
        plgpu.copy_smem_to_gmem(row, _of_segment(x, *place))
    plgpu.wait_smem_to_gmem(0)


def _of_segment(x: Any, channels: Any, segment: Any, sequence: Any) -> Any:
    """The rows of a program, of an array (B or 1, segments or 1, ..., D)."""
    index = [0 if n == 1 else i for n, i in zip(x.shape[:2], (sequence, segment), strict=True)]
    return x.at[(*index, *[slice(None)] * (len(x.shape) - 3), pl.ds(channels * CHANNELS, CHANNELS))]


def _of_tokens(x: Any, plan: Tiling, number: Callable, place: Sequence[Any]) -> plgpu.BlockSpec:
    """The block of an array (B, L, numbers)."""
    return plgpu.BlockSpec((None, plan.tokens, x.shape[2]), lambda k: (place[2], number(k), 0))


def _of_channels(x: Any, plan: Tiling, number: Callable, place: Sequence[Any]) -> plgpu.BlockSpec:
    """The block of an array (B or 1, L, D) or (B, blocks, numbers, D)."""
    channels, _, sequence = place
    if len(x.shape) == 4:
        return plgpu.BlockSpec((None, None, x.shape[2], CHANNELS), lambda k: (sequence, number(k), 0, channels))
    one = x.shape[0] == 1
    return plgpu.BlockSpec((None, plan.tokens, CHANNELS), lambda k: (0 if one else sequence, number(k), channels))


def _of_sums(x: Any, plan: Tiling, number: Callable, place: Sequence[Any]) -> plgpu.BlockSpec:
    """The block of an array (B, programs side by side, numbers of all blocks)."""
    each = x.shape[2] // (plan.blocks * plan.segments)
    return plgpu.BlockSpec((None, None, each), lambda k: (place[2], place[0], number(k)))


def in_groups(some: Callable, carried: Any, count: Any, group: int) -> Any:
    """Call some(start, number, carried) for groups of tokens, and for the tokens behind the last whole one.

    Example:
        >>> in_groups(lambda start, number, total: total + number, 0, 10, 4)
        Array(10, dtype=int32, weak_type=True)
    """
    groups, rest = count // group, count % group
    carried = lax.fori_loop(0, groups, lambda g, carried: some(g * group, group, carried), carried)
    if isinstance(count, int) and not rest:
        return carried
    return lax.fori_loop(0, rest, lambda i, carried: some(groups * group + i, 1, carried), carried)


def clear(rows: Any) -> None:
    """Fill a matrix with zeros, also what stands behind the rows to come."""
    rows[...] = hopper.filled(rows.shape, 0.0)
    plgpu.commit_smem()


def sum_of_rows(rows: Any) -> Array:
    """Of a matrix, each of whose columns another thread wrote."""
    return hopper.load_anywhere(rows).sum(axis=1)


def spread(x: Array) -> Array:
    """One number for all threads. Where the layout is said, JAX 0.12 need not search for it, in quadratic time."""
    return plgpu.layout_cast(jnp.broadcast_to(x, (CHANNELS,)), plgpu.Layout.WG_STRIDED((CHANNELS,), vec_size=1))


def split(refs: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """So many of them at a time.

    Example:
        >>> split([1, 2, 3], (1, 0, 2))
        [[1], [], [2, 3]]
    """
    refs = list(refs)
    return [[refs.pop(0) for _ in range(count)] for count in counts]
