"""Hinton's loss, AB, DKD, DIST and BD-KD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd.classification import abkd, bd_kd, bd_weights, dist, dkd, dkd_terms, hinton
from kd.classification.dist import correlation
from tests.kd.cases import in_float64, kl, softmax

RANDOM = np.random.default_rng(4)
S, T = 2 * RANDOM.normal(size=(2, 6, 5))
Y = RANDOM.integers(0, 5, 6)
ROWS = np.arange(6)


def cross_entropy(s, y=Y):
    return -np.log(softmax(s)[np.arange(len(s)), y]).mean()


def test_hinton():
    tau = 3.0
    p, q = softmax(T / tau), softmax(S / tau)
    value, gradients = in_float64(
        jax.value_and_grad(lambda s, t: hinton(s, t, Y, temperature=tau, ce_weight=0.2, kd_weight=0.7), (0, 1)), S, T
    )
    np.testing.assert_allclose(value, 0.2 * cross_entropy(S) + 0.7 * 9 * kl(p, q).sum(1).mean(), rtol=1e-12)
    labels = softmax(S) - np.eye(5)[Y]
    np.testing.assert_allclose(gradients[0], (0.2 * labels + 0.7 * tau * (q - p)) / 6, atol=1e-12)
    assert (gradients[1] == 0).all()
    released = in_float64(lambda s: hinton(s, T, Y, ce_weight=0.0, kd_weight=1.0, tau_squared=False), S)
    np.testing.assert_allclose(released, kl(softmax(T / 4), softmax(S / 4)).sum(1).mean(), rtol=1e-12)


def test_abkd_at_its_corners():
    have = in_float64(lambda s: [abkd(s, T, Y, alpha=a, beta=b, tau_squared=True) for a, b in ((1, 0), (0, 1))], S)
    p, q = softmax(T / 4), softmax(S / 4)
    want = [0.1 * cross_entropy(S) + 0.9 * 16 * kl(*pair).sum(1).mean() for pair in ((p, q), (q, p))]
    np.testing.assert_allclose(have, want, rtol=1e-11)


def test_dkd_decomposes_kl():
    tau = 2.0
    target, others = in_float64(lambda s, t: dkd_terms(s, t, Y, temperature=tau), S, T)
    p, q = softmax(T / tau), softmax(S / tau)
    np.testing.assert_allclose(target + (1 - p[ROWS, Y]) * others, kl(p, q).sum(1), rtol=1e-11)
    value = in_float64(lambda s: dkd(s, T, Y, alpha=0.5, beta=3.0, temperature=tau, kd_weight=0.25), S)
    np.testing.assert_allclose(value, cross_entropy(S) + (0.5 * target + 3 * others).mean(), rtol=1e-11)


@pytest.mark.slow
def test_dkd_with_two_classes_and_with_a_certain_teacher():
    two, both = np.float32(S[:, :2]), jax.jit(jax.value_and_grad(lambda s, t, y: dkd(s, t, y), (0, 1)))
    value, (gradient, _) = both(two, np.float32(T[:, :2]), Y % 2)
    target, others = dkd_terms(two, np.float32(T[:, :2]), Y % 2)
    assert (others == 0).all() and np.isfinite(value) and np.isfinite(gradient).all()
    p, q = softmax(T[:, :2] / 4), softmax(two / 4)
    np.testing.assert_allclose(target, kl(p, q).sum(1), rtol=1e-4, atol=1e-6)  # logits are of float32
    certain = 300 * np.eye(5, dtype=np.float32)[Y]  # 1 - p_y is 0 in float32, and its logarithm is not
    for s, t in ((S, certain), (certain, T), (certain, certain)):
        value, (gradient, to_teacher) = both(np.float32(s), np.float32(t), Y)
        assert np.isfinite(value) and np.isfinite(gradient).all() and (to_teacher == 0).all()


def test_dist_does_not_see_affine_maps():
    q, p = softmax(S), softmax(T)

    def value(s, t, beta, gamma):
        return dist(s, t, Y, beta=beta, gamma=gamma, ce_weight=0.0)

    inter, intra = in_float64(lambda s, t: (value(s, t, 1.0, 0.0), value(s, t, 0.0, 1.0)), S, T)
    rows, columns = ([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)] for x, y in ((q, p), (q.T, p.T)))
    np.testing.assert_allclose([inter, intra], [1 - np.mean(rows), 1 - np.mean(columns)], rtol=1e-11)
    mapped = in_float64(correlation, q, 0.3 + 5 * p)
    np.testing.assert_allclose(mapped, rows, rtol=1e-11)


@pytest.mark.slow
def test_dist_where_nothing_varies():
    """Two classes: correlations of rows are 1 or -1 and have no gradient. A constant column: no NaN."""
    gradient = in_float64(jax.grad(lambda s: dist(s, T[:, :2], Y % 2, gamma=0.0, ce_weight=0.0)), S[:, :2])
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    uniform = np.zeros((6, 5), np.float32)
    for s, t in ((uniform, T), (S, uniform), (uniform, uniform)):
        value, gradient = jax.jit(jax.value_and_grad(lambda s, t: dist(s, t, Y)))(np.float32(s), np.float32(t))
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert float(correlation(jnp.ones((1, 4)), jnp.asarray(T[:1, :4], jnp.float32))[0]) == 0


def test_bd_weights():
    flat, peaked = np.zeros((1, 3), np.float32), np.array([[4.0, 0.0, 0.0]], np.float32)
    table = {"too certain": (peaked, flat), "too uncertain": (flat, peaked), "tie": (peaked, peaked)}
    have = {name: tuple(float(w[0]) for w in bd_weights(s, t, delta=2.5)) for name, (s, t) in table.items()}
    assert have == {"too certain": (2.5, 1.0), "too uncertain": (1.0, 2.5), "tie": (1.0, 1.0)}


@pytest.mark.slow
def test_bd_kd():
    def losses(s, t, **args):
        return bd_kd(s, t, Y, temperature=1.0, **args)

    def all_of_it(s, t):
        jeffreys = losses(s, t, delta=1.0)
        weighted = losses(s, t, delta=3.0, kd_weight=0.5, teacher_weight=0.25)
        same = losses(t, t, delta=3.0)
        gradients = [jax.grad(lambda s, t, i=i: losses(s, t)[i], (0, 1))(s, t) for i in range(2)]
        return jeffreys, weighted, same, gradients

    jeffreys, weighted, same, (of_student, of_teacher) = in_float64(all_of_it, S, T)
    p, q = softmax(T), softmax(S)
    forward, reverse = kl(p, q).sum(1), kl(q, p).sum(1)
    np.testing.assert_allclose(jeffreys.student, cross_entropy(S) + (forward + reverse).mean(), rtol=1e-11)
    gap = (-p * np.log(p)).sum(1) - (-q * np.log(q)).sum(1)
    terms = np.where(gap > 0, 3, 1) * forward + np.where(gap < 0, 3, 1) * reverse
    np.testing.assert_allclose(weighted.student, cross_entropy(S) + 0.5 * terms.mean(), rtol=1e-11)
    np.testing.assert_allclose(weighted.teacher, cross_entropy(T) + 0.25 * forward.mean(), rtol=1e-11)
    np.testing.assert_allclose(same, [cross_entropy(T)] * 2, rtol=1e-11)
    assert (of_student[1] == 0).all() and (of_teacher[0] == 0).all()
    assert (np.abs(of_student[0]).max(1) > 0).all() and (np.abs(of_teacher[1]).max(1) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hinton(S, T[:, :4], Y), r"t: got float..\[6, 4\], expected a float array \(B, C\) = \(6, 5\)"),
        (lambda: dkd(S, T, Y + 5), r"y: got [5-9] at \[0\], expected labels from 0 to 4"),
        (lambda: dkd(S, T, Y * 1.0), "y: got float64"),
        (lambda: dist(S[:1], T[:1], Y[:1]), "s: got 1 sample, expected at least 2"),
        (lambda: bd_kd(S, T, Y, delta=0.0), "delta: got 0.0, expected a number above 0"),
        (lambda: hinton(S, T, Y, ce_weight=float("nan")), "ce_weight: got nan, expected a number"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
