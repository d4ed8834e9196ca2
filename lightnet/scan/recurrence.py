"""The record that describes one recurrence, and what segments and masks mean for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lightnet.scan.checks import got
from lightnet.scan.mesh import lie
from lightnet.segments import run_index
from lightnet.typing import Array


class Tokens(NamedTuple):
    """What segments and masks mean for a recurrence; None where all tokens are alike.

    Attributes:
        keep: (B, L), false at a token that begins a new run: the state before it does not count.
        real: (B, L), false at a masked token: the state passes it unchanged.
    """

    keep: Array | None
    real: Array | None


class Axes(NamedTuple):
    """The axes of a recurrence's arrays by their letters, such as "B L D"; an array may have size 1 in any of them.

    Attributes:
        operands: pytree like the operands, with strings as leaves.
        state: pytree like the state, or None where there is none.
        output: of the output.
    """

    operands: Any
    state: Any
    output: str


class Kernel(NamedTuple):
    """An implementation for one platform.

    Attributes:
        run: called like the others.
        refusal: (operands, **options) -> why it cannot run these, or None.
        picked: whether `implementation=None` runs it; if not, it runs only where `implementation="pallas"` asks for it.
            A kernel for TPUs is picked on what its compiler counts, beside which XLA's form takes several times as
            long; of one for GPUs nothing but a measurement could tell.
    """

    run: Callable
    refusal: Callable[..., str | None]
    picked: bool = True


def _without_a_state(*_: Any, **__: Any) -> Any:
    raise TypeError("this function has no order, and so neither states nor summaries")


@dataclass(frozen=True)
class Recurrence:
    """One recurrence and its implementations.

    All implementations are called as `f(operands, initial_state, tokens, **options) -> (output, final_state)` with the
    same pytrees and the initial state always given. What stands at masked tokens is finite only where the public
    function has cleaned it (`only_real`); the others' implementations select as they go, which copies nothing.

    Attributes:
        name: of the public function.
        axes: letters of the axes, from which the split over a mesh follows.
        reference: sequential, one `lax.scan`: the definition.
        xla: fast on any platform.
        kernels: platform ("tpu", "cuda") -> Pallas kernel.
        summary: (operands, tokens) -> what a stretch of the sequence does to the state that enters it.
        combine: (earlier, later) -> summary of both stretches; associative.
        enter: (summary, state) -> the state behind the stretch.
        split: (operands, tokens, mesh axis, **options) -> output, for a function without an order and so without a
            state: the call with the sequence split over a mesh axis, from inside `jax.shard_map`.
    """

    name: str
    axes: Axes
    reference: Callable
    xla: Callable
    kernels: Mapping[str, Kernel] = field(default_factory=lambda: MappingProxyType({}))
    summary: Callable = _without_a_state
    combine: Callable = _without_a_state
    enter: Callable = _without_a_state
    split: Callable | None = None


def tokens_of(segment_ids: Array | None, mask: Array | None, *, reverse: bool = False) -> Tokens:
    """Where runs begin and which tokens are real.

    Args:
        segment_ids: (B, L) integers; a segment is a maximal run of equal ids.
        mask: (B, L), true at real tokens, which neither end a run nor begin one otherwise.
        reverse: whether the recurrence runs from the end, so that a run begins at its last real token.

    Returns:
        The flags.

    Example:
        >>> tokens_of(jnp.array([[1, 1, 2]]), None).keep.tolist()
        [[True, True, False]]
        >>> tokens_of(jnp.array([[1, 1, 2]]), None, reverse=True).keep.tolist()
        [[True, False, True]]
    """
    mask = None if mask is None else lie(mask, PartitionSpec())
    if segment_ids is None:
        return Tokens(None, mask)
    segment_ids = lie(segment_ids, PartitionSpec())
    order = slice(None, None, -1) if reverse else slice(None)
    run = run_index(segment_ids[:, order], None if mask is None else mask[:, order])
    keep = jnp.pad(run[:, 1:] == run[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return Tokens(keep[:, order], mask)


def only_real(tokens: Tokens, *operands: Array | None) -> tuple[Any, ...]:
    """The operands (B, L, ...) with 0 in the place of whatever a masked token contains; its gradient is exactly 0."""
    if (real := tokens.real) is None:
        return operands

    def clean(x: Array | None) -> Array | None:
        if x is None:
            return None
        return jnp.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))

    return tuple(clean(x) for x in operands)


def mapped_alike(outputs: Any, operands: Any) -> Any:
    """The outputs of a `jax.custom_vjp` function, such that `jax.vmap` maps all of them where it maps any operand.

    An output that depends on no mapped operand would be shared by the batch. JAX 0.10 then counts its cotangent once
    per example in the gradients of operands that are not mapped, and JAX 0.12 refuses to differentiate.

    Args:
        outputs: pytree of arrays.
        operands: pytree of arrays.

    Returns:
        The outputs. The choice that is added here has one side only, and compiles to nothing.
    """
    never = jnp.zeros((), bool)
    for x in jax.tree.leaves(operands):
        first = x[(0,) * x.ndim]
        never |= (first != first) & False
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), outputs)


def state_dtype(*operands: Array | None) -> Any:
    """The precision of states and sums: at least float32, complex64 for complex operands.

    Example:
        >>> state_dtype(jnp.zeros(1, jnp.bfloat16))
        dtype('float32')
    """
    return jnp.result_type(jnp.float32, *(x for x in operands if x is not None))


def check_state(name: str, state: Array | None, shape: tuple[int, ...], dtype: Any, *, required: bool = False) -> Array:
    """The state; zeros if none is given and none is required.

    Raises:
        ValueError: it has another shape or another dtype, or is missing.
    """
    if state is None and not required:
        return jnp.zeros(shape, dtype)
    if state is None or state.shape != shape or state.dtype != dtype:
        raise ValueError(f"{name}: got {got(state)}, expected {jnp.dtype(dtype).name}{list(shape)}")
    return state
