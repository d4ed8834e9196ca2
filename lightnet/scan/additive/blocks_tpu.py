"""How LightNet's arrays are cut into blocks for TPUs, and how a kernel reads and writes a head of one.

Heads lie side by side in the last axis, (B, L, H K), as the projections before and behind give and take them. A program
takes as many as fill rows of 128 numbers; the last one may have fewer heads than that: what it computes for the others
is never written.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.additive.chunk import AdditiveState
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.tiles import LEAST, Sight, State
from lightnet.scan.additive.tiles import Tokens as Head
from lightnet.scan.kernels import LANES, flat
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

ROWS = 16  # tokens that are loaded at once where they go one by one
MOST_HEADS = 4  # of a program, which would be too long
SIZES = LANES // MOST_HEADS  # sizes of many heads are multiples of it
Given = list[tuple[Any, pl.BlockSpec]]  # arrays, or their shapes, and how they are cut


class Plan(NamedTuple):
    """Sizes of one call: `heads` of a program, `every` of them, tokens, chunk and blocks; `wide` is F*K."""

    heads: int
    every: int
    key: int
    wide: int
    value: int
    chunk: int
    tokens: int
    blocks: int
    half: bool

    @property
    def programs(self) -> int:
        """For the heads of one sequence."""
        return pl.cdiv(self.every, self.heads)


def plan_of(operands: Operands, wanted: int, chunk: int, tokens: int) -> Plan:
    """Sizes for operands that `fitted` has made fit.

    Args:
        operands: q, key logits, v and key factor.
        wanted: heads of 128 numbers in a program, if possible.
        chunk: tokens of one.
        tokens: of a block that is in VMEM at once, in half precision.
    """
    q, logits, v, _ = operands
    (_, length, heads, key), wide, value = logits.shape, q.shape[3], v.shape[3]
    half = all(x.dtype == jnp.bfloat16 for x in (q, logits, v))
    chunk = min(chunk, max(ROWS, 1 << (length - 1).bit_length()))
    tokens = min((tokens if half else tokens // 2) // chunk * chunk, -(-length // chunk) * chunk)
    some = side_by_side(heads, (key, wide, value), wanted)
    assert some is not None
    return Plan(some, heads, key, wide, value, chunk, tokens, pl.cdiv(length, tokens), half)


def side_by_side(heads: int, sizes: tuple[int, ...], wanted: int) -> int | None:
    """How many heads a program takes: in rows of 128 numbers or all, with few to spare, and many if they are small.

    Args:
        heads: H.
        sizes: of a head in each array.
        wanted: at most so many of size 128, if possible.

    Returns:
        The number; None if it would be more than `MOST_HEADS`.

    Example:
        >>> side_by_side(8, (128, 128), 4), side_by_side(9, (64, 64), 4), side_by_side(3, (5, 6), 4)
        (4, 2, 3)
        >>> side_by_side(9, (96, 32), 4), side_by_side(9, (48, 48), 4)
        (4, None)
    """
    whole = heads * min(sizes) > 1  # there are no half-precision rows of a single number
    able = [n for n in range(1, MOST_HEADS + 1) if n == heads * whole or all(n * size % LANES == 0 for size in sizes)]
    return min(able, key=lambda n: (max(n * max(sizes), wanted * LANES), -(-heads // n) * n, -n), default=None)


def without_room(operands: Any, wanted: int, most: tuple[int, int]) -> str | None:
    """Why a program has no room for its heads, with `most` numbers of states, in rows of 128, and of a token."""
    q, logits, v, _ = jax.eval_shape(fitted, tuple(operands[:4]))
    (heads, key), wide, value = logits.shape[2:], q.shape[3], v.shape[3]
    some = side_by_side(heads, (key, wide, value), wanted) or 1
    if some * pl.cdiv(wide, LANES) * LANES * value <= most[0] and some * max(wide, value) <= most[1]:
        return None
    return f"heads of sizes {operands[0].shape[3]} and {operands[2].shape[3]} leave no room in fast memory"


def fitted(operands: Operands) -> Operands:
    """The same with zeros behind each head where programs of `plan_of` do not fit their sizes."""
    q, logits, v, factor = operands
    (heads, key), wide, value = logits.shape[2:], q.shape[3], v.shape[3]
    if side_by_side(heads, (key, wide, value), 1) is not None:
        return operands
    by_factor = longer(q.reshape(*q.shape[:3], -1, key), key)
    factor = None if factor is None else longer(factor, key)
    return by_factor.reshape(*q.shape[:3], -1), longer(logits, key), longer(v, value), factor


def fitted_state(state: AdditiveState, operands: Operands) -> AdditiveState:
    """For operands from `fitted`."""
    key, value = state.total.shape[-1], state.state.shape[-1]
    if (key, value) == (operands[1].shape[-1], operands[2].shape[-1]):
        return state
    inner = state.state.reshape(*state.state.shape[:2], -1, key, value)
    inner = longer(inner.swapaxes(3, 4), key).swapaxes(3, 4)
    inner = longer(inner.reshape(*inner.shape[:2], -1, value), value)
    return AdditiveState(longer(state.maximum, key, fill=-jnp.inf), longer(state.total, key), inner)


def longer(x: Array, size: int, *, fill: float = 0.0) -> Array:
    """With more numbers at the end of the last axis."""
    return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, -size % SIZES),), constant_values=fill)


def cropped(o: Array, state: AdditiveState, key: int, value: int) -> tuple[Array, AdditiveState]:
    """Outputs and state of the sizes that they had before `fitted`."""
    if (state.total.shape[-1], o.shape[-1]) == (key, value):
        return o, state
    inner = state.state.reshape(*state.state.shape[:2], -1, state.total.shape[-1], o.shape[-1])[..., :key, :value]
    inner = inner.reshape(*inner.shape[:2], -1, value)
    return o[..., :value], AdditiveState(state.maximum[..., :key], state.total[..., :key], inner)


def slopes_of(operands: Operands, plan: Plan) -> list[tuple[jax.ShapeDtypeStruct, int]]:
    """The gradients that a kernel gives, flat, with the width of a program's block.

    Of a factor that heads share, it is summed over those of a program, if the sum is a block that a TPU has.
    """
    *three, factor = operands
    batch, length = three[0].shape[:2]
    kinds = [(plan.every, plan.heads, x.shape[3], x.dtype) for x in three]
    if factor is not None:
        alone = factor.shape[:1] + factor.shape[2:3] == (batch, plan.every)
        apart = factor.shape[2] == plan.every or (plan.programs > 1 and plan.wide % LANES)
        of_heads = (plan.every, plan.heads) if apart else (plan.programs, 1)
        kinds.append((*of_heads, plan.wide, factor.dtype if alone else jnp.float32))
    return [
        (jax.ShapeDtypeStruct((batch, length, every * size), dtype), some * size) for every, some, size, dtype in kinds
    ]


def gradients(found: list[Array], operands: Operands) -> Operands:
    """What `slopes_of` promised, in the shapes of the operands."""
    *three, factor = operands
    q, logits, v = (x.reshape(like.shape) for x, like in zip(found, three, strict=False))
    if factor is None:
        return q, logits, v, None
    bar = found[3].reshape(*q.shape[:2], -1, *factor.shape[3:])
    shared = tuple(axis for axis in (0, 2) if factor.shape[axis] < bar.shape[axis])
    return q, logits, v, (bar.sum(axis=shared, keepdims=True) if shared else bar).astype(factor.dtype)


class Blocks:
    """How arrays are cut for a grid over sequences, programs of heads and blocks of tokens."""

    def __init__(self, plan: Plan, *, backwards: bool = False) -> None:
        self.plan = plan
        self.at = (lambda t: plan.blocks - 1 - t) if backwards else (lambda t: t)

    def tokens(self, size: int) -> pl.BlockSpec:
        """(B, L, H size)."""
        return self.lanes(self.plan.heads * size)

    def lanes(self, width: int) -> pl.BlockSpec:
        """So many for a program, (B, L, programs width)."""
        return pl.BlockSpec((None, self.plan.tokens, width), lambda b, h, t: (b, self.at(t), h))

    def operands(self, operands: Operands) -> Given:
        """q, key logits, v, and the key factor (B|1, L, H|1, F, K) if there is one."""
        *three, factor = operands
        given: Given = [(flat(x), self.tokens(x.shape[3])) for x in three]
        if factor is None:
            return given
        each, every = int(factor.shape[0] > 1), int(factor.shape[2] > 1)
        width = self.plan.wide * (self.plan.heads if every else 1)
        spec = pl.BlockSpec((None, self.plan.tokens, width), lambda b, h, t: (b * each, self.at(t), h * every))
        return [*given, (flat(factor), spec)]

    def state(self, *shape: int) -> pl.BlockSpec:
        """(B, H, ...), the same block at all times."""
        return pl.BlockSpec((None, self.plan.heads, *shape), lambda b, h, t: (b, h, 0, 0))

    def states(self, *shape: int) -> pl.BlockSpec:
        """(B, blocks, H, ...)."""
        return pl.BlockSpec((None, None, self.plan.heads, *shape), lambda b, h, t: (b, self.at(t), h, 0, 0))

    def runs(self, tokens: Tokens, batch: int, length: int) -> Given:
        """Each token's run, counted from the beginning of its chunk, twice: as columns, where -1 - run is a masked
        token, and as rows. Nothing if all tokens are alike.
        """
        plan = self.plan
        padded = plan.blocks * plan.tokens
        if tokens == (None, None) and padded == length:
            return []
        keep, real = (jnp.ones((batch, length), bool) if flag is None else flag for flag in tokens)
        keep = jnp.pad(keep, ((0, 0), (0, padded - length)), constant_values=True)
        real = jnp.pad(real, ((0, 0), (0, padded - length)))
        run = jnp.cumsum(~keep.reshape(batch, -1, plan.chunk), axis=2, dtype=jnp.int32)
        column = jnp.where(real, run.reshape(batch, padded), -1 - run.reshape(batch, padded))[..., None]
        chunks = plan.tokens // plan.chunk
        row = run.reshape(batch, plan.blocks, chunks, 1, plan.chunk)
        return [
            (column, pl.BlockSpec((None, plan.tokens, 1), lambda b, h, t: (b, self.at(t), 0))),
            (row, pl.BlockSpec((None, None, chunks, 1, plan.chunk), lambda b, h, t: (b, self.at(t), 0, 0, 0))),
        ]


def run(
    kernel: Any, plan: Plan, inputs: Given, outputs: Given, scratch: list[tuple[int, ...]], *, interpret: bool
) -> list[Array]:
    """A kernel over sequences, programs of heads and blocks of tokens, these in order.

    Args:
        kernel: of references to inputs, outputs and scratch memory.
        plan: sizes.
        inputs: arrays.
        outputs: their shapes.
        scratch: shapes in float32.
        interpret: without a TPU.
    """
    outcome = pl.pallas_call(
        kernel,
        grid=(outputs[0][0].shape[0], plan.programs, plan.blocks),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[x for x, _ in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*(x for x, _ in inputs))
    return list(outcome)


class Rows:
    """Reads and writes some tokens of a block, head by head; nothing stands at masked tokens.

    Attributes:
        signed: (C, 1) each token's run, -1 - run at masked ones; None where all are alike.
        counts: (C, 1), true at tokens that are read, or None.
    """

    def __init__(self, runs: Any, plan: Plan, start: Any, count: int) -> None:
        self.plan, self.rows = plan, pl.ds(start, count)
        self.signed = runs[0][self.rows, :] if runs else None
        self.counts = None if self.signed is None else self.signed >= 0

    @property
    def run(self) -> Any:
        """(C, 1), masked or not."""
        return None if self.signed is None else jnp.maximum(self.signed, -1 - self.signed)

    def real(self, x: Array, otherwise: float) -> Array:
        """Where tokens are masked, something else."""
        return x if self.counts is None else jnp.where(self.counts, x, otherwise)

    def read(self, ref: Any, i: int, masked: float = 0.0) -> Array:
        """(C, size) of the head i of the program, in float32."""
        size = ref.shape[1] // self.plan.heads
        return self.real(ref[self.rows, i * size : (i + 1) * size].astype(jnp.float32), masked)

    def head(self, operands: Any, i: int) -> Head:
        """What the tokens bring: of q, key logits and v, and of the key factor if there is one."""
        q, logits, v, *factor = operands
        every = 0 if factor and factor[0].shape[1] == self.plan.wide else i
        weights = [x[self.rows, every * self.plan.wide : (every + 1) * self.plan.wide] for x in factor]
        weights = [self.real(x.astype(jnp.float32), 0.0) for x in weights]
        return Head(self.read(q, i), self.read(logits, i, -jnp.inf), self.read(v, i), *(weights or [None]))

    def write(self, ref: Any, i: int, x: Array) -> None:
        """The head i of the program."""
        size = x.shape[1]
        ref[self.rows, i * size : (i + 1) * size] = x.astype(ref.dtype)


def is_there(plan: Plan, program: Any, i: int) -> Any:
    """Whether a program has a head i, which the last one may lack."""
    return True if plan.every % plan.heads == 0 else program * plan.heads + i < plan.every


def of_factor(ref: Any, plan: Plan, program: Any, i: int, x: Array, rows: Any) -> tuple[int, Array]:
    """Where the gradient of the factor of a head is written, and what: behind the others, or added to them."""
    if ref.shape[1] == plan.heads * plan.wide:
        return i, x
    x = jnp.where(is_there(plan, program, i), x, 0.0)
    return 0, x + ref[rows, :] if i else x


def sight(runs: Any, plan: Plan, rows: Rows, c: Any) -> Sight:
    """Of chunk c of a block."""
    row, column = (lax.broadcasted_iota(jnp.int32, (plan.chunk, plan.chunk), axis) for axis in range(2))
    if not runs:
        return Sight(column <= row)
    run, others = rows.run, runs[1][c]
    entering, leaving = run == 0, run == others[:, -1:]
    return Sight((column <= row) & (run == others), entering, leaving, others[:, :1] == 0, others[:, -1:] == 0)


def steep(plan: Plan, rows: Rows, normalisers: Array, program: Any, i: int) -> Array:
    """(1, K), 1 where keys of the head i of a program may be lost beside the largest one; absent heads have none."""
    lost = rows.real(normalisers, jnp.inf).min(axis=0, keepdims=True) < LEAST
    return (lost & is_there(plan, program, i)).astype(jnp.float32)


def slots_of(t: Any) -> tuple[Any, Any]:
    """Where the state before a block of tokens is kept, in case that it is done again, and where those behind go."""
    return t % 2, 1 - t % 2


def load(state: Any, *at: Any) -> State:
    """A state from where its three parts are."""
    return State(*(x[at] for x in state))


def store(state: Any, value: tuple[Array, ...], *at: Any) -> None:
    """The other way round, of all parts or some."""
    for ref, x in zip(state, value, strict=True):
        ref[at] = x


def rows_of(state: AdditiveState) -> list[jax.Array]:
    """Maximum and total as rows, the state transposed."""
    return [state.maximum[:, :, None], state.total[:, :, None], state.state.swapaxes(2, 3)]


def state_of(rows: Any) -> AdditiveState:
    """The other way round."""
    maximum, total, inner = rows
    return AdditiveState(maximum[:, :, 0], total[:, :, 0], inner.swapaxes(2, 3))
