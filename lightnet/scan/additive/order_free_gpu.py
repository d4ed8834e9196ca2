"""LightNet without an order on Hopper: a softmax over the whole sequence, one kernel for the keys, one for the queries.

Each program takes one head of one sequence, or a stretch of it where heads are fewer than cores. The first kernel reads
keys and values once and leaves (running maximum, sum, S) per stretch, which XLA merges: S is tiny. Keys enter registers
turned, a channel a row, so that maxima and sums are those of rows, and go from there to the tensor cores. The second
kernel multiplies the queries by S. Each array moves once, 4 of them: per token and head of 128 channels in bfloat16
1,024 bytes, 0.34 ns of an H100's memory, against 65,536 operations, 0.08 ns.

Backward, also two kernels, over 7 arrays: queries and gradients of outputs give dS and dq; then keys and values give

    P = exp(a - maximum) / total,  dv = P dS,  da = P * (V dS^T - c),  c_k = sum_v S_kv dS_kv,

where c, the mean of the key's gradient under the key, needs no pass of its own, and 1 / total enters with dS.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lightnet.scan import hopper
from lightnet.scan.additive import launch_gpu
from lightnet.scan.additive.chunk import AdditiveState, finite
from lightnet.scan.additive.order_free import Operands, absorb, second_order, together
from lightnet.scan.recurrence import Tokens
from lightnet.typing import Array

TOKENS = 64  # of a block that is in shared memory at once: as many rows as one product has
STAGES = {"gather": 3, "answer": 2, "queries": 3, "keys": 2}  # blocks on their way, as many as shared memory holds


class Plan(NamedTuple):
    """Sizes of one kernel; the stretches have `each` blocks, the last one perhaps fewer that exist."""

    length: int
    key: int
    value: int
    each: int
    stages: int
    dtype: Any


class Normalised(NamedTuple):
    """S (B, H, K, V) of normalised keys; the maximum of the logits and the sum of their exponentials (B, H, K)."""

    state: Array
    maximum: Array
    total: Array


def global_gpu(operands: Operands, initial_state: None, tokens: Tokens, *, num_segments: int) -> Array:
    """See `global_reference`, for one segment and without key factors."""
    q, logits, v, _, _ = operands
    length = q.shape[1]
    if tokens.real is not None:
        logits = jnp.where(tokens.real[..., None, None], logits, -jnp.inf)
    padded = (launch_gpu.aligned(q), launch_gpu.aligned(logits, -jnp.inf), launch_gpu.aligned(v))
    return _attend(*padded)[0][:, :length]


def refusal(operands: Any, **_: Any) -> str | None:
    """Why the kernel cannot run these."""
    q, logits, v, factor, runs = operands
    if factor is not None or runs is not None:
        return "the kernel is for one segment, without key factors"
    return launch_gpu.refusal(q, logits, v)


def _stretches(name: str, logits: Any, value: int) -> tuple[Plan, dict[str, int]]:
    """The plan of a kernel, and its grid."""
    batch, length, heads, key = logits.shape
    blocks = pl.cdiv(length, TOKENS)
    state = 4 * key * value / (length * (key + value))  # bytes of one, written and read, over those of the tokens
    each = _each(blocks, batch * heads, state)
    plan = Plan(length, key, value, each, STAGES[name], logits.dtype)
    return plan, {"batch": batch, "head": heads, "stretch": pl.cdiv(blocks, each)}


def _each(blocks: int, heads: int, state: float) -> int:
    """How many blocks a stretch has: such that the core with the most to move has little, states included.

    Example:
        >>> _each(64, 64, 0.06), _each(64, 1000, 0.06), _each(64, 1, 0.06)
        (32, 64, 1)
    """

    def most(stretches: int) -> float:
        return pl.cdiv(heads * stretches, hopper.PROCESSORS) * (1 / stretches + state)

    return pl.cdiv(blocks, min(range(1, min(blocks, hopper.PROCESSORS) + 1), key=most))


@jax.custom_vjp
def _attend(q: Array, logits: Array, v: Array) -> tuple[Array, Normalised]:
    """Outputs, and what the backward pass needs besides the inputs."""
    normalised = _normalised(logits, v)
    plan, grid = _stretches("answer", logits, v.shape[3])
    run = launch_gpu.kernel(_answer, [launch_gpu.shape(*v.shape, dtype=v.dtype)], grid, _held(plan), plan=plan)
    return run(q, normalised.state.astype(v.dtype))[0], normalised


def gathered(logits: Array, v: Array, tokens: int) -> AdditiveState:
    """The states (B, H, stretches, ...) of stretches of so many tokens, a multiple of `TOKENS`."""
    (batch, length, heads, key), value = logits.shape, v.shape[3]
    grid = {"batch": batch, "head": heads, "stretch": pl.cdiv(length, tokens)}
    outputs = [launch_gpu.shape(*grid.values(), *x) for x in ((key,), (key,), (key, value))]
    plan = Plan(length, key, value, tokens // TOKENS, STAGES["gather"], logits.dtype)
    return AdditiveState(*launch_gpu.kernel(_gather, outputs, grid, plan=plan)(logits, v))


def _normalised(logits: Array, v: Array) -> Normalised:
    whole = together(gathered(logits, v, TOKENS * _stretches("gather", logits, v.shape[3])[0].each))
    total = jnp.where(whole.total > 0, whole.total, 1)
    return Normalised(whole.state / total[..., None], finite(whole.maximum), total)


def _attend_forward(q: Array, logits: Array, v: Array) -> Any:
    o, normalised = _attend(q, logits, v)
    return (o, normalised), (q, logits, v, normalised)


def _attend_backward(residuals: Any, cotangents: tuple[Array, Any]) -> Any:
    return _gradient(*residuals, cotangents[0])


_attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def _gradient(q: Array, logits: Array, v: Array, normalised: Normalised, do: Array) -> tuple[Array, Array, Array]:
    half, key = v.dtype, logits.shape[3]
    plan, grid = _stretches("queries", logits, v.shape[3])
    outputs = [launch_gpu.shape(*q.shape, dtype=half), launch_gpu.shape(*grid.values(), key, plan.value)]
    dq, parts = launch_gpu.kernel(_queries, outputs, grid, _held(plan), plan=plan)(q, do, normalised.state.astype(half))
    dstate = parts.sum(axis=2) / normalised.total[..., None]
    mean = (normalised.state * dstate).sum(axis=-1)
    plan, grid = _stretches("keys", logits, plan.value)
    outputs = [launch_gpu.shape(*x.shape, dtype=half) for x in (logits, v)]
    vectors = (plgpu.SMEM((key,), jnp.float32),) * 2
    run = launch_gpu.kernel(_keys, outputs, grid, (*_held(plan, 3), *vectors), plan=plan)
    dlogits, dv = run(logits, v, dstate.astype(half), normalised.maximum, mean)
    return dq, dlogits, dv


def _gradient_forward(*given: Any) -> Any:
    return _gradient(*given), given


def _gradient_backward(residuals: Any, bars: Any) -> Any:
    """Derivatives of second order by XLA: what was normalised is a function of the operands."""
    q, logits, v, normalised, do = residuals
    slopes, do_bar = second_order((q, logits, v), Tokens(None, None), do, bars)
    return *slopes, jax.tree.map(jnp.zeros_like, normalised), do_bar


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _held(plan: Plan, copies: int = 1) -> tuple:
    """Shared memory for what a program holds throughout, a state, and the barrier of the copies."""
    state = hopper.tile(plan.key, plan.value, dtype=plan.dtype)
    return plgpu.Barrier(num_arrivals=copies), state


def _hold(barrier: Any, *copies: tuple[Any, Any]) -> None:
    for of_all, mine in copies:
        plgpu.copy_gmem_to_smem(of_all.at[lax.axis_index("batch"), lax.axis_index("head")], mine, barrier)
    plgpu.barrier_wait(barrier)


def _over_blocks(plan: Plan, step: Any, inputs: list, outputs: list, carry: Any = None) -> Any:
    """Take a step for each block of a stretch; inputs and outputs are pairs of an array and the size of a head."""
    batch, head, stretch = (lax.axis_index(x) for x in ("batch", "head", "stretch"))

    def block(size: int) -> plgpu.BlockSpec:
        shape = (None, TOKENS, None, size)
        transforms = hopper.swizzled(size)
        return plgpu.BlockSpec(shape, lambda t: (batch, stretch * plan.each + t, head, 0), transforms=transforms)

    run = plgpu.emit_pipeline(
        step,
        grid=(plan.each,),
        in_specs=[block(size) for _, size in inputs],
        out_specs=[block(size) for _, size in outputs],
        max_concurrent_steps=plan.stages,
        init_carry=carry,
    )
    return run(*(ref for ref, _ in (*inputs, *outputs)))


def _gather(logits: Any, v: Any, maximum: Any, total: Any, state: Any, *, plan: Plan) -> None:
    """(maximum, sum, S) of a stretch."""
    first = lax.axis_index("stretch") * plan.each

    def step(at: tuple, logits: Any, v: Any, so_far: AdditiveState) -> AdditiveState:
        a = hopper.read_transposed(logits)
        if plan.length % (plan.each * TOKENS):  # zeros are read behind the end
            column = hopper.index(a.shape, 1)
            a = jnp.where(column + (first + at[0]) * TOKENS < plan.length, a, -jnp.inf)
        return absorb(so_far, a, lambda sums, keys: hopper.add_product(sums, keys.astype(plan.dtype), v))

    vector = (plan.key,)
    empty = AdditiveState(
        hopper.filled(vector, -jnp.inf, hopper.PER_ROW),
        hopper.filled(vector, 0.0, hopper.PER_ROW),
        hopper.filled((plan.key, plan.value), 0.0),
    )
    behind = _over_blocks(plan, step, [(logits, plan.key), (v, plan.value)], [], empty)
    mine = tuple(lax.axis_index(x) for x in ("batch", "head", "stretch"))
    maximum[mine], total[mine], state[mine] = behind


def _answer(q: Any, state: Any, o: Any, ready: Any, held: Any, *, plan: Plan) -> None:
    """o = q S."""
    _hold(ready, (state, held))

    def step(at: tuple, q: Any, o: Any) -> None:
        o[...] = hopper.product(q, held).astype(o.dtype)

    _over_blocks(plan, step, [(q, plan.key)], [(o, plan.value)])


def _queries(q: Any, do: Any, state: Any, dq: Any, dstate: Any, ready: Any, held: Any, *, plan: Plan) -> None:
    """dq = dO S^T, and dS = q^T dO of a stretch."""
    _hold(ready, (state, held))

    def step(at: tuple, q: Any, do: Any, dq: Any, sums: Array) -> Array:
        sums = hopper.add_product(sums, hopper.transposed(q), do)
        dq[...] = hopper.product(do, hopper.transposed(held)).astype(dq.dtype)
        return sums

    inputs, sums = [(q, plan.key), (do, plan.value)], hopper.filled((plan.key, plan.value), 0.0)
    mine = tuple(lax.axis_index(x) for x in ("batch", "head", "stretch"))
    dstate[mine] = _over_blocks(plan, step, inputs, [(dq, plan.key)], sums)


def _keys(*refs: Any, plan: Plan) -> None:
    """dv and dlogits, of dS / total, the maximum and the mean of the key's gradient / total."""
    logits, v, dstate, maximum, mean, dlogits, dv, ready, held, its_maximum, its_mean = refs
    _hold(ready, (dstate, held), (maximum, its_maximum), (mean, its_mean))

    def step(at: tuple, logits: Any, v: Any, dlogits: Any, dv: Any) -> None:
        a = hopper.read(logits)
        keys = jnp.exp(a - hopper.of_columns(hopper.read(its_maximum, hopper.PER_COLUMN), TOKENS))
        dv[...] = hopper.product(keys.astype(plan.dtype), held).astype(dv.dtype)
        bar = hopper.product(v, hopper.transposed(held))
        mean = hopper.of_columns(hopper.read(its_mean, hopper.PER_COLUMN), TOKENS)
        dlogits[...] = (keys * (bar - mean)).astype(dlogits.dtype)

    _over_blocks(plan, step, [(logits, plan.key), (v, plan.value)], [(dlogits, plan.key), (dv, plan.value)])
