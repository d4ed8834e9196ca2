"""Linformer's attention against its equation."""

import jax
import numpy as np
import pytest

from experiments.sequence_parallelism.linformer import Linformer


@pytest.mark.slow
def test_the_equation():
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 7, 6)).astype(np.float32)
    mixer = Linformer(width=6, num_heads=2, length=7, rank=3)
    variables = jax.tree.map(lambda w: 10 * w, mixer.init(jax.random.key(0), x))
    params = jax.tree.map(np.asarray, jax.tree.map(lambda w: w, jax.device_get(variables["params"])))
    kernel, out, e = (
        getattr(leaf, "value", leaf)
        for leaf in (params["qkv"]["kernel"], params["out"]["kernel"], params["projection"])
    )
    q, k, v = np.moveaxis(np.einsum("bld,dphk->blphk", x, kernel), 2, 0)
    k, v = (np.einsum("lr,blhk->brhk", e, y) for y in (k, v))
    scores = np.einsum("blhk,brhk->bhlr", q, k) / np.sqrt(3)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    read = np.einsum("bhlr,brhk->blhk", weights / weights.sum(axis=-1, keepdims=True), v)
    found = mixer.apply(variables, x)[0]
    np.testing.assert_allclose(found, np.einsum("blhk,hkd->bld", read, out), rtol=1e-4, atol=1e-4)


def test_neither_masks_nor_segments():
    mixer = Linformer(width=4, num_heads=1, length=3, rank=2)
    x = np.ones((1, 3, 4), np.float32)
    variables = mixer.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="Linformer: mask not supported"):
        mixer.apply(variables, x, mask=np.ones((1, 3), bool))
