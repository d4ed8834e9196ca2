"""What `test_sharded` runs in a process of its own: eight virtual devices, and every function of the scan core."""

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from lightnet import scan
from lightnet.scan import sharded
from lightnet.scan.linear import LINEAR
from lightnet.scan.mesh import lie
from lightnet.scan.placement import placement
from lightnet.scan.recurrence import tokens_of
from tests.lightnet.scan import calls
from tests.lightnet.scan.calls import CALLS, cotangents, operands, placed_on

AXES = ("data", "tensor", "sequence")
# Number of tokens, whether packed and padded, and meshes.
CASES = (
    (48, True, [(1, 1, 2), (1, 1, 3)]),
    (37, True, [(1, 1, 8)]),
    (5, False, [(1, 4, 2)]),
)
LONG = (1024, False, [(1, 1, 5), (2, 2, 2)])


def mesh_of(
    shape: tuple[int, ...], kinds: tuple[AxisType, ...] = (AxisType.Auto,) * 3, axes: tuple[str, ...] = AXES
) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, axes, axis_types=kinds, devices=jax.devices()[: int(np.prod(shape, dtype=int))])


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
        return value, pull(jax.tree.map(lambda c, v: lie(c, jax.typeof(v).sharding.spec), out, value))

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
    """Arrays whose types say how they are split, as the function splits them and otherwise; with gradients."""
    for length, split in ((32, PartitionSpec("data", "sequence")), (5, PartitionSpec())):
        call, args, given = CALLS[name], operands(name, 4, length, seed=0), packed_and_padded(4, length, seed=0)
        out = cotangents(call, args, given)
        want = value_and_gradients(call, given, out)(*args)
        for kinds in ((AxisType.Explicit,) * 3, (AxisType.Auto, AxisType.Auto, AxisType.Explicit)):
            with jax.set_mesh(mesh_of((2, 2, 2), kinds)):

                def lies(x: jax.Array, length: int = length, split: PartitionSpec = split) -> jax.Array:
                    return jax.device_put(x, split if x.shape[:2] == (4, length) else PartitionSpec())

                have = value_and_gradients(call, jax.tree.map(lies, given), out)(*jax.tree.map(lies, args))
            closeness(f"{name} on explicit axes", have, want)


def left_over(name: str) -> None:
    """Three channels or heads for two devices, and an axis of an unknown name: nothing is lost, or counted twice."""
    calls.D = calls.H = calls.G = 3
    args = operands(name, 4, 16, seed=0)
    for call in (CALLS[name], partial(CALLS[name], implementation="pallas_interpret")):
        out = cotangents(call, args, {})
        want = value_and_gradients(call, {}, out)(*args)
        with jax.set_mesh(mesh_of((2, 2, 2), axes=("data", "tensor", "other"))):
            have = value_and_gradients(call, {}, out)(*args)
        closeness(f"{name} with axes left over", have, want)


def nothing_to_hand_on(name: str) -> None:
    """A row without real tokens and an empty state: its gradient passes through all stretches of the sequence."""
    *of_tokens, _, total, state = operands(name, 4, 16, seed=0)
    args = (*of_tokens, jnp.full_like(total, -jnp.inf), 0 * total, 0 * state)
    given = {"mask": jnp.arange(64).reshape(4, 16) >= 16}
    out = cotangents(CALLS[name], args, given)
    want = value_and_gradients(partial(CALLS[name], implementation="reference"), given, out)(*args)
    with jax.set_mesh(mesh_of((1, 2, 4))):
        have = value_and_gradients(CALLS[name], given, out)(*args)
    finite = [jax.tree.map(lambda x: jnp.where(jnp.isinf(x), -1, x), both) for both in (have, want)]
    closeness(f"{name} with an empty state", *finite)
    np.testing.assert_array_equal(have[1][-2][0], out[1].total[0])


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
    """Split over rows, no row moves, forward or backward; over the sequence, nothing as long as a device's part is."""
    batch, length, devices = 16, 1024, 8
    args = operands(name, batch, length, seed=0)
    for axes, shape, rows in ((AXES, (8, 1, 1), 2), (("data", "fsdp", "other"), (2, 2, 2), 4)):
        assert not moved(name, args, shape, axes, lambda call: call)
        for line in moved(name, args, shape, axes, both_ways(name, args)):
            assert not any(sizes[:2] == [rows, length] for sizes in shapes_in(line)), line
    assert moved(name, args, (1, 1, devices), AXES, lambda call: call)
    for line in moved(name, args, (1, 1, devices), AXES, both_ways(name, args)):
        assert all(max(sizes, default=1) < length // devices for sizes in shapes_in(line)), line


def both_ways(name: str, args: tuple) -> Callable:
    """Turns a call into its value and gradients."""
    out = cotangents(CALLS[name], args, {})

    def turn(call: Callable) -> Callable:
        def both(*args: Any) -> Any:
            value, pull = jax.vjp(call, *args)
            return value, pull(out)

        return both

    return turn


def moved(name: str, args: tuple, shape: tuple[int, ...], axes: tuple[str, ...], turn: Callable) -> list[str]:
    """The operations that move data between devices, of arguments that lie where the function wants them."""
    mesh = mesh_of(shape, axes=axes)
    given = placed_on(mesh, name, args)
    with jax.set_mesh(mesh):
        text = jax.jit(turn(CALLS[name])).lower(*given).compile().as_text()
    kinds = ("all-gather", "all-reduce", "collective-permute", "all-to-all", "reduce-scatter")
    lines = [line for line in text.splitlines() if any(f" {kind}(" in line for kind in kinds)]
    return [line for line in lines if not re.search(r"replica_groups=\{(\{\d+\},?)+\}", line)]  # groups of one


def shapes_in(line: str) -> list[list[int]]:
    """Of all arrays that an operation gives."""
    found = re.findall(r"\w+\[([\d,]*)\]", line.split(" = ")[1].split("(%")[0])
    return [[int(size) for size in shape.split(",") if size] for shape in found]


if __name__ == "__main__":
    check, *names = sys.argv[1:]
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for name in names:
        globals()[check](name)
    print("ok")
