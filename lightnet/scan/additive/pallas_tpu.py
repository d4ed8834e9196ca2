"""Causal LightNet on TPUs, forward: chunks of 128 tokens as plain linear attention, without any gates.

The weight of a token at a later one is a function of the one times a function of the other, so that a chunk takes no
tree of products: three products of matrices for outputs and state, one more for the sums of keys, and one exponential
per element, relative to the largest logit of the chunk and the state. Per token and head of 128 channels in bfloat16
1,024 bytes must move, 1.9 cycles on v5e. States stay in VMEM, transposed.

Where a chunk rises so steeply that keys beside the largest one are lost to underflow, as `comfortable` says, it is done
again token by token, each relative to its own running maximum: slow, and exact.

Under differentiation XLA's form runs: its forward pass stores what its backward pass needs.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lightnet.scan.additive.chunk import AdditiveState, finite
from lightnet.scan.additive.reference import Operands
from lightnet.scan.additive.xla import additive_xla
from lightnet.scan.kernels import flat, heads_of_program, matmul, wrong_precision
from lightnet.scan.recurrence import Tokens, mapped_alike
from lightnet.typing import Array

CHUNK, TOKENS = 128, 512  # tokens of a chunk, and of a block that is in VMEM at once in half precision
HEADS = 4  # side by side in a program, if sizes allow
ROWS = 16  # tokens that are loaded at once where they go one by one
LEAST = float(jnp.finfo(jnp.float32).tiny) ** 0.7  # below this, keys beside the largest one may be lost


class Plan(NamedTuple):
    """Sizes of one call."""

    heads: int
    key: int
    value: int
    chunk: int
    tokens: int
    blocks: int
    half: bool


def additive_tpu(
    operands: Operands, initial_state: AdditiveState, tokens: Tokens, *, interpret: bool = False
) -> tuple[Array, AdditiveState]:
    """See `additive_reference`, without key factors."""
    return _scan(operands, initial_state, tokens, interpret)


def refusal(platform: str, operands: Any) -> str | None:
    """Why the kernel cannot run these."""
    q, _, v, factor = operands
    if wrong := wrong_precision(operands[:3]):
        return wrong
    if factor is not None:
        return "the kernel is without key factors"
    (heads, key), value = q.shape[2:], v.shape[3]
    if heads_of_program(heads, heads, key, value, HEADS) is None:
        return f"sizes {key} and {value} of a head do not fill rows of 128"
    return None


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(
    operands: Operands, initial_state: AdditiveState, tokens: Tokens, interpret: bool
) -> tuple[Array, AdditiveState]:
    q, logits, v, _ = operands
    plan = _plan(q, logits, v)
    batch, length, heads, _ = v.shape

    def of_tokens(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, plan.tokens, plan.heads * size), lambda b, h, t: (b, t, h))

    def of_state(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, plan.heads, rows, plan.key), lambda b, h, t: (b, h, 0, 0))

    runs, specs = _runs(tokens, plan, batch, length)
    state = (initial_state.maximum[:, :, None], initial_state.total[:, :, None], initial_state.state.swapaxes(2, 3))
    state_specs = [of_state(1), of_state(1), of_state(plan.value)]
    o, *final = pl.pallas_call(
        partial(_kernel, plan=plan, flagged=bool(runs)),
        grid=(batch, heads // plan.heads, plan.blocks),
        in_specs=[*specs, of_tokens(plan.key), of_tokens(plan.key), of_tokens(plan.value), *state_specs],
        out_specs=[of_tokens(plan.value), *state_specs],
        out_shape=[
            jax.ShapeDtypeStruct((batch, length, heads * plan.value), jnp.result_type(q, logits, v)),
            *(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in state),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(*runs, *map(flat, (q, logits, v)), *state)
    behind = AdditiveState(final[0][:, :, 0], final[1][:, :, 0], final[2].swapaxes(2, 3))
    o, behind = mapped_alike((o.reshape(v.shape), behind), (operands, initial_state))
    return o, behind


def _scan_forward(operands: Operands, initial_state: AdditiveState, tokens: Tokens, interpret: bool) -> Any:
    return jax.vjp(lambda operands, state: additive_xla(operands, state, tokens), operands, initial_state)


def _scan_backward(interpret: bool, pull: Any, cotangents: Any) -> Any:
    return *pull(cotangents), None


_scan.defvjp(_scan_forward, _scan_backward)


def _plan(q: Array, logits: Array, v: Array) -> Plan:
    (_, length, heads, key), value = q.shape, v.shape[3]
    some = heads_of_program(heads, heads, key, value, HEADS)
    assert some is not None
    half = all(x.dtype == jnp.bfloat16 for x in (q, logits, v))
    chunk = min(CHUNK, max(ROWS, 1 << (length - 1).bit_length()))
    tokens = min((TOKENS if half else TOKENS // 2) // chunk * chunk, -(-length // chunk) * chunk)
    return Plan(some, key, value, chunk, tokens, pl.cdiv(length, tokens), half)


def _runs(tokens: Tokens, plan: Plan, batch: int, length: int) -> tuple[list[Array], list[pl.BlockSpec]]:
    """Each token's run, counted from the beginning of its chunk, twice: as columns, where -1 - run is a masked token,
    and as rows. Nothing if all tokens are alike.
    """
    padded = plan.blocks * plan.tokens
    if tokens == (None, None) and padded == length:
        return [], []
    keep, real = (jnp.ones((batch, length), bool) if flag is None else flag for flag in tokens)
    keep = jnp.pad(keep, ((0, 0), (0, padded - length)), constant_values=True)
    real = jnp.pad(real, ((0, 0), (0, padded - length)))
    run = jnp.cumsum(~keep.reshape(batch, -1, plan.chunk), axis=2, dtype=jnp.int32)
    column = jnp.where(real, run.reshape(batch, padded), -1 - run.reshape(batch, padded))[..., None]
    chunks = plan.tokens // plan.chunk
    row = run.reshape(batch, plan.blocks, chunks, 1, plan.chunk)
    specs = [
        pl.BlockSpec((None, plan.tokens, 1), lambda b, h, t: (b, t, 0)),
        pl.BlockSpec((None, None, chunks, 1, plan.chunk), lambda b, h, t: (b, t, 0, 0, 0)),
    ]
    return [column, row], specs


def _kernel(*refs: Any, plan: Plan, flagged: bool) -> None:
    runs = refs[: 2 * flagged]
    q, logits, v, *initial = refs[2 * flagged : 2 * flagged + 6]
    o, *state = refs[2 * flagged + 6 :]

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for x, y in zip(initial, state, strict=True):
            y[...] = x[...]

    def chunk(c: Any, _: None) -> None:
        start = pl.multiple_of(c * plan.chunk, plan.chunk)
        sees = _Sight(runs, plan, start, c)
        found = [_together(plan, sees, q, logits, v, [x[i] for x in state], start, i) for i in range(plan.heads)]
        least = reduce(jnp.minimum, [x[-1] for x in found]).min()

        @pl.when(jnp.logical_not(least < LEAST))  # also where it is not a number, so that the outputs are not either
        def comfortable() -> None:
            for i, (out, *after, _) in enumerate(found):
                _write(o, plan, start, plan.chunk, i, out)
                for ref, x in zip(state, after, strict=True):
                    ref[i] = x

        @pl.when(least < LEAST)
        def steep() -> None:
            for i in range(plan.heads):
                _one_by_one(plan, runs, (q, logits, v, o), state, start, i)

    lax.fori_loop(0, plan.tokens // plan.chunk, chunk, None)


class _Sight:
    """Which tokens of a chunk count for which; None where all do."""

    def __init__(self, runs: Any, plan: Plan, start: Any, c: Any) -> None:
        row, column = (lax.broadcasted_iota(jnp.int32, (plan.chunk, plan.chunk), axis) for axis in range(2))
        self.pairs = column <= row
        self.real: Any = None
        self.entering: Any = None
        self.leaving: Any = None
        if runs:
            signed = runs[0][pl.ds(start, plan.chunk), :]
            self.real = signed >= 0
            run, others = jnp.maximum(signed, -1 - signed), runs[1][c]
            self.pairs &= run == others
            self.entering, self.leaving = run == 0, run == others[:, -1:]
            self.enters, self.stays = others[:, :1] == 0, others[:, -1:] == 0


def _together(
    plan: Plan, sees: _Sight, q: Any, logits: Any, v: Any, state: list[Array], start: Any, i: int
) -> tuple[Array, ...]:
    """Outputs, maximum, total and state of one head, and normalisers, all relative to the largest logit."""
    maximum, total, inner = state
    a, values = (_read(x, plan, sees, start, i, masked) for x, masked in ((logits, -jnp.inf), (v, 0.0)))
    entering = maximum if sees.real is None else jnp.where(sees.enters, maximum, -jnp.inf)
    reference = finite(jnp.maximum(_largest(a), entering))
    keys, decay = jnp.exp(a - reference), jnp.exp(entering - reference)
    before, stays, last = decay * total, decay, keys
    after = jnp.maximum(maximum, _largest(a))
    sums = matmul(jnp.where(sees.pairs, 1.0, 0.0), keys, "nn", plan.half)
    if sees.real is None:
        normalisers = sums + before
    else:
        normalisers = sums + jnp.where(sees.entering, before, 0.0)
        stays, last = jnp.where(sees.stays, decay, 0.0), jnp.where(sees.leaving, keys, 0.0)
        leaving = _largest(jnp.where(sees.leaving, a, -jnp.inf))
        after = jnp.maximum(jnp.where(sees.stays, maximum, -jnp.inf), leaving)
    scaled = _read(q, plan, sees, start, i, 0.0) / jnp.where(normalisers > 0, normalisers, 1.0)
    scores = jnp.where(sees.pairs, matmul(scaled, keys, "nt", plan.half), 0.0)
    past = matmul(scaled, decay * inner, "nt", plan.half)
    out = matmul(scores, values, "nn", plan.half) + (past if sees.real is None else jnp.where(sees.entering, past, 0.0))
    rescale = jnp.exp(reference - finite(after))
    total = rescale * (stays * total + last.sum(axis=0, keepdims=True))
    inner = rescale * (stays * inner + matmul(values, last, "tn", plan.half))
    least = normalisers if sees.real is None else jnp.where(sees.real, normalisers, jnp.inf)
    return out, after, total, inner, least


def _one_by_one(plan: Plan, runs: Any, refs: tuple[Any, ...], state: Any, start: Any, i: int) -> None:
    """The same for one head, token by token."""
    q, logits, v, o = refs

    def rows(tile: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        at = pl.multiple_of(start + tile * ROWS, ROWS)
        signed = runs[0][pl.ds(at, ROWS), :] if runs else None
        a, values, queries = (_slice(x, plan, at, ROWS, i) for x in (logits, v, q))
        if signed is not None:
            a, values = jnp.where(signed >= 0, a, -jnp.inf), jnp.where(signed >= 0, values, 0.0)

        def token(r: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            maximum, total, inner, out, run = carry
            here = lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0) == r
            if signed is not None:
                its = jnp.where(here, jnp.maximum(signed, -1 - signed), 0).sum(axis=0, keepdims=True)
                begins = its != run
                maximum = jnp.where(begins, -jnp.inf, maximum)
                total, inner, run = jnp.where(begins, 0.0, total), jnp.where(begins, 0.0, inner), its
            its_a = _largest(jnp.where(here, a, -jnp.inf))
            new = jnp.maximum(maximum, its_a)
            decay, key = jnp.exp(maximum - finite(new)), jnp.exp(its_a - finite(new))
            total = decay * total + key
            added = matmul(jnp.where(here, values, 0.0), jnp.broadcast_to(key, a.shape), "tn", False)
            inner = decay * inner + added
            scaled = jnp.where(here, queries, 0.0) / jnp.where(total > 0, total, 1.0)
            return new, total, inner, out + matmul(scaled, inner, "nt", False), run

        *carry, out, run = lax.fori_loop(0, ROWS, token, (*carry[:3], jnp.zeros(values.shape, jnp.float32), carry[3]))
        _write(o, plan, at, ROWS, i, out)
        return *carry, run

    first = (*(x[i] for x in state), jnp.zeros((1, 1), jnp.int32))
    *after, _ = lax.fori_loop(0, plan.chunk // ROWS, rows, first)
    for ref, x in zip(state, after, strict=True):
        ref[i] = x


def _largest(x: Array) -> Array:
    return x.max(axis=0, keepdims=True)


def _read(ref: Any, plan: Plan, sees: _Sight, start: Any, i: int, masked: float) -> Array:
    x = _slice(ref, plan, start, plan.chunk, i)
    return x if sees.real is None else jnp.where(sees.real, x, masked)


def _slice(ref: Any, plan: Plan, start: Any, count: int, i: int) -> Array:
    size = ref.shape[1] // plan.heads
    return ref[pl.ds(start, count), i * size : (i + 1) * size].astype(jnp.float32)


def _write(ref: Any, plan: Plan, start: Any, count: int, i: int, x: Array) -> None:
    size = x.shape[1]
    ref[pl.ds(start, count), i * size : (i + 1) * size] = x.astype(ref.dtype)
