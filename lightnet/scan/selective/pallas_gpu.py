"""The selective recurrence on Hopper GPUs: a channel per thread with all its states in registers.

Per channel and token at least 6 bytes must move in bfloat16, 2.0 ps at 3.0 TB/s, or 8 with a gate. Each of N states
takes an exponential and some 12 other operations, exact next to a decay of 1: with N = 16 the 16 special functions that
a multiprocessor makes at a time need 4.3 ps, and 220 instructions per token at 128 lanes 7.5 ps: bound by arithmetic.
The step sizes, inputs and gates of a block of tokens are copied ahead of time, and B and C, which all its channels
share.

Where batches and channels do not give enough programs, the sequence is cut into segments, whose states are made first:
twice the arithmetic. For the backward pass the forward one keeps the states before every 8th token; those between are
made again, in 715 instructions per token together, 24 ps. The gradients of B and C are sums over channels, made of what
all threads write side by side; they leave as one set for each program, which XLA sums.
"""

from collections.abc import Iterator
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import by_channel
from lightnet.scan.by_channel import Arrays, Block, Program, Tiling, aligned, clear, spread, sum_of_rows, tiling
from lightnet.scan.kernels import wrong_precision
from lightnet.scan.linear.pallas_gpu import entered
from lightnet.scan.recurrence import Tokens, mapped_alike, only_real
from lightnet.scan.selective.chunk import Selective, Step, Sums, advance, gated, of_inputs, pull, skipped, ungated
from lightnet.scan.selective.xla import selective_xla
from lightnet.typing import Array

ENOUGH = 66  # programs: one for every other multiprocessor, since segments double the work
MOST_STATES = 16  # that fit the registers of a thread beside their rates
AGAIN = 8  # tokens whose states are made again at a time
ROWS = 64  # that are summed at a time
APART = 8  # numbers between rows: threads that read side by side find them in different banks of the memory

Rows = tuple[Array, ...]  # of the states of a channel


