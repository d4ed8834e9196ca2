"""States to save, and what the tests of checkpoints ask of them and of the files."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.checkpoint import Checkpoints
from experiments.training.config import CheckpointConfig

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
# Orbax writes these at the commit itself; nothing that is restored stands in them.
UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")


class State(NamedTuple):
    step: Any
    params: Any
    collections: Any
    optimizer: Any
    ema: Any


def make_state(seed: int = 0, width: int = 4, ema: bool = False) -> State:
    kernel = jax.random.normal(jax.random.key(seed), (3, width))
    params = {"dense": {"kernel": kernel, "bias": (kernel[0] * 3).astype(jnp.bfloat16)}}
    collections = {"stats": {"mean": jnp.asarray(np.float32(seed) / 7), "seen": jnp.arange(5, dtype=jnp.int8) - seed}}
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    average = jax.tree.map(lambda x: x + 1, params) if ema else None
    return State(jnp.asarray(seed, jnp.int32), params, collections, optimizer, average)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def devices(tree: Any) -> Any:
    return jax.tree.map(lambda x: DEVICE, tree)


def restored(checkpoints: Checkpoints, like: Any = None, step: int | None = None) -> Any:
    like = make_state() if like is None else like
    return checkpoints.restore(shapes(like), devices(like), step)


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder: Path, steps: Any, **options: Any) -> None:
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=9), **options)
    for step in steps:
        checkpoints.save(step, make_state(step), {"step": step})
    checkpoints.close()


def files(folder: Path, step: int) -> list[Path]:
    return sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}
