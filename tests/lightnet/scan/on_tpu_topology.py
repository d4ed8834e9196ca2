"""What `test_tpu_compilation` runs in a process of its own: programs for TPUs, compiled on a machine without any."""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from tests.lightnet.scan.calls import CALLS, cotangents, operands, placed_on

AXES = ("data", "tensor", "sequence")


def compile_forward_and_backward(name: str, shape: tuple[int, ...]) -> None:
    """For a 2x2 slice of v5e chips, with arguments that lie split on it."""
    chips = topologies.get_topology_desc("v5e:2x2", platform="tpu")
    assert math.prod(shape) == len(chips.devices)
    mesh, call = topologies.make_mesh(chips, shape, AXES), CALLS[name]

    def whole(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def both(args: tuple, out: Any) -> Any:
        value, pull = jax.vjp(call, *args)
        return value, pull(out)

    args = operands(name, 4, 64, seed=0)
    given = tuple(placed_on(mesh, name, args))
    out = jax.tree.map(whole, cotangents(call, args, {}))
    with jax.set_mesh(mesh):
        compiled = jax.jit(both).trace(given, out).lower(lowering_platforms=("tpu",)).compile()
    # A state that enters, or a sum over all tokens, comes from the other chips.
    moves = any(kind in compiled.as_text() for kind in ("all-gather", "all-reduce"))
    assert moves or shape[2] == 1, f"{name} on {shape}: nothing is exchanged"


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    assert jnp.zeros(()).devices().pop().platform == "cpu"
    for name in sys.argv[1:]:
        for shape in ((2, 2, 1), (2, 1, 2), (1, 1, 4)):
            compile_forward_and_backward(name, shape)
    print("ok")