def refusal(operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    if operands.A.shape[1] > MOST_STATES:
        return f"{operands.A.shape[1]} states per channel are more than the {MOST_STATES} of the kernel"
    return wrong_precision(operands)


def selective_gpu(operands: Selective, initial_state: Array, tokens: Tokens) -> tuple[Array, Array]:
    """See `selective_reference`."""
    (dt,) = only_real(tokens, operands.dt)  # where the public function has done that already, it is the same operation
    y, final, _ = _scan(operands._replace(dt=dt), initial_state.swapaxes(1, 2), Tokens(tokens.keep, None), False)
    return y, final.swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(operands: Selective, initial: Array, tokens: Tokens, keeps: bool) -> tuple[Array, Array, Array | None]:
    """y, the last state, and the states before every block of tokens if they are kept."""
    *found, states = _mosaic(operands, initial, tokens, store=keeps)
    return *mapped_alike(tuple(found), (operands, tokens, initial)), states if keeps else None


def _scan_forward(operands: Selective, initial: Array, tokens: Tokens, keeps: bool) -> Any:
    y, final, states = _scan(operands, initial, tokens, True)
    return (y, final, states if keeps else None), (operands, initial, tokens, states)


def _scan_backward(keeps: bool, residuals: Any, cotangents: Any) -> Any:
    return *_gradient(*residuals, cotangents[:2]), None


_scan.defvjp(_scan_forward, _scan_backward)


def _mosaic(operands: Selective, initial: Array, tokens: Tokens, *, store: bool) -> tuple[Array, Array, Array]:
    """y, the last state (B, N, D), and the states before every block of tokens (B, blocks, N, D)."""
    given, z, D = _given(operands, tokens), operands.z, operands.D
    (batch, length, size), states = operands.x.shape, operands.A.shape[1]
    token = sum(v.dtype.itemsize for v in (*given.wide, operands.x)) + states // 16 + store * states * 4 // AGAIN
    plan = tiling(batch, length, size, token, ENOUGH, rest=12 * states + 4, tokens=AGAIN if store else None)
    initial = aligned(initial)
    entering = _entering(given, plan, initial) if plan.segments > 1 else initial[:, None]
    out = [jax.ShapeDtypeStruct(given.wide[0].shape, operands.x.dtype)]
    if store:
        out.append(jax.ShapeDtypeStruct((batch, plan.segments * plan.blocks, *initial.shape[1:]), jnp.float32))
    program = Program(partial(_start, skip=D is not None), partial(_block, gate=z is not None))
    given = given._replace(once=[*given.once, entering])
    y, *kept, final = by_channel.run("selective_scan", program, plan, given, out, [_like(entering)])
    return y[..., :size], final[:, -1, :, :size], kept[0] if kept else entering


def _given(operands: Selective, tokens: Tokens) -> Arrays:
    """What both passes read, with flags that are 1 where a run begins."""
    x, dt, A, B, C, D, z = operands
    return Arrays(
        [] if tokens.keep is None else [1 - tokens.keep.astype(jnp.int32)],
        [jnp.pad(v.astype(jnp.float32), ((0, 0), (0, 0), (0, -v.shape[-1] % 4))) for v in (B, C)],
        [aligned(v) for v in (x, dt, z) if v is not None],
        [aligned(v.astype(jnp.float32)) for v in (A.T[None, None], *([] if D is None else [D[None, None]]))],
    )


def _like(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)


def _entering(given: Arrays, plan: Tiling, initial: Array) -> Array:
    """The states that enter the segments (B, segments, N, D)."""
    batch, states, size = initial.shape
    A = given.once[0]
    last = [jax.ShapeDtypeStruct((batch, plan.segments, *n, size), jnp.float32) for n in ((states,), (), ())]
    given = given._replace(narrow=given.narrow[:1], wide=given.wide[:2], once=[A])
    program = Program(_start_of_summary, _block_of_summary)
    state, total, alive = by_channel.run("selective_scan_summary", program, plan, given, [], last)
    decay = jnp.exp(A * total[:, :, None]) * alive[:, :, None]
    flat = [x.reshape(*x.shape[:-2], -1) for x in (decay, state, initial)]
    return entered(*flat).reshape(state.shape)


def _start(once: Any, scratch: Any, *, skip: bool) -> Any:
    """The rates and what of the input goes straight to the output, and the states."""
    rates = tuple(_rows(once[0]))
    return (rates, once[1][...] if skip else None), tuple(_rows(once[-1]))


def _block(constant: Any, refs: Block, h: Rows, count: Any, *, gate: bool) -> Rows:
    for store in refs.out[1:]:
        for n, value in enumerate(h):
            store[n] = value

    def one(t: Any, h: Rows) -> Rows:
        token, steps = _token(constant, refs, t, gate=gate)
        h = tuple(map(advance, _kept(refs, t, h), steps))
        y = gated(_read(h, steps), token)
        refs.out[0][t] = y.astype(refs.out[0].dtype)
        return h

    return lax.fori_loop(0, count, one, h)


def _start_of_summary(once: Any, scratch: Any) -> Any:
    """The rates; the states, the sum of the steps, and 1 until the first reset."""
    rates = tuple(_rows(once[0]))
    zero = 0 * rates[0]
    return (rates, None), (tuple(zero for _ in rates), zero, zero + 1)


def _block_of_summary(constant: Any, refs: Block, carried: Any, count: Any) -> Any:
    def one(t: Any, carried: Any) -> Any:
        h, total, alive = carried
        token, steps = _token(constant, refs._replace(narrow=[refs.narrow[0]] * 2), t, gate=False)
        return tuple(map(advance, _kept(refs, t, h), steps)), total + token.dt, *_kept(refs, t, (alive,))

    return lax.fori_loop(0, count, one, carried)


def _token(constant: Any, refs: Block, t: Any, *, gate: bool) -> tuple[Selective, list[Step]]:
    """The operands of a token but for those of its states, and what it does to each of these."""
    rates, D = constant
    x, dt, *z = (v[t].astype(jnp.float32) for v in refs.wide[: 2 + gate])
    B, C = ([spread(v[t, n]) for n in range(len(rates))] for v in refs.narrow)
    steps = [Step(dt, dt * x, *weights) for weights in zip(rates, B, C, strict=True)]
    return Selective(x, dt, rates[0], B[0], C[0], D, z[0] if gate else None), steps


def _read(h: Rows, steps: list[Step]) -> Array:
    return reduce(add, (step.C * value for step, value in zip(steps, h, strict=True)))


def _kept(refs: Block, t: Any, rows: Rows) -> Rows:
    """0 where a token begins a new run."""
    for flag in refs.flags:
        begins = spread(flag[t, 0]) != 0
        rows = tuple(jnp.where(begins, jnp.zeros_like(x), x) for x in rows)
    return rows


def _rows(ref: Any) -> Iterator[Array]:
    return (ref[n] for n in range(ref.shape[0]))


@jax.custom_vjp
def _gradient(
    operands: Selective, initial: Array, tokens: Tokens, states: Array, cotangents: tuple[Array, Array]
) -> tuple[Selective, Array]:
    """Of all operands and the initial state."""
    return _backward(operands, tokens, states, cotangents)


def _gradient_forward(*given: Any) -> Any:
    return _gradient(*given), given


def _gradient_backward(given: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: `states` is a function of the others."""
    operands, initial, tokens, states, cotangents = given

    def gradient(operands: Selective, initial: Array, cotangents: tuple[Array, Array]) -> tuple[Selective, Array]:
        dy, dfinal = cotangents
        _, pull = jax.vjp(lambda x, state: selective_xla(x, state, tokens), operands, initial.swapaxes(1, 2))
        slopes, dinitial = pull((dy, dfinal.swapaxes(1, 2)))
        return slopes, dinitial.swapaxes(1, 2)

    doperands, dinitial, dcotangents = jax.vjp(gradient, operands, initial, cotangents)[1](bars)
    return doperands, dinitial, None, jnp.zeros_like(states), dcotangents


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _backward(
    operands: Selective, tokens: Tokens, states: Array, cotangents: tuple[Array, Array]
) -> tuple[Selective, Array]:
    x, _, A, B, C, D, z = operands
    (batch, length, size), number = x.shape, A.shape[1]
    each = 1 << (number - 1).bit_length()  # rows of a token in the sums, of B and of C
    given = _given(operands, tokens)
    plan = Tiling(AGAIN, -(-length // AGAIN), 1, 2, length)
    dy, dfinal = aligned(cotangents[0]), aligned(cotangents[1])[:, None]
    given = given._replace(wide=[*given.wide, dy, states], once=[*given.once, dfinal])
    out = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given.wide[:-2]]
    sums = [jax.ShapeDtypeStruct((batch, -(-size // by_channel.CHANNELS), plan.blocks * AGAIN * 2 * each), jnp.float32)]
    last = [_like(dfinal)] * 2 + [jax.ShapeDtypeStruct((batch, 1, dfinal.shape[-1]), jnp.float32)] * (D is not None)
    scratch = ((AGAIN, number, by_channel.CHANNELS), (ROWS, by_channel.CHANNELS + APART))
    program = Program(
        partial(_start_backward, skip=D is not None),
        partial(_block_backward, gate=z is not None, each=each),
        reverse=True,
        scratch=scratch,
    )
    found = by_channel.run("selective_scan_backward", program, plan, given, out, last, sums)
    of_weights, dinitial, dA, *dD = found[len(out) :]
    dx, ddt, *dz = (v[..., :size] for v in found[: len(out)])
    dB, dC = jnp.moveaxis(of_weights.sum(1).reshape(batch, -1, 2, each)[:, :length, :, :number], 2, 0)
    dA = dA[:, 0, :, :size].sum(0).T.astype(A.dtype)
    of_D = None if D is None else dD[0][:, 0, :size].sum(0).astype(D.dtype)
    gradients = Selective(dx, ddt, dA, dB.astype(B.dtype), dC.astype(C.dtype), of_D, dz[0] if dz else None)
    return gradients, dinitial[:, 0, :, :size]


def _start_backward(once: Any, scratch: Any, *, skip: bool) -> Any:
    """As forward, and the cotangents of the states, of the rates and of what skips them."""
    clear(scratch[1])
    constant, dh = _start(once, scratch, skip=skip)
    zero = 0 * constant[0][0]
    return constant, (dh, tuple(zero for _ in dh), (zero,) * skip)


def _block_backward(constant: Any, refs: Block, carried: Any, count: Any, *, gate: bool, each: int) -> Any:
    """All tokens of a block; those behind the sequence are steps of size 0, and nothing comes back from them."""
    dy, states = refs.wide[2 + gate :]
    before, products = refs.scratch
    together = ROWS // (2 * each)  # tokens whose products are summed together

    def again(t: Any, h: Rows) -> Rows:
        h = _kept(refs, t, h)
        for n, value in enumerate(h):
            before[t, n] = value
        return tuple(map(advance, h, _token(constant, refs, t, gate=gate)[1]))

    def one(i: Any, carried: Any) -> Any:
        t = AGAIN - 1 - i
        dh, dA, dD = carried
        token, steps = _token(constant, refs, t, gate=gate)
        found = tuple(before[t, n] for n in range(len(dh)))
        after = tuple(map(advance, found, steps))
        of_y = dy[t].astype(jnp.float32)
        if token.z is not None:
            of_y, dz = ungated(skipped(_read(after, steps), token), token.z, of_y)
            refs.out[2][t] = dz.astype(refs.out[2].dtype)
        pulled = [
            pull(h, behind, step, of_y, d, _PRODUCTS)
            for h, behind, step, d in zip(found, after, steps, dh, strict=True)
        ]
        for n, (_, step) in enumerate(pulled):
            row = lax.rem(t, together) * 2 * each + n
            for at, value in ((row, step.B), (row + each, step.C)):
                products[at, pl.ds(0, by_channel.CHANNELS)] = value
        ddt, dinput = (reduce(add, (getattr(step, x) for _, step in pulled)) for x in ("dt", "input"))
        for ref, value in zip(refs.out, of_inputs(token, ddt, dinput, of_y), strict=False):
            ref[t] = value.astype(ref.dtype)
        dA = tuple(total + step.A for total, (_, step) in zip(dA, pulled, strict=True))
        return _kept(refs, t, tuple(d for d, _ in pulled)), dA, tuple(total + of_y * token.x for total in dD)

    def some(i: Any, carried: Any) -> Any:
        carried = lax.fori_loop(i * together, (i + 1) * together, one, carried)
        plgpu.commit_smem()
        refs.sums[0][pl.ds((AGAIN // together - 1 - i) * ROWS, ROWS)] = sum_of_rows(products)
        plgpu.commit_smem()
        return carried

    lax.fori_loop(0, AGAIN, again, tuple(_rows(states)))
    dh, dA, dD = carried
    zero = tuple(0 * x for x in dh)
    dh, part, dD = lax.fori_loop(0, AGAIN // together, some, (dh, zero, dD))
    # Summed within a block first: over a long sequence the rounding of one running sum would show.
    return dh, tuple(map(add, dA, part)), dD


_PRODUCTS = Sums(lambda weights, h: weights * h, lambda h, weights: h * weights)
