"""h_t = a_t h_{t-1} + b_t on TPUs: tiles of tokens and channels stream through VMEM, the state stays there.

Two operations per element and three arrays to move, or two with a constant decay: bound by memory. A program goes over
the tokens of its channels in order, one row of `LANES` channels after the other, which the vector unit does in about
60 bundles per 8 rows of 2,048 channels: on v5e a sixth of the time in which their 196 KB pass. For that the rows of a
step need addresses that differ by constants, so they are read from a view of `GROUP` tokens. Half-precision rows cannot
be addressed alone; 16 of them are widened at once, in VMEM.

Complex numbers are pairs of real arrays: so XLA holds them on TPUs anyway, everywhere but in the arguments and results
of a program, where it splits and joins them.

The backward pass is the same kernel in the other direction, three arrays, and one pass of XLA's for the gradient of the
decays, three more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.kernels import flags_of, wrong_precision
from lightnet.scan.linear.chunk import Parts, parts_of, whole
from lightnet.scan.linear.chunk import step as one_token
from lightnet.scan.linear.xla import scan
from lightnet.scan.recurrence import Tokens, only_real
from lightnet.typing import Array

LANES = 2048  # channels of a tile, and numbers of a row of several sequences
TILE = 1 << 18  # numbers of a tile: 1 MB in float32, of which VMEM holds two per array
ROW = 128  # numbers that a row of VMEM is long; fewer channels take as much room
GROUP = 16  # tokens of a step: half-precision tiles are 16 rows high


class Tiling(NamedTuple):
    """Of arrays (B, L, D).

    Attributes:
        sequences: side by side in a tile; their chains of operations overlap.
        tokens: in a tile.
        channels: in a tile.
        length: L.
    """

    sequences: int
    tokens: int
    channels: int
    length: int


def linear_tpu(
    operands: tuple[Array, Array], initial_state: Array, tokens: Tokens, *, reverse: bool, interpret: bool = False
) -> tuple[Array, Array]:
    """See `linear_reference`; h in the dtype of a b. What stands at masked tokens is not used."""
    h, final = scan(*operands, initial_state, tokens, reverse, False, _INTERPRETED if interpret else _COMPILED)
    (h,) = only_real(tokens, h)
    return h, final


def tiling(batch: int, length: int, size: int, parts: int) -> Tiling:
    """How to cut up (B, L, D) arrays, of which complex ones have two parts."""
    channels = min(size, LANES)
    sequences = max(n for n in range(1, 9) if batch % n == 0 and (n == 1 or n * channels <= LANES))
    tokens = TILE // (parts * sequences * pl.cdiv(channels, ROW) * ROW) // GROUP * GROUP
    return Tiling(sequences, min(tokens, -(-length // GROUP) * GROUP), channels, length)


def _pallas(
    a: Array, b: Array, initial: Array, tokens: Tokens, reverse: bool, late: bool, *, interpret: bool
) -> tuple[Array, Array]:
    """What `scan` says, by the kernel."""
    decays, inputs, states = parts_of(a), parts_of(b), [x[:, None] for x in parts_of(initial)]
    dtype, half = jnp.result_type(a, b), any(x.dtype.itemsize == 2 for x in (a, b))
    batch, length, size = b.shape
    plan = tiling(batch, length, size, len(states))
    blocks = pl.cdiv(length, plan.tokens)
    grid = (batch // plan.sequences, pl.cdiv(size, plan.channels), blocks)

    def block(x: Array) -> pl.BlockSpec:
        """Of an array (B or 1, L or 1, D)."""
        shared, constant = x.shape[0] < batch, x.shape[1] == 1
        shape = (1 if shared else plan.sequences, 1 if constant else plan.tokens, plan.channels)
        return pl.BlockSpec(
            shape,
            lambda i, j, k: (0 if shared else i, 0 if constant else blocks - 1 - k if reverse else k, j),
        )

    flags = _flags(tokens, plan, batch, blocks)
    flag_block = pl.BlockSpec(
        (None, None, plan.sequences, plan.tokens),
        lambda i, j, k: (i, blocks - 1 - k if reverse else k, 0, 0),
        memory_space=pltpu.SMEM,
    )
    given = [*flags, *decays, *inputs, *states]
    out = [jax.ShapeDtypeStruct(b.shape, jnp.float32 if len(states) > 1 else dtype)] * len(states)
    final = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in states]
    outputs = pl.pallas_call(
        partial(
            _kernel,
            plan=plan,
            counts=(len(flags), len(decays), len(inputs), *[len(states)] * 3, 3 * half),
            reverse=reverse,
            late=late,
        ),
        grid=grid,
        in_specs=[*[flag_block] * len(flags), *map(block, [*decays, *inputs, *states])],
        out_specs=[*[block(b)] * len(out), *map(block, states)],
        out_shape=[*out, *final],
        scratch_shapes=[pltpu.VMEM((GROUP, plan.channels), jnp.float32)] * 3 * half,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*given)
    h, last = outputs[: len(states)], [x[:, 0] for x in outputs[len(states) :]]
    return whole(h).astype(dtype), whole(last)


_COMPILED, _INTERPRETED = (partial(_pallas, interpret=interpret) for interpret in (False, True))


def _kernel(*refs: Any, plan: Tiling, counts: tuple[int, ...], reverse: bool, late: bool) -> None:
    flags, a, b, initial, out, state, wide = _split(refs, counts)
    wide = wide or [None] * 3
    step, last = pl.program_id(2), pl.num_programs(2) - 1
    of_end = step == (0 if reverse else last)
    groups, rest = divmod((plan.length - 1) % plan.tokens + 1, GROUP)

    @pl.when(step == 0)
    def _() -> None:
        for x, y in zip(initial, state, strict=True):
            y[...] = x[...]

    def rows(start: Any, count: int, h: list[Parts]) -> list[Parts]:
        return [
            _rows(flags, a, b, out, wide, i, start, count, h[i], reverse=reverse, late=late)
            for i in range(plan.sequences)
        ]

    def load() -> list[Parts]:
        return [tuple(x[i] for x in state) for i in range(plan.sequences)]

    def store(h: list[Parts]) -> None:
        for i, parts in enumerate(h):
            for ref, part in zip(state, parts, strict=True):
                ref[i] = part

    def end() -> None:
        """Tokens behind the last whole group; what stands behind them in the tile is no token."""
        if rest:
            pl.when(of_end)(lambda: store(rows(groups * GROUP, rest, load())))

    def group(g: Any, h: list[Parts]) -> list[Parts]:
        g = count - 1 - g if reverse else g
        return rows(pl.multiple_of(g * GROUP, GROUP), GROUP, h)

    count = jnp.where(of_end, groups, plan.tokens // GROUP)
    if reverse:
        end()
    if plan.length >= GROUP:
        store(lax.fori_loop(0, count, group, load()))
    if not reverse:
        end()


def _rows(
    flags: Any,
    a: Any,
    b: Any,
    out: Any,
    wide: Any,
    i: int,
    start: Any,
    count: int,
    h: Parts,
    *,
    reverse: bool,
    late: bool,
) -> Parts:
    """`count` tokens of the sequence `i` of a tile, one after the other."""
    decays, inputs = (_reader(refs, copy, i, start, count) for refs, copy in zip((a, b), wide, strict=False))
    write, finish = _writer(out, wide[2], i, start, count)
    for t in reversed(range(count)) if reverse else range(count):
        flag = flags[0][i, start + t] if flags else None
        h, output = one_token(decays(t), inputs(t), h, flag, late=late)
        write(t, output)
    finish()
    return h


def _reader(refs: Any, wide: Any, i: int, start: Any, count: int) -> Callable[[int], Parts]:
    """Token -> its row (1, channels) in float32. The rows of half-precision numbers have no addresses."""
    i = i if refs[0].shape[0] > 1 else 0
    if refs[0].shape[1] == 1:
        constant = tuple(ref[i].astype(jnp.float32) for ref in refs)
        return lambda t: constant
    if refs[0].dtype.itemsize > 2:
        views = [ref.at[i, pl.ds(start, count)] for ref in refs]
        return lambda t: tuple(view[t : t + 1] for view in views)
    wide[:count] = refs[0][i, pl.ds(start, count), :].astype(jnp.float32)
    return lambda t: (wide[t : t + 1],)


def _writer(
    refs: Any, wide: Any, i: int, start: Any, count: int
) -> tuple[Callable[[int, Parts], None], Callable[[], None]]:
    """What writes the row of a token, and what is to be called behind the last one."""
    half = refs[0].dtype.itemsize == 2
    views = [ref.at[i, pl.ds(start, count)] for ref in refs]

    def write(t: int, row: Parts) -> None:
        for view, part in zip(views, row, strict=True):
            if half:
                wide[t : t + 1] = part
            else:
                view[t : t + 1] = part

    def finish() -> None:
        if half:
            views[0][...] = wide[:count].astype(refs[0].dtype)

    return write, finish


def _flags(tokens: Tokens, plan: Tiling, batch: int, blocks: int) -> list[Array]:
    """(B / sequences, blocks, sequences, tokens), or nothing."""
    padded = blocks * plan.tokens if tokens != (None, None) else plan.length
    flags = flags_of(tokens, batch, plan.length, padded)
    return [] if flags is None else [flags.reshape(-1, plan.sequences, blocks, plan.tokens).swapaxes(1, 2)]


def _split(refs: Any, counts: tuple[int, ...]) -> list[Any]:
    refs = list(refs)
    return [[refs.pop(0) for _ in range(count)] for count in counts]


def refusal(operands: Any, **_: Any) -> str | None:
    """Why the kernel cannot run these."""
    return wrong_precision(operands, (jnp.float32, jnp.bfloat16, jnp.complex64))
