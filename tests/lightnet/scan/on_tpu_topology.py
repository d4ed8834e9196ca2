"""What `test_tpu_compilation` runs in a process of its own: programs for TPUs, compiled on a machine without any."""

import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.lightnet.scan import calls
from tests.lightnet.scan.calls import CALLS, cotangents, operands, placed_on

AXES = ("data", "tensor", "sequence")


def slice_of(shape: tuple[int, ...], axes: tuple[str, ...] = AXES) -> Mesh:
    """A 2x2 slice of v5e chips."""
    chips = topologies.get_topology_desc("v5e:2x2", platform="tpu")
    assert math.prod(shape) == len(chips.devices)
    return topologies.make_mesh(chips, shape, axes)


def whole(mesh: Mesh, x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def compiled(mesh: Mesh, call: Callable, args: tuple, out: Any) -> str:
    """The program of value and gradients."""

    def both(args: tuple, out: Any) -> Any:
        value, pull = jax.vjp(call, *args)
        return value, pull(out)

    with jax.set_mesh(mesh):
        return jax.jit(both).trace(args, out).lower(lowering_platforms=("tpu",)).compile().as_text()


def split(name: str) -> None:
    """With arguments that lie split as the function splits them."""
    for shape in ((2, 2, 1), (2, 1, 2), (1, 1, 4)):
        mesh, args = slice_of(shape), operands(name, 4, 64, seed=0)
        out = jax.tree.map(lambda x, mesh=mesh: whole(mesh, x), cotangents(CALLS[name], args, {}))
        text = compiled(mesh, CALLS[name], tuple(placed_on(mesh, name, args)), out)
        # A state that enters, or a sum over all tokens, comes from the other chips.
        moves = any(kind in text for kind in ("all-gather", "all-reduce"))
        assert moves or shape[2] == 1, f"{name} on {shape}: nothing is exchanged"


def left_over(name: str) -> None:
    """Kernels where axes of the mesh are left over: three channels or heads for two chips, and unknown names."""
    for axes in (("data", "tensor"), ("batch", "model")):
        for dtype in (jnp.float32, jnp.bfloat16):
            compile_left_over(name, axes, dtype)


def left_over_in_half(name: str) -> None:
    """The same once, for the sake of time."""
    compile_left_over(name, ("data", "tensor"), jnp.bfloat16)


def compile_left_over(name: str, axes: tuple[str, str], dtype: Any) -> None:
    calls.D = calls.H = calls.G = 3
    args = operands(name, 4, 64, seed=0)
    states = {"additive_recurrence": 3, "additive_global": 0}.get(name, 1)
    of_tokens = [x.astype(dtype) if x.dtype == jnp.float32 else x for x in args[: len(args) - states]]
    given, mesh = (*of_tokens, *args[len(args) - states :]), slice_of((2, 2), axes)
    rows = NamedSharding(mesh, PartitionSpec(axes[0]))
    lie = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) if len(x) == 4 else x for x in given)
    out = jax.tree.map(lambda x: whole(mesh, x), jax.eval_shape(CALLS[name], *given))
    kernels = compiled(mesh, CALLS[name], lie, out).count('custom_call_target="tpu_custom_call"')
    assert kernels == 2, f"{name} on {axes}: {kernels} kernels forward and backward"


def inside_another_shard_map(name: str) -> None:
    """Whose axes are taken; of the others, one has two chips or one."""
    args = operands(name, 4, 64, seed=0)
    specs = tuple(PartitionSpec("data") if len(x) == 4 else PartitionSpec() for x in args)
    out = jax.eval_shape(CALLS[name], *args)
    for shape in ((2, 2), (4, 1)):
        mesh = slice_of(shape, ("data", "other"))
        call = jax.shard_map(
            CALLS[name],
            mesh=mesh,
            in_specs=specs,
            out_specs=jax.tree.map(lambda _: PartitionSpec("data"), out),
            axis_names={"data"},
            check_vma=False,
        )
        lie = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in zip(args, specs, strict=True)
        ]
        text = compiled(mesh, call, tuple(lie), jax.tree.map(lambda x, mesh=mesh: whole(mesh, x), out))
        assert "tpu_custom_call" in text


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    assert jnp.zeros(()).devices().pop().platform == "cpu"
    check, *names = sys.argv[1:]
    for name in names:
        globals()[check](name)
    print("ok")
