"""LightNet without an order on TPUs: a softmax over each segment, one pass for the keys and one for the queries.

The keys and values of a head go through VMEM once, with the running maximum and sum of each key channel, and leave
S^T (V, F K) of normalised keys; then the queries go through it. Each array moves once, 4 of them: per token and head of
128 channels in bfloat16 1,024 bytes, 1.9 cycles on v5e, and two products of matrices.

Backward, also in two passes, over 7 arrays: queries and gradients of outputs give dS and dq; then keys and values give

    P = exp(a - maximum) / total,  dv = (w P) dS,  da = P * (sum_f w (V dS^T) - c),  c_k = sum_fv S_kv dS_kv,

where c, the mean of the key's gradient under the key, needs no pass of its own. Of several segments no sums are kept:
the backward pass makes them again, one pass more over keys and values.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.additive.blocks_tpu import (
    ROWS,
    Given,
    Plan,
    Rows,
    fitted,
    gradients,
    load,
    of_factor,
    plan_of,
    slopes_of,
    store,
    without_room,
)
from lightnet.scan.additive.chunk import finite
from lightnet.scan.additive.order_free import Operands, second_order
from lightnet.scan.additive.reference import Operands as Four
from lightnet.scan.additive.schedule import AT, FIELDS, KEYS, QUERIES, VALUES, most_items, schedule
from lightnet.scan.additive.tiles import Sight, State, added, behind, nonzero, weighted, wide
from lightnet.scan.kernels import flat, matmul, wrong_precision
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

TOKENS = 1024  # of a block that is in VMEM at once in half precision
TOKENS_BACKWARD = 512  # the same backward, and forward with key factors
TOKENS_OF_SEGMENTS = 128  # the same for several segments
HEADS = 4  # of size 128 side by side in a program, if possible
MOST_NUMBERS = (1 << 19, 1024)  # of a program's states and of a row of its tokens, for which VMEM has room
MOST_ITEMS = 1 << 14  # of all sequences: beyond, their table is too long for scalar memory


class Packed(NamedTuple):
    """Which tokens count, and for which: `runs` (B, L) is None where there is one segment."""

    runs: Array | None
    tokens: Tokens


def global_tpu(
    operands: Operands, initial_state: None, tokens: Tokens, *, num_segments: int, interpret: bool = False
) -> Array:
    """See `global_reference`."""
    *four, runs = operands
    o = _attend(fitted(tuple(four)), Packed(runs, tokens), num_segments, interpret)[0]  # type: ignore[arg-type]
    return o[..., : operands[2].shape[-1]]


def refusal(operands: Any, *, num_segments: int) -> str | None:
    """Why the kernel cannot run these."""
    if wrong := wrong_precision(operands[:4]) or without_room(operands, HEADS, MOST_NUMBERS):
        return wrong
    batch, length = operands[2].shape[:2]
    # At most: blocks of bfloat16 have twice as many tokens.
    items = batch * most_items(-(-2 * length // TOKENS_OF_SEGMENTS), num_segments + 1, 3)
    if operands[4] is not None and items > MOST_ITEMS:
        return f"{num_segments} segments of {batch} sequences of {length} tokens take more than {MOST_ITEMS} steps"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(operands: Four, packed: Packed, segments: int, interpret: bool) -> tuple[Array, list[Array]]:
    """Outputs, and for one segment what the backward pass needs besides the inputs."""
    v = operands[2]
    call = _Call(operands, packed, segments, (KEYS, QUERIES))
    out = jax.ShapeDtypeStruct((*v.shape[:2], call.plan.every * call.plan.value), jnp.result_type(*operands[:3]))
    q, *others = call.operands(operands)
    o, *sums = call.run(
        _forward_kernel,
        [q, *others],
        [(out, call.tokens(call.plan.value, AT.queries))],
        call.states(),
        [],
        interpret=interpret,
    )
    return o.reshape(v.shape), sums


def _attend_forward(operands: Four, packed: Packed, segments: int, interpret: bool) -> Any:
    o, sums = _attend(operands, packed, segments, interpret)
    return (o, sums), (operands, packed, sums)


def _attend_backward(segments: int, interpret: bool, residuals: Any, cotangents: tuple[Array, Any]) -> Any:
    return _gradient(*residuals, cotangents[0], segments, interpret), None


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _gradient(operands: Four, packed: Packed, sums: list[Array], do: Array, segments: int, interpret: bool) -> Four:
    one = packed.runs is None
    call = _Call(operands, packed, segments, (QUERIES, VALUES) if one else (KEYS, QUERIES, VALUES))
    fields = (AT.queries, AT.slopes, AT.slopes, AT.slopes)
    outputs: Given = [
        (x, call.lanes(width, field)) for (x, width), field in zip(slopes_of(operands, call.plan), fields, strict=False)
    ]
    given = [*call.operands(operands), (flat(do), call.tokens(call.plan.value, AT.queries))]
    given += [(x, spec) for x, (_, spec) in zip(sums, call.states(), strict=False)]  # none of several segments
    found = call.run(
        _backward_kernel, given, outputs, [] if one else call.states(), call.states()[2:], interpret=interpret
    )
    return gradients(found, operands)


def _gradient_forward(*given: Any) -> Any:
    return _gradient(*given), given[:4]


def _gradient_backward(segments: int, interpret: bool, residuals: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: what was normalised is a function of the operands."""
    operands, packed, sums, do = residuals
    doperands, ddo = second_order(operands, packed.tokens, do, bars, runs=packed.runs, num_segments=segments)
    return doperands, None, jax.tree.map(jnp.zeros_like, sums), ddo


