"""What the compiler of this machine plans for training steps on virtual devices, beside `memory`.

In a process of its own, see `experiments.virtual_devices`. Nothing is executed, and so nothing of that memory is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.sequence_parallelism.memory import Shape, bert, loss
from experiments.virtual_devices import on_virtual_devices


@dataclass(frozen=True)
class Point:
    """One step to compile.

    Attributes:
        method: see `memory.step_of`.
        shape: of the model.
        batch: examples.
        length: tokens of each.
        tensor: devices along that axis.
        sequence: devices along that one.
    """

    method: str
    shape: Shape
    batch: int
    length: int
    tensor: int = 1
    sequence: int = 1


def planned(points: Sequence[Point]) -> list[float]:
    """Bytes that a device needs at each point, by the compiler."""
    devices = max(point.tensor * point.sequence for point in points)
    return on_virtual_devices(devices, _all_needed, tuple(points))


def _all_needed(points: Sequence[Point]) -> list[float]:
    return [_needed(point) for point in points]


def _needed(point: Point) -> float:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from experiments.training.config import MeshConfig
    from experiments.training.mesh import make_mesh, state_shardings

    model = bert(point.method, point.shape, point.length)
    devices = jax.devices()[: point.tensor * point.sequence]
    mesh = make_mesh(MeshConfig(data=1, tensor=point.tensor, sequence=point.sequence), devices)
    adam = optax.adam(1e-3)
    rows = jax.ShapeDtypeStruct((point.batch, point.length), jnp.int32)

    def init(key: Any) -> Any:
        variables = model.init(key, jnp.zeros(rows.shape, jnp.int32))
        return variables, adam.init(variables)

    def step(state: Any, tokens: Any) -> Any:
        variables, averages = state
        gradient = jax.grad(partial(loss, model))(variables, tokens=tokens)
        updates, averages = adam.update(gradient, averages)
        return optax.apply_updates(variables, updates), averages

    def placed(leaf: Any, sharding: Any) -> Any:
        # Linformer's projections are split as the tokens that they project.
        if leaf.shape == (point.length, point.shape.rank):
            sharding = NamedSharding(mesh, PartitionSpec("sequence"))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        boxed = jax.eval_shape(init, jax.random.key(0))
        state = jax.tree.map(placed, nn.meta.unbox(boxed), state_shardings(boxed, mesh))
        kept = jax.tree.map(lambda leaf: leaf.sharding, state)
        compiled: Any = jax.jit(step, donate_argnums=0, out_shardings=kept).lower(state, rows).compile()
    found = compiled.memory_analysis()
    sizes = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return float(sizes + found.temp_size_in_bytes)
