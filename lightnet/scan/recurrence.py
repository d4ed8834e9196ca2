"""The record that describes one recurrence, and the one dispatcher for all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lightnet.scan.checks import got
from lightnet.segments import run_index
from lightnet.typing import Array

IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_interpret")
PLATFORMS = ("cpu", "cuda", "tpu")


class Tokens(NamedTuple):
    """What segments and masks mean for a recurrence; None where all tokens are alike.

    Attributes:
        keep: (B, L), false at a token that begins a new run: the state before it does not count.
        real: (B, L), false at a masked token: the state passes it unchanged.
    """

    keep: Array | None
    real: Array | None


@dataclass(frozen=True)
class Recurrence:
    """One recurrence and its implementations.

    All implementations are called as `f(operands, initial_state, tokens, **options) -> (output, final_state)` with the
    same pytrees and the initial state always given. What stands at masked tokens is finite only where the public
    function has cleaned it (`only_real`); the others' implementations select as they go, which copies nothing.

    Attributes:
        name: of the public function.
        reference: sequential, one `lax.scan`: the definition.
        xla: fast on any platform.
        kernels: platform ("tpu", "cuda") -> Pallas kernel.
        refusal: (platform, operands) -> why its kernel cannot run these, or None.
        summary: (operands, tokens) -> what a stretch of the sequence does to the state that enters it.
        combine: (earlier, later) -> summary of both stretches; associative.
        enter: (summary, state) -> the state behind the stretch.
    """

    name: str
    reference: Callable
    xla: Callable
    kernels: Mapping[str, Callable] = field(default_factory=lambda: MappingProxyType({}))
    refusal: Callable[[str, Any], str | None] = lambda platform, operands: None
    summary: Callable | None = None
    combine: Callable | None = None
    enter: Callable | None = None


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
    if segment_ids is None:
        return Tokens(None, mask)
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


def dispatch(
    recurrence: Recurrence,
    implementation: str | None,
    operands: Any,
    initial_state: Any,
    tokens: Tokens,
    **options: Any,
) -> Any:
    """Call an implementation of a recurrence.

    Args:
        recurrence: which.
        implementation: None takes the kernel of the platform that the function is lowered for where there is one that
            can run these operands, else "xla"; a name is honoured or refused.
        operands: pytree of arrays.
        initial_state: pytree of arrays.
        tokens: from `tokens_of`.
        **options: static arguments of the recurrence.

    Returns:
        What the implementation returns.

    Raises:
        ValueError: an unknown name, or one that cannot be honoured, with the reason.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation: got {implementation!r}, expected None or one of {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation in ("reference", "xla"):
        return getattr(recurrence, implementation)(operands, initial_state, tokens, **options)
    able = {p: k for p, k in recurrence.kernels.items() if recurrence.refusal(p, operands) is None}
    if implementation is not None and not able:
        reasons = "; ".join(f"{p}: {_why_not(recurrence, p, operands)}" for p in PLATFORMS)
        raise ValueError(
            f"implementation: {implementation!r} cannot run {recurrence.name} here ({reasons}); "
            "expected None, 'reference' or 'xla'"
        )
    if implementation is None and not able:
        return recurrence.xla(operands, initial_state, tokens, **options)
    if implementation == "pallas_interpret":
        return able["tpu"](operands, initial_state, tokens, interpret=True, **options)
    other = recurrence.xla if implementation is None else None
    branches = {p: (lambda *a, k=k: k(*a, **options)) for p, k in able.items()}
    default = None if other is None else (lambda *a: other(*a, **options))
    return jax.lax.platform_dependent(operands, initial_state, tokens, default=default, **branches)


def choices(recurrence: Recurrence, operands: Any = None) -> dict[str, tuple[str, str]]:
    """For each platform, what `implementation=None` runs there and why.

    Args:
        recurrence: which.
        operands: what it would be called with; None for the general answer.

    Returns:
        platform -> (implementation, reason).
    """
    found = {}
    for platform in PLATFORMS:
        reason = _why_not(recurrence, platform, operands)
        found[platform] = ("xla", reason) if reason else ("pallas", "a kernel for this platform")
    return found


def _why_not(recurrence: Recurrence, platform: str, operands: Any) -> str | None:
    if platform not in recurrence.kernels:
        return "there is no kernel for this platform"
    return None if operands is None else recurrence.refusal(platform, operands)


def state_dtype(*operands: Array | None) -> Any:
    """The precision of states and sums: at least float32, complex64 for complex operands.

    Example:
        >>> state_dtype(jnp.zeros(1, jnp.bfloat16))
        dtype('float32')
    """
    return jnp.result_type(jnp.float32, *(x for x in operands if x is not None))


def check_state(name: str, state: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """The initial state, zeros if none is given.

    Raises:
        ValueError: it has another shape or another dtype.
    """
    if state is None:
        return jnp.zeros(shape, dtype)
    if state.shape != shape or state.dtype != dtype:
        raise ValueError(f"{name}: got {got(state)}, expected {jnp.dtype(dtype).name}{list(shape)}")
    return state
