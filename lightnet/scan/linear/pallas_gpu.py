"""h_t = a_t h_{t-1} + b_t on Hopper GPUs: blocks of tokens stream through shared memory, the state stays in registers.

Two operations per element and three arrays to move, or two with a constant decay: bound by memory, 2.0 ps per element
in bfloat16 and 4.0 in float32 at 3.0 TB/s. A program has one channel per thread and goes over the tokens in order,
while the next blocks of them are fetched and the last ones stored.

Where batches and channels do not give enough programs, the sequence is cut into segments. A first pass makes what each
of them does to the state, a scan of these few the states that enter, and a second pass the outputs: five arrays instead
of three. Complex numbers are pairs of real arrays. The backward pass is the same kernel in the other direction.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lightnet.scan import by_channel
from lightnet.scan.by_channel import Arrays, Block, Program, Tiling, aligned, in_groups, spread, tiling
from lightnet.scan.kernels import flags_of
from lightnet.scan.linear.chunk import Parts, parts_of, step, whole
from lightnet.scan.linear.xla import scan
from lightnet.scan.recurrence import Tokens, only_real
from lightnet.typing import Array

GROUP = 16  # tokens that are read before the first of them is computed
ENOUGH = 64  # programs that keep the memory busy


def linear_gpu(
    operands: tuple[Array, Array], initial_state: Array, tokens: Tokens, *, reverse: bool
) -> tuple[Array, Array]:
    """See `linear_reference`; h in the dtype of a b. What stands at masked tokens is not used."""
    h, final = scan(*operands, initial_state, tokens, reverse, False, mosaic)
    (h,) = only_real(tokens, h)
    return h, final


def mosaic(a: Array, b: Array, initial: Array, tokens: Tokens, reverse: bool, late: bool) -> tuple[Array, Array]:
    """What `lightnet.scan.linear.xla.scan` says, by the kernel."""
    batch, length, size = b.shape
    token = sum(x.itemsize for x in (a.dtype, b.dtype, jnp.result_type(a, b)))
    plan = tiling(batch, length, size, token, ENOUGH)
    a, b, initial = (aligned(x) for x in (a, b, initial))
    call = partial(_call, a, b, tokens=tokens, plan=plan, reverse=reverse, late=late)
    entering = initial[:, None]
    if plan.segments > 1:
        state, decay = call(jnp.zeros((batch, plan.segments, initial.shape[-1]), initial.dtype), summary=True)
        entering = entered(decay, state, initial, reverse=reverse)
    h, last = call(entering)
    return h[..., :size], last[:, 0 if reverse else -1, :size]


def entered(decay: Array, state: Array, initial: Array, *, reverse: bool = False) -> Array:
    """The states that enter segments (B, segments, D), from what these do to a state and what enters the first."""
    behind, _ = mosaic(decay, state, initial, Tokens(None, None), reverse, False)
    parts = (behind[:, 1:], initial[:, None]) if reverse else (initial[:, None], behind[:, :-1])
    return jnp.concatenate(parts, axis=1)


def _call(
    a: Array,
    b: Array,
    entering: Array,
    *,
    tokens: Tokens,
    plan: Tiling,
    reverse: bool,
    late: bool,
    summary: bool = False,
) -> tuple[Array, Array]:
    """Outputs (B, L, D) and the last states of the segments (B, segments, D) from the states that enter them.

    Of a summary these last states, and the products of the decays.
    """
    dtype, constant = jnp.result_type(a, b), a.shape[1] == 1
    decays, inputs, states = parts_of(a), parts_of(b), parts_of(entering)
    flags = flags_of(tokens, b.shape[0], b.shape[1], b.shape[1])
    given = Arrays(
        [] if flags is None else [flags],
        [],
        inputs if constant else (*decays, *inputs),
        (*decays, *states) if constant else states,
    )
    last = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in states] * (2 if summary else 1)
    out = [jax.ShapeDtypeStruct(b.shape, jnp.float32 if len(states) > 1 else dtype)] * (0 if summary else len(states))
    program = Program(
        partial(_start, decays=len(decays) if constant else 0, summary=summary),
        partial(_block, decays=0 if constant else len(decays), reverse=reverse, late=late),
        reverse,
    )
    name = "linear_scan_summary" if summary else "linear_scan"
    results = by_channel.run(name, program, plan, given, out, last)
    first, second = (whole(x) for x in (results[: len(states)], results[len(states) :]))
    return first if summary else first.astype(dtype), second


def _start(once: Any, scratch: Any, *, decays: int, summary: bool) -> Any:
    """Constant decays, the state, and the product of the decays where it is wanted."""
    rows = tuple(row[...].astype(jnp.float32) for row in once)
    constant, state = rows[:decays], rows[decays:]
    product = tuple(x + (i == 0) for i, x in enumerate(state)) if summary else ()  # the state that enters is 0 there
    return constant, (state, product)


def _block(
    constant: Parts,
    refs: Block,
    carried: tuple[Parts, Parts],
    count: Any,
    *,
    decays: int,
    reverse: bool,
    late: bool,
) -> tuple[Parts, Parts]:
    a, b = refs.wide[:decays], refs.wide[decays:]

    def row(refs: Any, t: Any) -> Parts:
        return tuple(x[t].astype(jnp.float32) for x in refs)

    def some(start: Any, number: int, carried: tuple[Parts, Parts]) -> tuple[Parts, Parts]:
        """In the order of the computation."""
        state, product = carried
        order = [count - 1 - start - i if reverse else start + i for i in range(number)]
        tokens = [(row(a, t) or constant, row(b, t), [spread(x[t, 0]) for x in refs.flags]) for t in order]
        outputs = []
        for decay, value, flag in tokens:
            state, output = step(decay, value, state, *flag, late=late)
            product = step(decay, (), product, *flag)[0] if product else ()
            outputs.append(output)
        for t, output in zip(order, outputs, strict=True):
            for x, part in zip(refs.out, output, strict=False):
                x[t] = part.astype(x.dtype)
        return state, product

    return in_groups(some, carried, count, GROUP)
