"""What `test_ring` runs in a process of its own: eight virtual devices, and attention to all pairs on one of them."""

import sys
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from lightnet.mixers import SoftmaxAttention, ring
from lightnet.mixers.ring import split_attention
from lightnet.positions import MDLRPE
from lightnet.segments import run_index

AXES = ("data", "tensor", "sequence")
BATCH, HEADS, KEY, VALUE = 2, 2, 6, 4
# Meshes, numbers of tokens and keys at once: chunks that divide a stretch and not, stretches that are padded.
CASES = (((1, 1, 2), 48, 512), ((1, 1, 8), 37, 2), ((2, 2, 2), 22, 4), ((1, 1, 3), 16, 5))
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def on(shape: tuple[int, ...]) -> Any:
    return jax.set_mesh(
        jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[: int(np.prod(shape))])
    )


def all_pairs(q: Any, k: Any, v: Any, run: Any, real: Any, *, causal: bool, scale: float) -> jax.Array:
    """The definition, with a matrix of all pairs of tokens."""
    q, k, v = (jnp.where(real[..., None, None], x, 0) for x in (q, k, v))
    seen = real[:, None, :] & real[:, :, None] & (run[:, :, None] == run[:, None, :])
    seen = jnp.tril(seen) if causal else seen
    scores = jnp.where(seen[:, None], scale * jnp.einsum("blhm,bshm->bhls", q, k), -1e30)
    weights = jnp.where(seen[:, None], jax.nn.softmax(scores, axis=-1), 0)
    return jnp.einsum("bhls,bshv->blhv", weights, v)


def drawn(length: int, dtype: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Queries, keys, values and a cotangent, of sizes that make softmaxes sharp; runs, and tokens that are real."""
    random = np.random.default_rng(length)
    shape = (BATCH, length, HEADS)
    arrays = [random.standard_normal((*shape, size)).astype(dtype) for size in (KEY, KEY, VALUE, VALUE)]
    arrays[0] *= 3
    ids = np.cumsum(random.random((BATCH, length)) < 4 / length, axis=1) % 3
    real = random.random((BATCH, length)) < 0.8
    real[0, : length // 5], real[1, -(length // 3) :] = False, False
    return arrays, ids, real


def equal_to_all_pairs(dtype: str) -> None:
    """Values and gradients, causal or not, with runs and masked tokens that hold NaN, or plain."""
    for (shape, length, ring.CHUNK), causal, packed in product(CASES, (False, True), (False, True)):
        (q, k, v, out), ids, real = drawn(length, dtype)
        everything = np.zeros_like(ids), np.ones_like(real)
        run, mask = (np.asarray(run_index(jnp.asarray(ids), jnp.asarray(real))), real) if packed else everything
        options = {"causal": causal, "scale": 0.7}
        want, pull = jax.vjp(partial(all_pairs, run=run, real=mask, **options), q, k, v)
        expected = [want, *pull(jnp.asarray(out))]
        tokens = {"run": jnp.asarray(run), "real": jnp.asarray(mask)} if packed else {"run": None, "real": None}
        poisoned = [jnp.asarray(np.where(mask[..., None, None], x, np.nan)) for x in (q, k, v)]

        @jax.jit
        def both(q, k, v, out, tokens=tokens, options=options):
            value, pull = jax.vjp(partial(split_attention, **tokens, **options), q, k, v)
            return value, *pull(out)

        with on(shape):
            found = both(*poisoned, out)
        for name, x, y in zip(("o", "dq", "dk", "dv"), found, expected, strict=True):
            error = np.abs(np.asarray(x) - np.asarray(y)).max() / np.abs(np.asarray(y)).max()
            assert error < TOLERANCE[dtype], f"{name} on {shape}, {length} tokens, {causal=}, {packed=}: {error:.1e}"
            if name != "o":
                assert (np.asarray(x)[~mask] == 0).all(), f"{name} of masked tokens"


def mixer(_: str) -> None:
    """The mixer on a mesh against one device, with positions, packed rows, and a mask over poisoned tokens."""
    random = np.random.default_rng(0)
    length, ring.CHUNK = 21, 4
    _, ids, real = drawn(length, "float32")
    x = np.where(real[..., None], random.standard_normal((BATCH, length, 8)), np.nan).astype(np.float32)
    for causal in (False, True):
        attention = SoftmaxAttention(width=8, num_heads=2, causal=causal, relative=MDLRPE)
        variables = attention.init(jax.random.key(0), jnp.ones((1, 3, 8)))
        variables = jax.tree.map(lambda w: 20 * w, variables)
        given = {"segment_ids": jnp.asarray(ids), "mask": jnp.asarray(real)}

        def both(variables, x, attention=attention, given=given):
            loss = lambda variables, x: (attention.apply(variables, x, **given)[0] ** 3).sum()  # noqa: E731
            return jax.value_and_grad(loss, (0, 1))(variables, x)

        want = jax.jit(both)(variables, x)
        with on((1, 1, 8)):
            compiled = jax.jit(lambda *args: both(*args)).lower(variables, x).compile()
            have = compiled(variables, x)
        assert "collective-permute" in compiled.as_text()
        for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), f"{causal=}"


def memory(_: str) -> None:
    """No array of a device's program has as many numbers as the pairs of a device's tokens with all."""
    length, ring.CHUNK = 1024, 64
    x = jnp.ones((1, length, 1, 8))
    with on((1, 1, 8)):
        loss = lambda q, k, v: split_attention(q, k, v, None, None, causal=True, scale=1.0).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < 4 * length * length / 8, temporaries


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    globals()[sys.argv[1]](sys.argv[2])
    print("ok")