_gradient.defvjp(_gradient_forward, _gradient_backward)


class _Call:
    """How arrays are cut for one call, and the call."""

    def __init__(self, operands: Four, packed: Packed, segments: int, phases: tuple[int, ...]) -> None:
        self.segmented = packed.runs is not None
        tokens = TOKENS if VALUES not in phases and operands[3] is None else TOKENS_BACKWARD
        self.plan = plan = plan_of(operands, HEADS, ROWS, TOKENS_OF_SEGMENTS if self.segmented else tokens)
        self.batch, self.length = operands[2].shape[:2]
        # Tokens beyond the segments that count make up one more, in which nothing is seen.
        count = segments + 1 if self.segmented else 1
        runs = None if packed.runs is None else jnp.minimum(packed.runs, segments)
        self.column = self._column(runs, packed.tokens.real, segments)
        table = schedule(runs, self.length, plan.tokens, count, phases)
        self.items = most_items(plan.blocks, count, len(phases))
        self.table = jnp.broadcast_to(table, (self.batch, *table.shape[1:])).reshape(-1)

    def _column(self, runs: Array | None, real: Array | None, segments: int) -> list[Array]:
        """(B, L', 1), each token's segment, -1 - segment at those that nobody sees; nothing if all are alike."""
        padded = self.plan.blocks * self.plan.tokens
        if runs is None and real is None and padded == self.length:
            return []
        runs = jnp.zeros((self.batch, self.length), jnp.int32) if runs is None else runs
        counts = runs < segments if real is None else real & (runs < segments)
        more = padded - self.length
        runs = jnp.pad(runs, ((0, 0), (0, more)), mode="edge")
        counts = jnp.pad(counts, ((0, 0), (0, more)))
        return [jnp.where(counts, runs, -1 - runs)[..., None]]

    def _at(self, b: Any, t: Any, table: Any, field: int) -> Any:
        return table[(b * self.items + t) * FIELDS + field]

    def tokens(self, size: int, field: int) -> pl.BlockSpec:
        """(B, L, H size), in the order of one of the fields of an item."""
        return self.lanes(self.plan.heads * size, field)

    def lanes(self, width: int, field: int) -> pl.BlockSpec:
        """So many for a program, (B, L, programs width)."""
        shape = (None, self.plan.tokens, width)
        return pl.BlockSpec(shape, lambda b, h, t, table: (b, self._at(b, t, table, field), h))

    def operands(self, operands: Four) -> Given:
        """q, key logits, v, and the key factor if there is one."""
        *three, factor = operands
        fields = (AT.queries, AT.keys, AT.keys)
        given: Given = [(flat(x), self.tokens(x.shape[3], field)) for x, field in zip(three, fields, strict=True)]
        if factor is None:
            return given
        each, every = int(factor.shape[0] > 1), int(factor.shape[2] > 1)
        shape = (None, self.plan.tokens, self.plan.wide * (self.plan.heads if every else 1))
        spec = pl.BlockSpec(shape, lambda b, h, t, table: (b * each, self._at(b, t, table, AT.keys), h * every))
        return [*given, (flat(factor), spec)]

    def states(self) -> Given:
        """Shapes of maximum, total and state of all heads."""
        shapes = [(1, self.plan.key), (1, self.plan.key), (self.plan.value, self.plan.wide)]
        return [
            (
                jax.ShapeDtypeStruct((self.batch, self.plan.every, *shape), jnp.float32),
                pl.BlockSpec((None, self.plan.heads, *shape), lambda b, h, t, table: (b, h, 0, 0)),
            )
            for shape in shapes
        ]

    def run(
        self, kernel: Any, inputs: Given, outputs: Given, sums: Given, scratch: Given, *, interpret: bool
    ) -> list[Array]:
        """Outputs; `sums` are outputs as well if there is one segment, and otherwise stay where they are."""
        flags = [
            (x, pl.BlockSpec((None, self.plan.tokens, 1), lambda b, h, t, table: (b, self._flags_at(b, t, table), 0)))
            for x in self.column
        ]
        outputs, scratch = (outputs, sums + scratch) if self.segmented else (outputs + sums, scratch)
        outcome = pl.pallas_call(
            partial(kernel, plan=self.plan, flagged=len(flags), segmented=self.segmented, items=self.items),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(self.batch, self.plan.programs, self.items),
                in_specs=[spec for _, spec in [*flags, *inputs]],
                out_specs=[spec for _, spec in outputs],
                scratch_shapes=[pltpu.VMEM((self.plan.heads, *x.shape[2:]), jnp.float32) for x, _ in scratch],
            ),
            out_shape=[x for x, _ in outputs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
            interpret=interpret,
            name=f"additive_global{kernel.__name__.removesuffix('_kernel')}",
        )(self.table, *(x for x, _ in [*flags, *inputs]))
        return list(outcome)

    def _flags_at(self, b: Any, t: Any, table: Any) -> Any:
        queries = self._at(b, t, table, AT.phase) == QUERIES
        return jnp.where(queries, self._at(b, t, table, AT.queries), self._at(b, t, table, AT.keys))


