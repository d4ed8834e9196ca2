"""Causal LightNet on Hopper, forward: chunks of 64 tokens as plain linear attention, without any gates.

A program takes one head and 64 of its value channels and marches over the sequence, its part of the state in registers.
Logits and queries enter registers turned, a channel a row: so maxima, decays and normalisers are vectors along the rows
of the state, and the sums of keys up to each token are one more product, with a triangle of ones. Relative to the
largest logit of the chunk and the state, keys, and queries over their normalisers, return to shared memory, where the
tensor cores take them. The programs of a head share queries and logits in the second-level cache: per token and head of
128 channels 1,024 bytes must move, 0.34 ns of an H100's memory, against 131,072 operations, 0.16 ns. Where that gives
few programs and all tokens are of one run, the kernel of keys without an order first makes the states behind stretches
of the sequence, over which the programs then march at once: half as many bytes again.

Where a chunk rises so steeply that keys beside the largest one are lost to underflow, as `comfortable` says, XLA's form
runs instead, for the whole call. It also runs under differentiation: it stores what its backward pass needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.additive import launch_gpu
from lightnet.scan.additive.chunk import AdditiveState, finite, merge
from lightnet.scan.additive.order_free_gpu import gathered
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.xla import additive_xla
from lightnet.scan.kernels import flat
from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

CHUNK = 64  # tokens, as many rows as one product has
GROUP = PART = hopper.ROWS  # key channels whose numbers are in registers at once, and value channels of a program
STAGES = 2  # chunks on their way
LONG = 8  # chunks that a stretch has at least
LEAST = float(jnp.finfo(jnp.float32).tiny) ** 0.7  # below this, keys beside the largest one may be lost
# Bits of a token's code: its run, counted from the beginning of its chunk; whether it counts for the state that leaves,
# whether the state that enters does, whether that state counts for the first token, and whether the token is real.
RUN, LEAVES, STAYS, ENTERS, REAL = 127, 128, 256, 512, 1024


class Plan(NamedTuple):
    """Sizes of one call."""

    length: int
    each: int
    key: int
    dtype: Any

    @property
    def groups(self) -> list[Any]:
        """Of key channels."""
        return hopper.parts_of(self.key)


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


def additive_gpu(operands: Operands, initial_state: AdditiveState, tokens: Tokens) -> tuple[Array, AdditiveState]:
    """See `additive_reference`, without key factors."""
    return _scan(operands, initial_state, tokens)


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    q, logits, v, factor = operands
    return "the kernel is without key factors" if factor is not None else launch_gpu.refusal(q, logits, v)


@jax.custom_vjp
def _scan(operands: Operands, initial_state: AdditiveState, tokens: Tokens) -> tuple[Array, AdditiveState]:
    o, behind, least = _march(operands, initial_state, tokens)
    steep = (least < LEAST).any()  # not where it is not a number, so that the outputs are not either
    given = tuple(map(flat, operands[:3]))

    def exactly(carry: Any) -> Any:
        # What could be done before a loop would be done even if it has no step.
        _, held = lax.optimization_barrier((carry, (given, initial_state, tokens)))
        q, logits, v = (x.reshape(*o.shape[:3], -1) for x in held[0])
        again, behind = additive_xla((q, logits, v, None), *held[1:])
        return jnp.zeros((), bool), flat(again), behind

    # One step or none: outputs stay where and as they are, heads side by side. A choice would copy them.
    _, o_flat, behind = lax.while_loop(lambda carry: carry[0], exactly, (steep, flat(o), behind))
    return mapped_alike((o_flat.reshape(o.shape), behind), (operands, initial_state))


_scan.defvjp(
    lambda operands, state, tokens: jax.vjp(lambda x, s: additive_xla(x, s, tokens), operands, state),
    lambda pull, bars: (*pull(bars), None),
)


def _march(operands: Operands, initial_state: AdditiveState, tokens: Tokens) -> tuple[Array, AdditiveState, Array]:
    """Outputs, the last state, and the least normaliser of each group of channels."""
    q, logits, v, _ = operands
    (batch, length, heads, value), key = v.shape, logits.shape[3]
    if tokens.real is not None:
        logits = jnp.where(tokens.real[..., None, None], logits, -jnp.inf)
    q, logits, v = launch_gpu.aligned(q), launch_gpu.aligned(logits, -jnp.inf), launch_gpu.aligned(v)
    parts = value // PART
    each = pl.cdiv(length, CHUNK) if tokens.keep is not None else _each(batch * heads * parts, pl.cdiv(length, CHUNK))
    entering = _entering(logits, v, initial_state, each)
    grid = {"batch": batch, "head": heads, "stretch": entering.total.shape[2], "part": parts}
    sizes = (parts, key), (parts, key), (key, value), (grid["stretch"], parts, GROUP)
    outputs = [launch_gpu.shape(*v.shape, dtype=v.dtype), *(launch_gpu.shape(batch, heads, *x) for x in sizes)]
    flags = _flags(tokens, batch, length, each * CHUNK, v.dtype)
    # Of pairs of tokens that all chunks share, and of the state as it enters a chunk and the next one.
    squares = (hopper.TILE if flags else CHUNK, CHUNK), (2, key, PART)
    scratch = tuple(hopper.tile(*x, dtype=v.dtype) for x in squares)
    run = launch_gpu.kernel(_causal, outputs, grid, scratch, plan=Plan(v.shape[1], each, key, v.dtype))
    o, maximum, total, state, least = run(*flags, q, logits, v, *entering)
    return o[:, :length], AdditiveState(maximum[:, :, 0], total[:, :, 0], state), least


def _each(programs: int, chunks: int) -> int:
    """How many chunks a stretch has: all, or fewer where cores would have nothing to do, but not too few.

    Example:
        >>> _each(64, 64), _each(32, 64), _each(8, 40)
        (32, 16, 8)
    """
    return pl.cdiv(chunks, max(1, min(hopper.PROCESSORS // programs, chunks // LONG)))


def _entering(logits: Array, v: Array, initial_state: AdditiveState, each: int) -> AdditiveState:
    """The states (B, H, stretches, ...) that enter; keys and values are read once more if stretches are several."""
    states = [initial_state]
    if each * CHUNK < logits.shape[1]:
        parts = gathered(logits, v, each * CHUNK)
        for i in range(parts.total.shape[2] - 1):
            states.append(merge(states[-1], AdditiveState(*(x[:, :, i] for x in parts))))
    return AdditiveState(*(jnp.stack(x, axis=2) for x in zip(*states, strict=True)))


def _flags(tokens: Tokens, batch: int, length: int, multiple: int, dtype: Any) -> list[Array]:
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
    codes = run + LEAVES * (run == last) + STAYS * (last == 0) + ENTERS * (first == 0)
    pairs = jnp.triu(run[..., :, None] == run[..., None, :])
    return [codes.reshape(batch, -1) + REAL * real, pairs.reshape(batch, -1, CHUNK).astype(dtype)]


def _causal(*refs: Any, plan: Plan) -> None:
    *codes, q, logits, v, maximum, total, inner, o, last_maximum, last_total, last_inner, least, ones, held = refs
    mine = batch, head, stretch, part = tuple(lax.axis_index(x) for x in ("batch", "head", "stretch", "part"))
    first = stretch * plan.each
    channels = pl.ds(part * PART, PART)
    if not codes:
        pairs = _causal_pairs(0, hopper.filled((CHUNK, CHUNK), 1.0), lambda row, column: row <= column)
        ones[...] = pairs.astype(plan.dtype)

    def block(size: int, at: Any) -> plgpu.BlockSpec:
        shape = (None, CHUNK, None, size)
        return plgpu.BlockSpec(shape, lambda t: (batch, first + t, head, at), transforms=hopper.swizzled(size))

    def step(at: tuple, *refs: Any) -> Any:
        *code, q, logits, v, o, (states, least) = refs
        return _chunk(plan, first + at[0], code, q, logits, v, o, ones, held.at[lax.rem(at[0], 2)], states, least)

    def fetch(x: Any, *at: Any, layout: Any = hopper.PER_ROW) -> Array:
        return hopper.fetch(x.at[(*mine[:3], *at)], (GROUP,) if len(at) == 1 else (GROUP, PART), layout)

    states = tuple(
        AdditiveState(fetch(maximum, x), fetch(total, x), fetch(inner, x, channels, layout=hopper.MATRIX))
        for x in plan.groups
    )
    flags = [
        plgpu.BlockSpec((None, CHUNK), lambda t: (batch, first + t)),
        plgpu.BlockSpec((None, CHUNK, CHUNK), lambda t: (batch, first + t, 0), transforms=hopper.swizzled(CHUNK)),
    ]
    run = plgpu.emit_pipeline(
        step,
        grid=(plan.each,),
        in_specs=[
            *flags[: len(codes)],
            *(block(plan.key, 0), block(plan.key, 0), block(PART, part)),
        ],
        out_specs=[block(PART, part)],
        max_concurrent_steps=STAGES,
        init_carry=(states, hopper.filled((GROUP,), jnp.inf, hopper.PER_ROW)),
    )
    states, least[mine] = run(*codes, q, logits, v, o)

    @pl.when((first + plan.each) * CHUNK >= plan.length)
    def _() -> None:
        for group, state in zip(plan.groups, states, strict=True):
            last_maximum[batch, head, part, group], last_total[batch, head, part, group] = state.maximum, state.total
            last_inner[batch, head, group, channels] = state.state


def _chunk(
    plan: Plan,
    t: Any,
    code: list,
    q: Any,
    logits: Any,
    v: Any,
    o: Any,
    ones: Any,
    held: Any,
    states: tuple[AdditiveState, ...],
    least: Array,
) -> tuple[tuple[AdditiveState, ...], Array]:
    """Outputs, the states that leave and the least normaliser; keys and scaled queries take the place of operands."""
    sees = Sight(code[0]) if code else None
    ones = code[1] if code else ones
    entered = [
        _keys(plan, t, sees, logits.at[:, group], held.at[group], s)
        for group, s in zip(plan.groups, states, strict=True)
    ]
    plgpu.commit_smem()
    for group, (_, before, _) in zip(plan.groups, entered, strict=True):
        least = jnp.minimum(least, _scale(sees, before, q.at[:, group], logits.at[:, group], ones))
    plgpu.commit_smem()
    scores = hopper.product(q, hopper.transposed(logits))
    if sees is None:
        scores = _causal_pairs(t, scores, lambda row, column: row >= column).astype(plan.dtype)
    else:
        scores = jnp.where(hopper.read_transposed(ones) != 0, scores, 0.0).astype(plan.dtype)
    past = hopper.product(q, held)
    if sees is not None:
        past = jnp.where(sees.of_row(past, RUN) == 0, past, 0.0)
    o[...] = hopper.add_product(past, scores, v).astype(o.dtype)
    return tuple(
        _leave(plan, sees, logits.at[:, group], v, *x) for group, x in zip(plan.groups, entered, strict=True)
    ), least


def _keys(plan: Plan, t: Any, sees: Sight | None, logits: Any, held: Any, state: AdditiveState) -> tuple:
    """Keys of a group in the place of logits; the state relative to their reference, as it enters and as it leaves."""
    a = hopper.read_transposed(logits)
    if plan.length % (plan.each * CHUNK):  # zeros are read behind the end
        token = hopper.index(a.shape, 1) + t * CHUNK
        a = jnp.where(token < plan.length, a, -jnp.inf)
    entering, largest = state.maximum, a.max(axis=1)
    last = largest
    if sees is not None:
        entering = jnp.where(sees.of_chunk(entering, ENTERS) != 0, entering, -jnp.inf)
        last = jnp.where(sees.of_column(a, LEAVES) != 0, a, -jnp.inf).max(axis=1)
    reference = finite(jnp.maximum(entering, largest))
    keys, decay = jnp.exp(a - hopper.of_rows(reference, CHUNK)), jnp.exp(entering - reference)
    leaving = keys if sees is None else jnp.where(sees.of_column(a, LEAVES) != 0, keys, 0.0)
    added = leaving.sum(axis=1)
    hopper.write_transposed(logits, keys)
    before, inner = decay * state.total, hopper.of_rows(decay, PART) * state.state
    held[...] = inner.astype(plan.dtype)
    stays: Any = entering, before, inner
    if sees is not None:
        empty = (-jnp.inf, 0.0, 0.0)
        stays = tuple(jnp.where(sees.of_chunk(x, STAYS) != 0, x, y) for x, y in zip(stays, empty, strict=True))
    return AdditiveState(jnp.maximum(stays[0], last), stays[1] + added, stays[2]), before, reference


def _scale(sees: Sight | None, before: Array, q: Any, keys: Any, ones: Any) -> Array:
    """Queries of a group over their normalisers, the least of which is returned, in the place of queries."""
    sums = hopper.product(hopper.transposed(keys), ones)
    past = hopper.of_rows(before, CHUNK)
    if sees is not None:
        past = jnp.where(sees.of_column(past, RUN) == 0, past, 0.0)
    sums = sums + past
    of_real = sums if sees is None else jnp.where(sees.of_column(sums, REAL) != 0, sums, jnp.inf)
    least = of_real.min(axis=1)
    hopper.write_transposed(q, hopper.read_transposed(q) * hopper.inverse(jnp.where(sums > 0, sums, 1.0)))
    return least


def _leave(
    plan: Plan, sees: Sight | None, keys: Any, v: Any, state: AdditiveState, before: Array, reference: Array
) -> AdditiveState:
    """The state of a group that leaves: with the keys that count for it."""
    if sees is None:
        return state._replace(state=hopper.add_product(state.state, hopper.transposed(keys), v))
    x = hopper.read(keys)
    keys[...] = jnp.where(sees.of_row(x, LEAVES) != 0, x, 0.0).astype(plan.dtype)
    plgpu.commit_smem()
    rescale = jnp.exp(reference - finite(state.maximum))
    inner = hopper.add_product(state.state, hopper.transposed(keys), v)
    return AdditiveState(state.maximum, rescale * state.total, hopper.of_rows(rescale, PART) * inner)


def _causal_pairs(t: Any, like: Array, order: Callable) -> Array:
    """0 in the place of pairs of tokens in another order."""
    # Numbers that change from chunk to chunk: others would be kept in registers, of which there are too few.
    row, column = (hopper.index(like.shape, i) + t for i in (0, 1))
    return jnp.where(order(row, column), like, 0.0)
