"""A stand-in for Hopper GPUs: the body of a kernel, run program by program and step by step on a CPU.

For kernels whose pipelines write: JAX's own interpreter (`interpreted_gpu`), which sees more, refuses these. What a
kernel computes is checked, its indices, blocks and masks among it, and that it waits for as many copies as it starts;
threads, layouts and the order of asynchronous copies are not. As on the device, what is read outside of an array is 0,
and what is written there is lost; memory is not a number until something is written to it. Everything runs as it is
called: not under `jax.jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


class Ref:
    """A window into an array: per axis of the array an index or a range of them, which may lie outside."""

    def __init__(self, array: np.ndarray, window: list[Any] | None = None) -> None:
        self.array = array
        self.window = [slice(0, n) for n in array.shape] if window is None else window
        self.kept = [i for i, x in enumerate(self.window) if isinstance(x, slice)]
        self.shape = tuple(self.window[i].stop - self.window[i].start for i in self.kept)
        self.dtype = array.dtype
        self.at = _At(self)

    def part(self, index: Any) -> "Ref":
        index = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in index:
            where = index.index(Ellipsis)
            index[where : where + 1] = [slice(None)] * (len(self.shape) - len(index) + 1)
        index += [slice(None)] * (len(self.shape) - len(index))
        axes = iter(index)
        return Ref(self.array, [_within(x, next(axes)) if isinstance(x, slice) else x for x in self.window])

    def transpose(self, axes: tuple[int, ...]) -> "Ref":
        order = [i for i in range(len(self.window)) if i not in self.kept] + [self.kept[i] for i in axes]
        return Ref(self.array.transpose(order), [self.window[i] for i in order])

    def inside(self) -> tuple[list[Any], list[Any], list[int]]:
        """Where in the array what lies in it is, where in the window, and how long the axes of the window are."""
        ranges = [x if isinstance(x, slice) else slice(x, x + 1) for x in self.window]
        clipped = [
            slice(min(max(x.start, 0), n), min(max(x.stop, 0), n))
            for x, n in zip(ranges, self.array.shape, strict=True)
        ]
        moved = [slice(x.start - y.start, x.stop - y.start) for x, y in zip(clipped, ranges, strict=True)]
        return clipped, moved, [x.stop - x.start for x in ranges]

    def read(self) -> np.ndarray:
        """With zeros outside of the array."""
        there, here, sizes = self.inside()
        values = np.zeros(sizes, self.dtype)
        values[tuple(here)] = self.array[tuple(there)]
        return values.reshape(self.shape)

    def write(self, values: Any) -> None:
        """Nothing outside of the array."""
        there, here, sizes = self.inside()
        self.array[tuple(there)] = np.broadcast_to(np.asarray(values), self.shape).reshape(sizes)[tuple(here)]

    def __getitem__(self, index: Any) -> jax.Array:
        return jnp.asarray(self.part(index).read())

    def __setitem__(self, index: Any, values: Any) -> None:
        self.part(index).write(values)


class _At:
    def __init__(self, ref: Ref) -> None:
        self.ref = ref

    def __getitem__(self, index: Any) -> Ref:
        return self.ref.part(index)


def _within(window: slice, index: Any) -> Any:
    if isinstance(index, slice):
        start, stop, step = index.indices(window.stop - window.start)
        assert step == 1
        return slice(window.start + start, window.start + stop)
    if isinstance(index, pl.Slice):
        return slice(window.start + int(index.start), window.start + int(index.start) + index.size)
    return window.start + int(index)


class Barrier:
    """Counts what arrives."""

    def __init__(self, num_arrivals: int = 1) -> None:
        self.expected, self.arrived = num_arrivals, 0


class Sums:
    """Of a matrix product, which begin with 0 or others."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = np.zeros(shape, dtype)

    @staticmethod
    def init(x: Any) -> Ref:
        return Ref(np.array(x))


def instead_of_the_device(monkeypatch: Any, *modules: Any) -> None:
    """Run kernels here.

    Args:
        monkeypatch: of pytest.
        modules: whose `plgpu`, `pl` and `lax` the kernels use.
    """
    place: dict[str, int] = {}
    instead = {
        "plgpu": _Like(plgpu, **_mosaic(place)),
        "pl": _Like(pl, run_scoped=_run_scoped, run_state=_run_state, when=_when),
        "lax": _Like(lax, axis_index=place.__getitem__, fori_loop=_loop),
    }
    for module in modules:
        for name, fake in instead.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fake)


