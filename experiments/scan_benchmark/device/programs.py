"""What runs on the accelerator under JAX, in a process of its own: the forms of the gate, the ceilings, the programs.

`worker` calls the functions of this module by name. Arrays over time stay on the device; what goes back is small.
"""

import importlib
import re
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.scan_benchmark import baselines
from experiments.scan_benchmark.device.cases import (
    PERIOD,
    PUBLIC,
    SHIFT,
    DeviceCase,
    call,
    drawn,
    dtypes,
    function_named,
    sampled,
    sets_wanted,
)
from experiments.scan_benchmark.device.clock import DeviceTime, device_time
from experiments.scan_benchmark.device.worker import Refused, reason
from experiments.scan_benchmark.functions import Operands
from experiments.scan_benchmark.measure import BOTH
from lightnet.scan import explain

ASSOCIATIVE = "lax.associative_scan"
MOST_STATES = 3 << 30  # bytes of states that the associative scan may write out


def describe() -> dict[str, Any]:
    """The device.

    Returns:
        `platform`, `kind`, `count`, `runtime` and, where it is known, `memory` in bytes.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "runtime": " ".join(str(device.client.platform_version).split()),
        "memory": stats.get("bytes_limit"),
    }


def outputs_and_gradients(
    function: str, implementation: str, operands: Operands, cotangents: Operands, named: Mapping[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One form of a function on the device, for the gate.

    Args:
        function: name.
        implementation: what `lightnet.scan` calls it.
        operands: with the states.
        cotangents: of all outputs.
        named: arrays `segment_ids` and `mask`, or nothing.

    Returns:
        Outputs and gradients of all operands, in float32 or complex64.

    Raises:
        Refused: there is no such form for these operands on this platform.
    """
    run, states = differentiated(function, implementation), function_named(function).in_state_precision
    without = operands[: len(operands) + states]
    found = _unless_refused(partial(run, operands, cotangents, dict(named)), function, without)
    return tuple([_wide(x) for x in part] for part in found)  # type: ignore[return-value]


def ceilings(tiny: bool, seconds: float) -> dict[str, float]:
    """What this device could do at best, by the same clock.

    Args:
        tiny: whether on arrays that show only that everything runs.
        seconds: for each.

    Returns:
        `copy_bytes` read and written per second by the faster of a copy and of an addition to each element, and
        `multiply_adds` per second of a product of square bfloat16 matrices.
    """
    count, side = (1 << 12, 64) if tiny else (1 << 29, 8192)
    random = np.random.default_rng(0)
    large = [_repeated(random.standard_normal(1 << 12), count) for _ in range(2)]
    square = [jnp.asarray(random.standard_normal((side, side)), jnp.bfloat16) for _ in range(3)]
    copies = [_clocked(jax.jit(f), [(x,) for x in large], tiny, seconds).ms for f in (jnp.copy, lambda x: x + 1)]
    del large
    product = _clocked(jax.jit(jnp.matmul), [tuple(square[:2]), tuple(square[1:])], tiny, seconds).ms
    return {"copy_bytes": 4.0 * count / (1e-3 * min(copies)), "multiply_adds": float(side) ** 3 / (1e-3 * product)}


