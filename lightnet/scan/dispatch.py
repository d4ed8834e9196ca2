"""The one dispatcher: from a recurrence and the arguments of its public function to an implementation, on any mesh."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax

from lightnet.scan.placement import Placement, of_one_device, placement
from lightnet.scan.recurrence import Recurrence, Tokens
from lightnet.scan.sharded import sharded

IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_interpret")
PLATFORMS = ("cpu", "cuda", "tpu")


class Call(NamedTuple):
    """What of a call decides which implementation can run it.

    Attributes:
        operands: pytree of what has a shape and a dtype, those of one device.
        options: static arguments of the recurrence.
        placed: the split over the mesh, or None where there is none.
    """

    operands: Any
    options: dict[str, Any]
    placed: Placement | None = None


_CALLS: ContextVar[list[Call] | None] = ContextVar("calls", default=None)
# JAX's own kind of context: what was traced in another one is not taken from its caches.
_ONLY_PLATFORM = jax.make_user_context(default_value=None)


@contextmanager
def calls() -> Iterator[list[Call]]:
    """All that are dispatched in this context, in their order."""
    found: list[Call] = []
    token = _CALLS.set(found)
    try:
        yield found
    finally:
        _CALLS.reset(token)


def lowered_for(platform: str) -> AbstractContextManager[None]:
    """Within, `implementation=None` traces what runs on one platform alone, which takes a part of the time.

    Args:
        platform: one of PLATFORMS. What is traced for "cpu", which has no kernels, runs on the others too.

    Returns:
        The context.

    Raises:
        ValueError: there is no such platform.

    Example:
        >>> lowered_for("gpu")
        Traceback (most recent call last):
        ...
        ValueError: platform: got 'gpu', expected one of cpu, cuda, tpu
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform: got {platform!r}, expected one of {', '.join(PLATFORMS)}")
    return _ONLY_PLATFORM(platform)


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
    given = operands, initial_state, tokens
    if implementation == "reference":
        return recurrence.reference(*given, **options)
    letters = recurrence.axes.operands
    # The compiler can split XLA's form over what is left of the mesh, but no kernel.
    some, every = (placement(recurrence.axes, operands, everywhere=flag) for flag in (False, True))
    call = Call(of_one_device(letters, operands, every), options, every)
    able = {} if implementation == "xla" else _kernels(recurrence, implementation, call)
    if (noted := _CALLS.get()) is not None:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), call.operands)
        noted.append(Call(shapes, options, every if able else some))
    xla = partial(recurrence.xla, **options)
    default = _split(recurrence, xla, some, options)
    if not able:
        return default(*given)
    if implementation == "pallas_interpret":
        return _split(recurrence, partial(able["tpu"], interpret=True, **options), every, options)(*given)
    branches = {
        platform: _split(recurrence, _in_dtypes_of(xla, partial(kernel, **options)), every, options)
        for platform, kernel in able.items()
    }
    if implementation is None:
        return by_platform(*given, default=default, **branches)
    try:
        return jax.lax.platform_dependent(*given, default=None, **branches)
    except NotImplementedError as error:  # under `jit` it is raised where the program is lowered
        raise ValueError(
            f"implementation: got 'pallas', expected another where {recurrence.name} has no kernel: "
            f"it has them for {', '.join(able)}"
        ) from error


def by_platform(*arguments: Any, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
    """The function of the platform that is lowered for, of the arguments; within `lowered_for`, of that platform.

    Args:
        *arguments: pytrees of arrays.
        default: where there is no branch.
        **branches: by names of PLATFORMS; their results are alike in shape and dtype.

    Returns:
        What the function returns.

    Example:
        >>> import jax.numpy as jnp
        >>> with lowered_for("tpu"):
        ...     by_platform(jnp.ones(1), default=jnp.negative, tpu=jnp.exp2).tolist()
        [2.0]
    """
    if _ONLY_PLATFORM.value is not None:
        return branches.get(_ONLY_PLATFORM.value, default)(*arguments)
    return jax.lax.platform_dependent(*arguments, default=default, **branches)


def choices(recurrence: Recurrence, call: Call | None = None) -> dict[str, tuple[str, str]]:
    """For each platform, what `implementation=None` runs there and why.

    Args:
        recurrence: which.
        call: None for the general answer.

    Returns:
        platform -> (implementation, reason).
    """
    found = {}
    for platform in PLATFORMS:
        reason = _why_not(recurrence, platform, call)
        if reason is None and not recurrence.kernels[platform].picked:
            reason = "the kernel, which implementation='pallas' runs, has not been timed on this platform"
        found[platform] = ("xla", reason) if reason else ("pallas", "a kernel for this platform")
    return found


def _split(recurrence: Recurrence, run: Callable, placed: Placement | None, options: dict[str, Any]) -> Callable:
    """The same for whole arrays, each device with its part of them."""
    return run if placed is None else partial(sharded, recurrence, run, placed, **options)


def _in_dtypes_of(xla: Callable, kernel: Callable) -> Callable:
    """The kernel with outputs in the dtypes of the other branches of one program."""

    def run(*arguments: Any) -> Any:
        shapes = jax.eval_shape(xla, *arguments)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), kernel(*arguments), shapes)

    return run


def _kernels(recurrence: Recurrence, implementation: str | None, call: Call) -> dict[str, Callable]:
    """The kernels that can run this, by platform; an error if a kernel is asked for and there is none."""
    able = {p: kernel for p, kernel in recurrence.kernels.items() if _why_not(recurrence, p, call) is None}
    if implementation == "pallas_interpret":
        able = {p: kernel for p, kernel in able.items() if p == "tpu"}
    if implementation is None:
        able = {p: kernel for p, kernel in able.items() if kernel.picked}
    if implementation in ("pallas", "pallas_interpret") and not able:
        reasons = "; ".join(f"{p}: {_why_not(recurrence, p, call)}" for p in PLATFORMS)
        raise ValueError(
            f"implementation: {implementation!r} cannot run {recurrence.name} here ({reasons}); "
            "expected None, 'reference' or 'xla'"
        )
    return {p: kernel.run for p, kernel in able.items()}


def _why_not(recurrence: Recurrence, platform: str, call: Call | None) -> str | None:
    if platform not in recurrence.kernels:
        return "there is no kernel for this platform"
    if jax.dtypes.canonicalize_dtype("float64").itemsize == 8:
        return "under jax_enable_x64 the kernel's indices would have 64 bits, which it cannot have"
    if call is None:
        return None
    if recurrence.split is not None and call.placed is not None and call.placed.parts["L"] > 1:
        return "the kernel is for whole sequences, and the mesh splits them"
    return recurrence.kernels[platform].refusal(call.operands, **call.options)
