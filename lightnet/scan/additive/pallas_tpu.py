"""Causal LightNet on TPUs: chunks of 128 tokens as plain linear attention, without any gates.

The weight of a token at a later one is a function of the one times a function of the other, so that a chunk takes no
tree of products: three products of matrices for outputs and state, one more for the sums of keys, and one exponential
per element, relative to the largest logit of the chunk and the state. Per token and head of 128 channels in bfloat16
1,024 bytes must move, 1.9 cycles on v5e. States stay in VMEM, transposed.

Where a chunk rises so steeply that keys beside the largest one are lost to underflow, as `comfortable` says, it is done
again a few tokens at a time, each relative to its own running maximum: slow, and exact.

The forward pass stores the state before each block of `TOKENS`; the backward pass is in `pallas_tpu_backward`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lightnet.scan.additive.blocks_tpu import (
    ROWS,
    Blocks,
    Plan,
    Rows,
    cropped,
    fitted,
    fitted_state,
    load,
    plan_of,
    rows_of,
    run,
    sight,
    slots_of,
    state_of,
    steep,
    store,
    without_room,
)
from lightnet.scan.additive.chunk import AdditiveState
from lightnet.scan.additive.pallas_tpu_backward import gradient
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.tiles import State, exactly, together
from lightnet.scan.kernels import wrong_precision
from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

CHUNK, TOKENS = 128, 512  # tokens of a chunk, and of a block that is in VMEM at once in half precision
UNROLL = 2  # chunks whose waits fill each other
HEADS, HEADS_BACKWARD = 4, 2  # of size 128 side by side in a program, if possible
MOST_NUMBERS = (1 << 16, 512)  # of a program's states, with all those of its chunks in VMEM, and of a row of its tokens


def additive_tpu(
    operands: Operands, initial_state: AdditiveState, tokens: Tokens, *, interpret: bool = False
) -> tuple[Array, AdditiveState]:
    """See `additive_reference`."""
    whole = fitted(operands)
    o, final, _ = _scan(whole, fitted_state(initial_state, whole), tokens, interpret, False)
    return cropped(o, final, operands[1].shape[-1], operands[2].shape[-1])


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    return wrong_precision(operands) or without_room(operands, HEADS_BACKWARD, MOST_NUMBERS)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scan(
    operands: Operands, initial_state: AdditiveState, tokens: Tokens, interpret: bool, keeps: bool
) -> tuple[Array, AdditiveState, list[Array]]:
    """Outputs, last state, and the states before each block of tokens if they are kept."""
    plan = plan_of(operands, HEADS, CHUNK, TOKENS)
    v = operands[2]
    batch, length, heads, _ = v.shape
    blocks = Blocks(plan)
    runs, of_tokens, state = blocks.runs(tokens, batch, length), blocks.operands(operands), rows_of(initial_state)
    of_state = [blocks.state(*x.shape[2:]) for x in state]
    out = jax.ShapeDtypeStruct((batch, length, heads * plan.value), jnp.result_type(*operands[:3]))
    outputs = [(out, blocks.tokens(plan.value))]
    outputs += [(jax.ShapeDtypeStruct(x.shape, jnp.float32), spec) for x, spec in zip(state, of_state, strict=True)]
    for x in state if keeps else []:
        shape = (batch, plan.blocks, *x.shape[1:])
        outputs.append((jax.ShapeDtypeStruct(shape, jnp.float32), blocks.states(*x.shape[2:])))
    o, *rest = run(
        partial(_kernel, plan=plan, flagged=len(runs), count=len(of_tokens)),
        plan,
        [*runs, *of_tokens, *zip(state, of_state, strict=True)],
        outputs,
        [(2, plan.heads, *x.shape[2:]) for x in state],
        interpret=interpret,
    )
    o, final = mapped_alike((o.reshape(v.shape), state_of(rest[:3])), (operands, initial_state))
    return o, final, rest[3:]


def _scan_forward(
    operands: Operands, initial_state: AdditiveState, tokens: Tokens, interpret: bool, keeps: bool
) -> Any:
    o, final, before = _scan(operands, initial_state, tokens, interpret, True)
    return (o, final, before if keeps else []), (operands, initial_state, tokens, before, final)


def _scan_backward(interpret: bool, keeps: bool, residuals: Any, cotangents: Any) -> Any:
    plan = plan_of(residuals[0], HEADS_BACKWARD, CHUNK, TOKENS)
    return *gradient(*residuals, cotangents[:2], plan, interpret), None


_scan.defvjp(_scan_forward, _scan_backward)


def _kernel(*refs: Any, plan: Plan, flagged: int, count: int) -> None:
    runs, operands, rest = refs[:flagged], refs[flagged : flagged + count], refs[flagged + count :]
    initial, o, final, before, slots = rest[:3], rest[3], rest[4:7], rest[7:-3], rest[-3:]
    program, t = pl.program_id(1), pl.program_id(2)
    old, new = slots_of(t)

    @pl.when(t == 0)
    def _() -> None:
        for x, y in zip(initial, slots, strict=True):
            y[old] = x[...]

    for x, y in zip(before, slots, strict=False):
        x[...] = y[old]

    def chunk(c: Any, lost: Array) -> Array:
        rows = Rows(runs, plan, pl.multiple_of(c * plan.chunk, plan.chunk), plan.chunk)
        sees = sight(runs, plan, rows, c)
        for i in range(plan.heads):
            head, state = rows.head(operands, i), load(slots, jnp.where(c == 0, old, new), i)
            out, after, normalisers = together(head, state, sees, half=plan.half)
            rows.write(o, i, out)
            store(slots, after, new, i)
            lost = jnp.maximum(lost, steep(plan, rows, normalisers, program, i))
        return lost

    chunks = plan.tokens // plan.chunk
    lost = lax.fori_loop(0, chunks, chunk, jnp.zeros((1, plan.key), jnp.float32), unroll=UNROLL if plan.half else 1)

    @pl.when(lost.max() > 0)
    def _() -> None:
        for i in range(plan.heads):
            store(slots, _few_at_once(plan, runs, operands, o, load(slots, old, i), i), new, i)

    @pl.when(t == plan.blocks - 1)
    def _() -> None:
        for x, y in zip(final, slots, strict=True):
            x[...] = y[new]


def _few_at_once(plan: Plan, runs: Any, operands: Any, o: Any, state: State, i: int) -> State:
    """A block of a head again, for any logits."""

    def tile(j: Any, carry: tuple[State, Array]) -> tuple[State, Array]:
        rows = Rows(runs, plan, pl.multiple_of(j * ROWS, ROWS), ROWS)
        # Runs are counted from the beginning of their chunk.
        before = jnp.where(j % (plan.chunk // ROWS) == 0, 0, carry[1])
        out, after, run = exactly(rows.head(operands, i), carry[0], rows.run, before)
        rows.write(o, i, out)
        return after, run

    after, _ = lax.fori_loop(0, plan.tokens // ROWS, tile, (state, jnp.zeros((1, 1), jnp.int32)))
    return after
