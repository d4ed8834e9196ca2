"""Every function of the scan core as one of its differentiable arguments alone, and arguments to call it with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lightnet import scan
from lightnet.scan.placement import MESH_AXES

D, N, H, G, K, V, F, WIDTH = 4, 3, 4, 2, 4, 6, 2, 4


def _selective(x, dt, a, b, c, d, z, state, **given):
    return scan.selective_scan(x, dt, a, b, c, d, z=z, initial_state=state, **given)


def _gated(q, k, v, log_decay, state, **given):
    return scan.gated_linear_attention(q, k, v, log_decay, initial_state=state, **given)


def _additive(q, logits, v, factor, *state, **given):
    return scan.additive_recurrence(q, logits, v, key_factor=factor, initial_state=scan.AdditiveState(*state), **given)


def _global(q, logits, v, factor, **given):
    segments = logits.shape[1] if "segment_ids" in given else 1
    return scan.additive_global(q, logits, v, key_factor=factor, num_segments=segments, **given)


def _conv(x, w, bias, state, **given):
    return scan.causal_conv(x, w, bias, initial_state=state, **given)


CALLS: dict[str, Callable] = {
    "linear_scan": scan.linear_scan,
    "linear_scan backwards": lambda *args, **given: scan.linear_scan(*args, reverse=True, **given),
    "linear_scan with one decay": scan.linear_scan,
    "diagonal_ssm": scan.diagonal_ssm,
    "selective_scan": _selective,
    "gated_linear_attention": _gated,
    "gated_linear_attention with one decay per head": _gated,
    "additive_recurrence": _additive,
    "additive_global": _global,
    "causal_conv": _conv,
}


def operands(name: str, batch: int, length: int, *, seed: int) -> tuple[jax.Array, ...]:
    """Random arguments in float32; the last ones are the initial state."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    def complex_normal(*shape: int) -> jax.Array:
        return normal(*shape) + 1j * normal(*shape)

    tokens = (batch, length)
    x = normal(*tokens, D)
    if name.startswith("linear_scan"):
        decay = jax.nn.sigmoid(normal(*((1, 1) if "one decay" in name else tokens), D) + 2)
        return decay, x, normal(batch, D)
    if name == "diagonal_ssm":
        a = 0.95 * jax.nn.sigmoid(normal(D, N) + 2) * jnp.exp(1j * normal(D, N))
        return x, a, complex_normal(D, N), complex_normal(D, N), complex_normal(batch, D, N)
    if name == "selective_scan":
        weights = (-jnp.exp(normal(D, N)), normal(*tokens, N), normal(*tokens, N), normal(D))
        return x, jax.nn.softplus(normal(*tokens, D) - 2), *weights, normal(*tokens, D), normal(batch, D, N)
    if name.startswith("gated"):
        q, k, v = normal(*tokens, G, K), normal(*tokens, G, K), normal(*tokens, H, V)
        log_decay = jax.nn.log_sigmoid(normal(*tokens, H, 1 if "one decay" in name else K) + 2)
        return q, k, v, log_decay, normal(batch, H, K, V)
    if name.startswith("additive"):
        given = (
            normal(*tokens, H, F * K),
            3 * normal(*tokens, H, K),
            normal(*tokens, H, V),
            normal(1, length, 1, F, K),
        )
        state = (normal(batch, H, K), 1 + jnp.abs(normal(batch, H, K)), normal(batch, H, F * K, V))
        return given if name == "additive_global" else (*given, *state)
    return x, normal(WIDTH, D), normal(D), normal(batch, WIDTH - 1, D)


def cotangents(call: Callable, args: tuple, given: dict[str, Any]) -> Any:
    """Random ones for all outputs, the final state included."""
    random = np.random.default_rng(0)

    def like(x: jax.ShapeDtypeStruct) -> jax.Array:
        real = jnp.asarray(random.standard_normal(x.shape), x.dtype)
        return real * (1 + 1j) if jnp.issubdtype(x.dtype, jnp.complexfloating) else real

    return jax.tree.map(like, jax.eval_shape(lambda *args: call(*args, **given), *args))


def placed_on(mesh: Mesh, name: str, args: tuple) -> list[jax.ShapeDtypeStruct]:
    """The arguments split over the mesh as the function splits them."""
    recurrence = next(r for r in scan._RECURRENCES.values() if name.startswith(r.name))
    letters = [*jax.tree.leaves(recurrence.axes.operands), *jax.tree.leaves(recurrence.axes.state)]
    if recurrence is scan.additive.ADDITIVE_GLOBAL:
        letters = letters[: len(args)]
    over = {letter: tuple(axis for axis in axes if axis in mesh.shape) for letter, axes in MESH_AXES.items()}
    over["G"] = over["H"]

    def place(x: jax.Array, names: str) -> jax.ShapeDtypeStruct:
        axes = [over.get(letter) if size > 1 else None for letter, size in zip(names.split(), x.shape, strict=True)]
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return [place(x, names) for x, names in zip(args, letters, strict=True)]
