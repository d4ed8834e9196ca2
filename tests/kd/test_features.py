"""Attention transfer, relations and contrastive representations against their definitions; equal embeddings."""

import itertools

import jax
import numpy as np
import pytest

from kd.features import attention_transfer, crd, rkd_angle, rkd_distance
from tests.kd.cases import in_float64

RANDOM = np.random.default_rng(9)
B = 5
F_S, F_T = RANDOM.normal(size=(B, 3)), RANDOM.normal(size=(B, 4))
MAPS_S, MAPS_T = RANDOM.normal(size=(B, 3, 2, 4)), RANDOM.normal(size=(B, 3, 2, 6))


def huber(x):
    return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_attention_transfer():
    maps = [unit((np.abs(f) ** 2).sum(3).reshape(B, -1)) for f in (MAPS_S, MAPS_T)]
    have, released, scaled = in_float64(
        lambda s: (
            attention_transfer(s, MAPS_T),
            attention_transfer(s, MAPS_T, released=True),
            attention_transfer(3 * s, MAPS_T),
        ),
        MAPS_S,
    )
    np.testing.assert_allclose(have, np.linalg.norm(maps[0] - maps[1], axis=1).mean(), rtol=1e-12)
    np.testing.assert_allclose(released, ((maps[0] - maps[1]) ** 2).mean(), rtol=1e-12)
    np.testing.assert_allclose(scaled, have, rtol=1e-12)


def test_relations():
    pairs = list(itertools.permutations(range(B), 2))

    def distances(f):
        found = np.array([np.linalg.norm(f[i] - f[j]) for i, j in pairs])
        return found / found.mean()

    def cosines(f):
        return np.array([unit(f[i] - f[j]) @ unit(f[k] - f[j]) for i, j, k in itertools.permutations(range(B), 3)])

    have = in_float64(lambda s: (rkd_distance(s, F_T), rkd_angle(s, F_T)), F_S)
    want = [huber(relation(F_S) - relation(F_T)).mean() for relation in (distances, cosines)]
    np.testing.assert_allclose(have, want, rtol=1e-11)


def test_contrastive_representations():
    negatives = RANDOM.normal(size=(B, 7, 3))
    positive, samples, tau = RANDOM.normal(size=(B, 3)), 50, 0.5
    value, gradients = in_float64(
        jax.value_and_grad(lambda s, t, n: crd(s, t, n, samples=samples, temperature=tau), (0, 1, 2)),
        F_S,
        positive,
        negatives,
    )

    def h(s, t):
        e = np.exp(unit(s) @ unit(t) / tau)
        return e / (e + 7 / samples)

    want = [
        -np.log(h(s, t)) - sum(np.log(1 - h(s, n)) for n in ns)
        for s, t, ns in zip(F_S, positive, negatives, strict=True)
    ]
    np.testing.assert_allclose(value, np.mean(want), rtol=1e-11)
    assert np.abs(gradients[0]).max() > 0 and (gradients[1] == 0).all() and (gradients[2] == 0).all()


@pytest.mark.slow
def test_nothing_to_tell_apart():
    """Equal embeddings and empty maps: no NaN."""
    same = np.ones((B, 3), np.float32)
    for loss in (rkd_distance, rkd_angle):
        for s, t in ((same, F_T), (F_S, same), (same, same)):
            value, (gradient, to_teacher) = jax.jit(jax.value_and_grad(loss, (0, 1)))(np.float32(s), np.float32(t))
            assert np.isfinite(value) and np.isfinite(gradient).all() and (to_teacher == 0).all()
    empty = np.zeros((B, 3, 2, 4), np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda s: attention_transfer(s, np.float32(MAPS_T))))(empty)
    np.testing.assert_allclose(value, 1, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_transfer(MAPS_S, MAPS_T[:, :2]), "f_t: got float.*, expected the batch, height and width"),
        (lambda: rkd_angle(F_S[:2], F_T[:2]), "f_t: got float.*, expected as many samples as f_s, .* at least 3"),
        (lambda: crd(F_S, F_S, F_S[:, None, :2], samples=9), "negatives: got float.*, expected"),
        (lambda: crd(F_S, F_T, F_S[:, None], samples=9), "f_t: got float.*, expected a float array"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