class _Like:
    """A module with some functions exchanged."""

    def __init__(self, module: Any, **others: Any) -> None:
        self.__dict__.update(others, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _mosaic(place: dict[str, int]) -> dict[str, Any]:
    def kernel(body: Any, *, out_type: Any, grid: Any, grid_names: Any, scratch_types: Any = (), **_: Any) -> Any:
        def run(*operands: Any) -> Any:
            given, outputs = [Ref(np.asarray(x)) for x in operands], list(map(_empty, out_type))
            for index in np.ndindex(*grid):
                place.update(zip(grid_names, index, strict=True))
                scratch = jax.tree.map(_made, list(scratch_types), is_leaf=_is_memory)
                body(*given, *outputs, *scratch)
                assert all(x.arrived == 0 for x in jax.tree.leaves(scratch) if isinstance(x, Barrier))
            return [jnp.asarray(x.array) for x in outputs]

        return run

    return {
        "kernel": kernel,
        "emit_pipeline": _pipeline,
        "SMEM": lambda shape, dtype, transforms=(): jax.ShapeDtypeStruct(shape, dtype),
        "ACC": Sums,
        "Barrier": Barrier,
        "wgmma": _multiply_and_add,
        "load": lambda ref, *_, **__: ref[...],
        "layout_cast": lambda x, layout: x,
        "broadcasted_iota": lambda dtype, shape, axis, layout=None: lax.broadcasted_iota(dtype, shape, axis),
        "copy_gmem_to_smem": _copy,
        "copy_smem_to_gmem": lambda source, target: _copy(source, target, Barrier()),
        "barrier_wait": _wait,
        "commit_smem": lambda: None,
        "wait_smem_to_gmem": lambda count, **_: None,
    }


def _is_memory(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _empty(x: Any) -> Ref:
    return Ref(np.full(x.shape, np.nan if jnp.issubdtype(x.dtype, jnp.floating) else -1, x.dtype))


def _made(x: Any) -> Any:
    """What a kernel asks for."""
    if isinstance(x, Barrier):
        return Barrier(x.expected)
    return Ref(x.array) if isinstance(x, Sums) else _empty(x)


def _pipeline(
    body: Any, *, grid: Any, max_concurrent_steps: int, in_specs: Any = (), out_specs: Any = (), init_carry: Any = None
) -> Any:
    assert max_concurrent_steps > 1

    def window(spec: Any, ref: Ref, index: tuple[int, ...]) -> Ref:
        at = zip(spec.index_map(*index), spec.block_shape, strict=True)
        return ref.part(tuple(i if n is None else pl.ds(i * n, n) for i, n in at))

    def run(*refs: Ref) -> Any:
        carry = init_carry
        for index in np.ndindex(*grid):
            windows = [window(s, r, index) for s, r in zip([*in_specs, *out_specs], refs, strict=True)]
            given = [Ref(x.read()) for x in windows[: len(in_specs)]]
            made = [_empty(x) for x in windows[len(in_specs) :]]
            carry = body(index, *given, *made, *([] if init_carry is None else [carry]))
            for x, y in zip(windows[len(in_specs) :], made, strict=True):
                x.write(y.array)
        return carry

    return run


def _multiply_and_add(sums: Ref, x: Any, y: Any) -> None:
    x, y = (np.asarray(a.read() if isinstance(a, Ref) else a, np.float32) for a in (x, y))
    sums.array += x @ y


def _run_scoped(function: Any, *scratch: Any) -> Any:
    return function(*map(_made, scratch))


def _run_state(function: Any) -> Any:
    def run(ref: Ref) -> jax.Array:
        function(ref)
        return jnp.asarray(ref.array)

    return run


def _when(condition: Any) -> Any:
    return lambda function: function() if condition else None


def _loop(start: Any, stop: Any, step: Any, carry: Any, **_: Any) -> Any:
    for i in range(int(start), int(stop)):
        carry = step(i, carry)
    return carry


def _copy(source: Ref, target: Ref, barrier: Barrier) -> None:
    target.write(source.read())
    barrier.arrived += 1


def _wait(barrier: Barrier) -> None:
    assert barrier.arrived == barrier.expected
    barrier.arrived = 0
