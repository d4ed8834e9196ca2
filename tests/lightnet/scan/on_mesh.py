"""What `test_sharded` runs in a process of its own: eight virtual devices, and every function of the scan core."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lightnet import scan
from lightnet.scan import sharded
from lightnet.scan.linear import LINEAR
from lightnet.scan.placement import placement
from lightnet.scan.recurrence import tokens_of
from tests.lightnet.scan.calls import CALLS, cotangents, letters_of, operands

AXES = ("data", "tensor", "sequence")
# Number of tokens, whether packed and padded, and meshes.
CASES = (
    (48, True, [(1, 1, 2), (1, 1, 3)]),
    (37, True, [(1, 1, 8)]),
    (5, False, [(1, 4, 2)]),
)
LONG = (1024, False, [(1, 1, 5), (2, 2, 2)])


def mesh_of(shape: tuple[int, ...], kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    return jax.make_mesh(
        shape, AXES, axis_types=(kind,) * len(AXES), devices=jax.devices()[: int(np.prod(shape, dtype=int))]
    )


def packed_and_padded(batch: int, length: int, seed: int) -> dict[str, jax.Array]:
    """Runs of any length, some over several devices; masked tokens in between and at an end of each row."""
    random = np.random.default_rng(seed)
    ids = np.cumsum(random.random((batch, length)) < 4 / length, axis=1) % 3
    mask = random.random((batch, length)) < 0.8
    mask[0, : length // 5], mask[1, -(length // 3) :] = False, False
    return {"segment_ids": jnp.asarray(ids), "mask": jnp.asarray(mask)}


def value_and_gradients(call: Callable, given: dict[str, Any], out: Any) -> Callable:
    def both(*args: Any) -> Any:
        value, pull = jax.vjp(lambda *args: call(*args, **given), *args)
        return value, pull(out)

    return jax.jit(both)


def equal_to_one_device(name: str) -> None:
    """Value and all gradients, for lengths that divide and not, with and without segments and mask."""
    for length, packed, shapes in (*CASES, LONG) if name in ("linear_scan", "selective_scan") else CASES:
        given = packed_and_padded(4, length, seed=length) if packed else {}
        call, args = (
            poisoned_when_masked(CALLS[name]) if packed else CALLS[name],
            operands(name, 4, length, seed=length),
        )
        out = cotangents(call, args, given)
        want = value_and_gradients(call, given, out)(*args)
        for shape in shapes:
            with jax.set_mesh(mesh_of(shape)):
                have = value_and_gradients(call, given, out)(*args)
            closeness(f"{name}, {length} tokens, {list(given)}, mesh {shape}", have, want)


def poisoned_when_masked(call: Callable) -> Callable:
    """The same call with NaN at masked tokens of everything that has them; what is shared by rows is left alone."""

    def poisoned(*args: Any, mask: jax.Array, **given: Any) -> Any:
        def poison(x: jax.Array) -> jax.Array:
            if x.shape[:2] != mask.shape:
                return x
            return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, jnp.nan)

        return call(*jax.tree.map(poison, args), mask=mask, **given)

    return poisoned


def closeness(what: str, have: Any, want: Any) -> None:
    for i, (x, y) in enumerate(zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True)):
        x, y = np.asarray(x), np.asarray(y)
        error = np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30)
        assert error < 2e-6, f"{what}: array {i} is off by {error:.1e}"


def on_explicit_axes(name: str) -> None:
    """Arrays whose types say how they are split, otherwise than the function splits them."""
    args = operands(name, 4, 32, seed=0)
    want = CALLS[name](*args)
    with jax.set_mesh(mesh_of((2, 2, 2), AxisType.Explicit)):
        args = jax.tree.map(lambda x: jax.device_put(x, PartitionSpec()), args)
        closeness(f"{name} on explicit axes", jax.jit(CALLS[name])(*args), want)


def inside_another_shard_map(name: str) -> None:
    """The axis of the batch is taken already; that of the sequence is still there."""
    args = operands(name, 4, 32, seed=0)
    want = CALLS[name](*args)
    specs = jax.tree.map(lambda x: PartitionSpec("data") if x.shape[0] == 4 and x.ndim > 1 else PartitionSpec(), args)
    out = jax.tree.map(lambda _: PartitionSpec("data"), want)
    with jax.set_mesh(mesh_of((2, 1, 4))):
        split = jax.shard_map(CALLS[name], in_specs=specs, out_specs=out, axis_names={"data"}, check_vma=False)
        closeness(f"{name} inside shard_map", jax.jit(split)(*args), want)


def same_bits_for_every_number_of_devices(name: str) -> None:
    """The state that enters a token, for 2, 4 and 8 devices and for both ways of exchange."""
    args = operands(name, 2, 48, seed=0)
    for backwards in (False, True):
        found = {count: entering_states(args, count, backwards) for count in (2, 4, 8)}
        before, half, quarter = (24, 23, 36) if backwards else (23, 24, 12)
        h, _ = scan.linear_scan(*args, reverse=backwards)
        closeness("the state in the middle", found[8][0][:, half], h[:, before])
        for by_gathering, by_exchange in found.values():
            np.testing.assert_array_equal(by_gathering, by_exchange)
            np.testing.assert_array_equal(by_gathering[:, half], found[2][0][:, half])
        np.testing.assert_array_equal(found[8][0][:, quarter - backwards], found[4][0][:, quarter - backwards])


def entering_states(args: tuple, count: int, backwards: bool) -> list[np.ndarray]:
    """For both ways of exchange, at each token the state that entered the stretch of its device."""
    *pair, start = args

    def shown(operands: Any, state: jax.Array, tokens: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.broadcast_to(state[:, None], operands[1].shape), state

    def call(operands: Any, state: jax.Array) -> jax.Array:
        placed = placement(LINEAR.axes, operands)
        assert placed is not None
        return sharded.sharded(LINEAR, shown, placed, operands, state, tokens_of(None, None), reverse=backwards)[0]

    found, limit = [], sharded.GATHERED
    for sharded.GATHERED in (limit, 1):
        with jax.set_mesh(mesh_of((1, 1, count))):
            found.append(np.asarray(jax.jit(lambda *args: call(*args))(tuple(pair), start)))
    sharded.GATHERED = limit
    return found


def collectives(name: str) -> None:
    """Split over rows and heads, nothing moves; split over the sequence, nothing as long as the sequence does."""
    args, length, devices = operands(name, 4, 1024, seed=0), 1024, 8
    assert not moved(name, args, (4, 2, 1))
    lines = moved(name, args, (1, 1, devices))
    assert lines
    for line in lines:
        sizes = [int(size) for size in line.split("[")[1].split("]")[0].split(",") if size]
        assert all(size < length // devices for size in sizes), line


def moved(name: str, args: tuple, shape: tuple[int, ...]) -> list[str]:
    """The operations that move data between devices, of arguments that lie where the function wants them."""
    where = {"B": "data", "L": "sequence", "D": "tensor", "H": "tensor", "G": "tensor"}
    mesh = mesh_of(shape)
    with jax.set_mesh(mesh):

        def spec(x: jax.Array, names: str) -> jax.ShapeDtypeStruct:
            axes = [where.get(n) if size > 1 else None for n, size in zip(names.split(), x.shape, strict=True)]
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

        given = [spec(x, names) for x, names in zip(args, letters_of(name), strict=True)]
        text = jax.jit(CALLS[name]).lower(*given).compile().as_text()
    kinds = ("all-gather", "all-reduce", "collective-permute", "all-to-all", "reduce-scatter")
    return [line for line in text.splitlines() if any(f" {kind}(" in line for kind in kinds)]


if __name__ == "__main__":
    check, *names = sys.argv[1:]
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for name in names:
        globals()[check](name)
    print("ok")