def timed(case: DeviceCase, phase: str, program: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Compile a program, run it and time it.

    Args:
        case: which.
        phase: forward, or forward and backward with a cotangent of the output alone.
        program: an implementation, or `ASSOCIATIVE`.
        tiny: whether the case is.
        seconds: of measuring.

    Returns:
        `time`, `compile_seconds`, `temporaries` in bytes, and `sample`: what is compared between programs.

    Raises:
        Refused: there is no such form, or it would need too much memory.
    """
    function = _associative(case) if program == ASSOCIATIVE else call(case.function, program)
    sets = _operand_sets(case)
    cotangent = _cotangent(case, sets[0]) if phase == BOTH else None
    before = time.perf_counter()
    attempt = partial(_compiled, function, sets[0], cotangent)
    compiled, temporaries = _unless_refused(attempt, case.function, sets[0])
    compile_seconds = time.perf_counter() - before
    arguments = sets if cotangent is None else [(x, cotangent) for x in sets]
    sample = _sample(case, jax.block_until_ready(compiled(*arguments[0])), phase)
    found = _clocked(compiled, arguments, tiny, seconds)
    _LAST[:] = [compiled, arguments]
    return {"time": found, "compile_seconds": compile_seconds, "temporaries": temporaries, "sample": sample}


def kernels_ms() -> float:
    """Milliseconds that the kernels of the program timed last take by CUPTI, without what lies between them.

    Returns:
        The median over its sets of operands. Copies that are no kernels are missing in it, and the operands were used
        directly before.

    Raises:
        Refused: it cannot be known here.
    """
    compiled, arguments = _LAST
    try:
        profiler = importlib.import_module("jax.experimental.mosaic.gpu.profiler")
        found = [profiler.measure(compiled)(*x)[1] for x in arguments]
    except Exception as error:
        raise Refused(reason(error)) from None
    if any(ms is None for ms in found):
        raise Refused("no kernel was seen")
    return float(np.median(found))


_LAST: list[Any] = []  # the program timed last and its arguments
_SETS: dict[DeviceCase, list[Operands]] = {}  # operands of the case timed last


@cache
def differentiated(function: str, implementation: str) -> Callable[..., tuple[Operands, Operands]]:
    """A form of a function with its transpose, compiled once for arrays of the same shapes and dtypes.

    Args:
        function: name.
        implementation: what `lightnet.scan` calls it.

    Returns:
        (operands, cotangents of all outputs, named arrays) -> outputs and gradients of all operands.
    """
    run = function_named(function).run

    @jax.jit
    def both(operands: Operands, cotangents: Operands, named: dict[str, Any]) -> tuple[Operands, Operands]:
        outputs, transpose = jax.vjp(lambda *x: tuple(run(*x, **named, implementation=implementation)), *operands)
        return outputs, transpose(cotangents)

    return both


def _unless_refused(attempt: Callable[[], Any], function: str, operands: Operands) -> Any:
    """Its result; what `lightnet.scan` refuses is no failure."""
    try:
        return attempt()
    except NotImplementedError as error:
        if "platform_index" not in str(error):  # else a kernel uses what the compiler lacks
            raise
    except ValueError as error:
        if not str(error).startswith("implementation:"):
            raise
    raise Refused(_why_not(function, operands))


def _why_not(function: str, operands: Operands) -> str:
    """Why there is no kernel for these operands on this platform, as far as `explain` knows it."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    told = explain(PUBLIC[function].__name__, *operands) if function in PUBLIC else ""
    found = re.search(rf" on {platform}: xla \((.*)\)", told)
    return found[1] if found else "there is no kernel for these operands on this platform"


def _compiled(function: Callable[..., Operands], operands: Operands, cotangent: Any) -> tuple[Any, int | None]:
    """A program of the operands, and of the cotangent if there is one; and the bytes of its temporaries."""

    def both(operands: Operands, cotangent: jax.Array) -> tuple[Operands, Operands]:
        output, transpose = jax.vjp(lambda *x: function(*x)[0], *operands)
        return (output,), transpose(cotangent)

    if cotangent is None:
        compiled = jax.jit(lambda *x: function(*x)).lower(*operands).compile()
    else:
        compiled = jax.jit(both).lower(operands, cotangent).compile()
    analysis = compiled.memory_analysis()
    return compiled, None if analysis is None else int(analysis.temp_size_in_bytes)


def _operand_sets(case: DeviceCase) -> list[Operands]:
    """So many that one finds nothing of its own in the cache; those of another case are let go of first."""
    if case not in _SETS:
        _SETS.clear()
        _LAST.clear()
        _SETS[case] = [_operands(case, 0)]
    sets = _SETS[case]
    wanted = sets_wanted(sum(x.nbytes for x in sets[0]))
    sets += [_operands(case, seed) for seed in range(len(sets), wanted)]
    return jax.block_until_ready(sets)


def _operands(case: DeviceCase, seed: int) -> Operands:
    batch, length = case.shape[:2]
    arrays = drawn(case, seed)
    found = [jnp.asarray(x, name) for (x, _), name in zip(arrays, dtypes(case, [x for x, _ in arrays]), strict=True)]
    whole = (_whole(x, batch, length) if over_time else x for x, (_, over_time) in zip(found, arrays, strict=True))
    return tuple(whole)


@partial(jax.jit, static_argnums=(1, 2))
def _whole(tile: jax.Array, batch: int, length: int) -> jax.Array:
    """(1, tokens, ...) -> (batch, length, ...), each row beginning elsewhere."""
    token = jnp.arange(length)[None] + SHIFT * jnp.arange(batch)[:, None]
    return tile[0][token % tile.shape[1]]


def _cotangent(case: DeviceCase, operands: Operands) -> jax.Array:
    """Of the output, from numbers of the first operand over time that has as many for each token."""
    like = jax.eval_shape(call(case.function, "xla"), *operands)[0]
    random = np.random.default_rng(1).standard_normal((1, min(case.shape[1], PERIOD), *like.shape[2:]))
    return _whole(jnp.asarray(random, like.dtype), *like.shape[:2])


def _sample(case: DeviceCase, results: Any, phase: str) -> list[np.ndarray | None]:
    """Of the output and of each gradient over time: tokens of the first row and of the last."""
    outputs, gradients = results if phase == BOTH else (results[:1], ())
    rows, tokens = sampled(*case.shape[:2])
    whole = ((x, x.shape[:2] == case.shape[:2]) for x in (*outputs, *gradients))
    return [_wide(x[rows][:, tokens]) if over_time else None for x, over_time in whole]


def _wide(x: Any) -> np.ndarray:
    x = jnp.asarray(x)
    return np.asarray(x.astype(jnp.result_type(x.dtype, jnp.float32)))


def _clocked(compiled: Callable[..., Any], arguments: list[Any], tiny: bool, seconds: float) -> DeviceTime:
    """The time of a program on operands that take turns; it has been called with the first of them, or is now."""
    plug, last = _plug(tiny), [compiled(*arguments[0])]

    def start(number: int) -> None:
        last[0] = compiled(*arguments[number % len(arguments)])

    return device_time(start, lambda: jax.block_until_ready(last[0]), plug, seconds)


@cache
def _plug(tiny: bool) -> Callable[[], None]:
    """A few milliseconds of work in the queue: always the same, and bound by memory, whose speed varies least."""
    buffer = [jnp.ones(1 << (12 if tiny else 27))]
    step = jax.jit(lambda x: 0.5 * x + 0.5, donate_argnums=0)

    def run() -> None:
        for _ in range(8):
            buffer[0] = step(buffer[0])

    run()
    return run


def _repeated(numbers: np.ndarray, count: int) -> jax.Array:
    return jnp.tile(jnp.asarray(numbers, jnp.bfloat16), count // numbers.size)


def _associative(case: DeviceCase) -> Callable[..., Operands]:
    """The function by `lax.associative_scan` in float32, with its states written out."""
    batch, length, *rest = case.shape
    matrix = case.group in ("gated", "additive")
    if 4 * np.prod([batch, length, *rest, *(rest[-1:] if matrix else ())], dtype=float) > MOST_STATES:
        raise Refused("its states would need too much memory")
    forms: dict[str, Callable[..., Operands]] = {
        "linear": baselines.linear_associative,
        "diagonal": baselines.diagonal_associative,
        "selective": baselines.selective_associative,
        "gated": baselines.gated_associative,
        "additive": _additive_associative,
    }
    state = (batch, *rest, rest[-1]) if matrix else (batch, *rest)

    def run(*operands: Any) -> Operands:
        wide = [x.astype(jnp.result_type(x.dtype, jnp.float32)) for x in operands]
        kind = jnp.result_type(*wide)
        outputs = forms[case.group](*wide, jnp.zeros(state, kind))
        like = jax.eval_shape(PUBLIC[case.function], *operands)
        return outputs[0].astype(jax.tree.leaves(like)[0].dtype), *outputs[1:]

    return run


def _additive_associative(q: jax.Array, logits: jax.Array, v: jax.Array, state: jax.Array) -> Operands:
    """`additive_recurrence`: the normalisers by one scan, the states by another."""
    z = jax.lax.associative_scan(jnp.logaddexp, logits, axis=1)
    before = jnp.concatenate([z[:, :1], z[:, :-1]], axis=1)  # of the first token it multiplies a state of 0
    return baselines.gated_associative(q, jnp.exp(logits - z), v, before - z, state)
