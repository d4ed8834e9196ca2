"""The one dispatcher: from a recurrence and the arguments of its public function to an implementation, on any mesh."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from lightnet.scan.placement import Placement, placement
from lightnet.scan.recurrence import Recurrence, Tokens
from lightnet.scan.sharded import sharded

IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_interpret")
PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass
class Asked:
    """What `explain` wants to know of a call: the operands of one device, and the split over the mesh."""

    operands: Any = None
    placed: Placement | None = None

    @contextmanager
    def during(self) -> Iterator[None]:
        """Note the calls in this context; the last one stays."""
        token = _ASKED.set(self)
        try:
            yield
        finally:
            _ASKED.reset(token)


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


def dispatch(
    recurrence: Recurrence,
    implementation: str | None,
    operands: Any,
    initial_state: Any,
    tokens: Tokens,
    **options: Any,
) -> Any:
    """Call an implementation of a recurrence, on each device for its part of the arrays where a mesh is set.

    Args:
        recurrence: which.
        implementation: None takes the kernel of the platform that the function is lowered for where there is one that
            can run these operands and is known to be fast, else "xla"; a name is honoured or refused. "reference" is
            never split by us.
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

    def run(operands: Any, initial_state: Any, tokens: Tokens) -> Any:
        return _run(recurrence, implementation, operands, initial_state, tokens, **options)

    placed = None if implementation == "reference" else placement(recurrence.axes, operands)
    if (asked := _ASKED.get()) is not None:
        asked.placed = placed
    if placed is None:
        return run(operands, initial_state, tokens)
    if recurrence.split is not None and placed.parts["L"] > 1:
        _kernels(recurrence, implementation, operands)
    return sharded(recurrence, run, placed, operands, initial_state, tokens, **options)


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
        if reason is None and not recurrence.kernels[platform].timed:
            reason = "the kernel, which implementation='pallas' runs, has not been timed on this platform"
        found[platform] = ("xla", reason) if reason else ("pallas", "a kernel for this platform")
    return found


def _run(
    recurrence: Recurrence,
    implementation: str | None,
    operands: Any,
    initial_state: Any,
    tokens: Tokens,
    **options: Any,
) -> Any:
    """Call the implementation that a name stands for, with the operands of one device."""
    if (asked := _ASKED.get()) is not None:
        asked.operands = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operands)
    if implementation in ("reference", "xla"):
        return getattr(recurrence, implementation)(operands, initial_state, tokens, **options)
    able = _kernels(recurrence, implementation, operands)
    if implementation is None and not able:
        return recurrence.xla(operands, initial_state, tokens, **options)
    if implementation == "pallas_interpret":
        return able["tpu"](operands, initial_state, tokens, interpret=True, **options)
    xla = partial(recurrence.xla, **options)
    branches = {p: _in_dtypes_of(xla, partial(k, **options)) for p, k in able.items()}
    default = xla if implementation is None else None
    try:
        return jax.lax.platform_dependent(operands, initial_state, tokens, default=default, **branches)
    except NotImplementedError as error:  # under `jit` it is raised where the program is lowered
        raise ValueError(
            f"implementation: got 'pallas', expected another where {recurrence.name} has no kernel: "
            f"it has them for {', '.join(able)}"
        ) from error


def _in_dtypes_of(xla: Callable, kernel: Callable) -> Callable:
    """The kernel with outputs in the dtypes of the other branches of one program."""

    def run(*arguments: Any) -> Any:
        shapes = jax.eval_shape(xla, *arguments)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), kernel(*arguments), shapes)

    return run


def _kernels(recurrence: Recurrence, implementation: str | None, operands: Any) -> dict[str, Callable]:
    """The kernels that can run these operands, by platform; an error if a kernel is asked for and there is none."""
    able = {p: kernel for p, kernel in recurrence.kernels.items() if _why_not(recurrence, p, operands) is None}
    if implementation == "pallas_interpret":
        able = {p: kernel for p, kernel in able.items() if p == "tpu"}
    if implementation is None:
        able = {p: kernel for p, kernel in able.items() if kernel.timed}
    if implementation in ("pallas", "pallas_interpret") and not able:
        reasons = "; ".join(f"{p}: {_why_not(recurrence, p, operands)}" for p in PLATFORMS)
        raise ValueError(
            f"implementation: {implementation!r} cannot run {recurrence.name} here ({reasons}); "
            "expected None, 'reference' or 'xla'"
        )
    return {p: kernel.run for p, kernel in able.items()}


def _why_not(recurrence: Recurrence, platform: str, operands: Any) -> str | None:
    if platform not in recurrence.kernels:
        return "there is no kernel for this platform"
    if jax.dtypes.canonicalize_dtype("float64").itemsize == 8:
        return "under jax_enable_x64 the kernel's indices would have 64 bits, which it cannot have"
    return None if operands is None else recurrence.kernels[platform].refusal(operands)