class _Item:
    """What an item is to do, and reads and writes of its tokens."""

    def __init__(self, table: Any, flags: Any, plan: Plan, segmented: bool, items: int) -> None:
        at = (pl.program_id(0) * items + pl.program_id(2)) * FIELDS
        self.phase, self.segment, edge = (table[at + field] for field in (AT.phase, AT.segment, AT.edge))
        self.program = pl.program_id(1)
        self.first, self.last = edge % 2 == 1, edge >= 2
        self.flags, self.plan, self.segmented = flags, plan, segmented

    def during(self, phase: int, also: Any = True) -> Any:
        """Whether this is the pass."""
        return pl.when((self.phase == phase) & also)

    def rows(self) -> Rows:
        """Of the block, of which those of other segments do not count."""
        rows = Rows(self.flags, self.plan, 0, self.plan.tokens)
        if self.segmented:
            rows.counts = rows.signed == self.segment
        return rows

    def write(self, rows: Rows, ref: Any, i: int, x: Array) -> None:
        """What is of the segment; every token is of one."""
        if self.segmented:
            size = x.shape[1]
            x = jnp.where(rows.run == self.segment, x, ref[:, i * size : (i + 1) * size].astype(jnp.float32))
        rows.write(ref, i, x)


def _sums(item: _Item, operands: Any, sums: Any) -> None:
    """The pass over keys: S, total and maximum of all heads, in the end normalised."""
    plan = item.plan

    @item.during(KEYS, item.first)
    def _() -> None:
        for ref, value in zip(sums, (-jnp.inf, 0.0, 0.0), strict=True):
            ref[...] = jnp.full(ref.shape, value, jnp.float32)

    @item.during(KEYS)
    def _() -> None:
        rows = item.rows()
        for i in range(plan.heads):
            store(sums, behind(rows.head(operands, i), load(sums, i), Sight(), half=plan.half), i)

    @item.during(KEYS, item.last)
    def _() -> None:
        for i in range(plan.heads):
            maximum, total, inner = load(sums, i)
            total = nonzero(total)
            store(sums, State(finite(maximum), total, inner / wide(total, inner)), i)


def _forward_kernel(table: Any, *refs: Any, plan: Plan, flagged: int, segmented: bool, items: int) -> None:
    item = _Item(table, refs[:flagged], plan, segmented, items)
    *operands, o = refs[flagged:-3]
    sums = refs[-3:]
    _sums(item, operands, sums)

    @item.during(QUERIES)
    def _() -> None:
        rows = item.rows()
        for i in range(plan.heads):
            item.write(rows, o, i, matmul(rows.read(operands[0], i), sums[2][i], "nt", plan.half))


def _backward_kernel(table: Any, *refs: Any, plan: Plan, flagged: int, segmented: bool, items: int) -> None:
    item = _Item(table, refs[:flagged], plan, segmented, items)
    count = (len(refs) - flagged - 5) // 2  # of operands, and so of their gradients
    operands, do, rest = refs[flagged:][:count], refs[flagged + count], refs[flagged + count + 1 : -1]
    slopes, sums = (rest[:count], rest[count:]) if segmented else (rest[3:], rest[:3])
    dstate = refs[-1]
    if segmented:
        _sums(item, operands, sums)

    @item.during(QUERIES, item.first)
    def _() -> None:
        dstate[...] = jnp.zeros_like(dstate)

    @item.during(QUERIES)
    def _() -> None:
        rows = item.rows()
        for i in range(plan.heads):
            bar = rows.read(do, i)
            dstate[i] += matmul(bar, rows.read(operands[0], i), "tn", plan.half)
            item.write(rows, slopes[0], i, matmul(bar, sums[2][i], "nn", plan.half))

    @item.during(VALUES)
    def _() -> None:
        rows = item.rows()
        for i in range(plan.heads):
            head, (maximum, total, inner) = rows.head(operands, i), load(sums, i)
            keys = jnp.exp(head.logits - maximum) / total
            bar = matmul(head.v, dstate[i], "nn", plan.half)
            through = bar if head.factor is None else bar * head.factor
            mean = added((inner * dstate[i]).sum(axis=0, keepdims=True), keys)
            item.write(rows, slopes[1], i, keys * (added(through, keys) - mean))
            item.write(rows, slopes[2], i, matmul(weighted(keys, head), dstate[i], "nt", plan.half))
            for ref in slopes[3:]:
                item.write(rows, ref, *of_factor(ref, plan, item.program, i, bar * wide(keys, bar), rows.rows))
