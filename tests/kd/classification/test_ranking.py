"""PLD: its special cases, gradient, convexity and truncation; and the teacher of MCMI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from kd.classification import class_centroids, conditional_information, mcmi_teacher, pld
from tests.kd.cases import in_float64, kl, softmax

RANDOM = np.random.default_rng(5)
B, C = 5, 7
S, T = 2 * RANDOM.normal(size=(2, B, C))
Y = RANDOM.integers(0, C, B)  # the teacher's first in some rows only


def order_of(t, y):
    return np.array([y, *(c for c in np.argsort(-t, kind="stable") if c != y)])


def plackett_luce(s, weights, order):
    return sum(w * (logsumexp(s[order[k:]]) - s[order[k]]) for k, w in enumerate(weights))


def cross_entropy(s, y=Y):
    return -np.log(softmax(s)[np.arange(len(s)), y])


def test_pld_is_its_definition():
    tau = 1.5
    alphas = softmax(T / tau)
    want = [plackett_luce(s, a[o], o) for s, a, o in zip(S, alphas, map(order_of, T, Y), strict=True)]
    value, gradients = in_float64(jax.value_and_grad(lambda s, t: pld(s, t, Y, temperature=tau), (0, 1)), S, T)
    np.testing.assert_allclose(value, np.mean(want), rtol=1e-12)
    closed = np.zeros_like(S)
    for i, (s, a, order) in enumerate(zip(S, alphas, map(order_of, T, Y), strict=True)):
        for k in range(C):
            suffix = order[k:]
            closed[i, suffix] += a[order[k]] * softmax(s[suffix])
            closed[i, order[k]] -= a[order[k]]
    np.testing.assert_allclose(gradients[0], closed / B, atol=1e-13)
    np.testing.assert_allclose(gradients[0].sum(1), 0, atol=1e-13)
    assert (gradients[1] == 0).all()


def test_pld_special_cases():
    first = np.where(np.eye(C, dtype=bool)[Y], T.max(1, keepdims=True) + 1, T)  # the label is the teacher's first

    def values(s, t, first):
        return pld(s, first, Y, temperature=1e-3), pld(s, t, Y, temperature=1e9), pld(s + 3.0, t - 2.0, Y), pld(s, t, Y)

    certain, uniform, shifted, plain = in_float64(values, S, T, first)
    np.testing.assert_allclose(certain, cross_entropy(S).mean(), rtol=1e-12)
    list_mle = [plackett_luce(s, np.ones(C), order_of(t, y)) for s, t, y in zip(S, T, Y, strict=True)]
    np.testing.assert_allclose(uniform, np.mean(list_mle) / C, rtol=1e-8)
    np.testing.assert_allclose(shifted, plain, rtol=1e-12)


def test_pld_of_a_teacher_that_is_wrong():
    """With a sure teacher and another label the weight is on the second place."""
    t, y = np.array([[0.0, 50.0, 1.0]]), np.array([0])
    s = np.array([[0.3, -0.2, 0.9]])
    np.testing.assert_allclose(in_float64(lambda s: pld(s, t, y), s), logsumexp(s[0, 1:]) - s[0, 1], rtol=1e-12)


@pytest.mark.slow
def test_pld_is_convex_and_no_matching_loss():
    hessian = in_float64(jax.hessian(lambda s: pld(s[None], T[:1], Y[:1])), S[0])
    assert np.linalg.eigvalsh(hessian).min() > -1e-14
    y = T.argmax(1)
    value, gradient = in_float64(jax.value_and_grad(lambda s: pld(s, T, y)), T)
    assert value > 0.1 and np.abs(gradient).max() > 0.01
    ten, many = in_float64(lambda t: (pld(10 * t, T, y), pld(1e4 * t, T, y)), T)
    assert many < ten < value and many < 1e-6


@pytest.mark.slow
def test_pld_truncated():
    """The kept terms are exact, and with all places nothing is left out; equal logits keep their order."""
    alphas = softmax(T)
    orders = [order_of(t, y) for t, y in zip(T, Y, strict=True)]
    want = [
        np.mean([plackett_luce(s, a[o][:m], o) for s, a, o in zip(S, alphas, orders, strict=True)]) for m in (1, 3, C)
    ]
    have = in_float64(lambda s: [pld(s, T, Y, top_m=m) for m in (1, 3, C + 2)], S)
    np.testing.assert_allclose(have, want, rtol=1e-12)
    gradient = in_float64(jax.grad(lambda s: pld(s, T, Y, top_m=3)), S)
    assert np.isfinite(gradient).all()
    tied = np.round(T) + 0.0  # without -0, which is not 0 to a sort
    want = [plackett_luce(s, softmax(t)[o], o) for s, t, o in zip(S, tied, map(order_of, tied, Y), strict=True)]
    np.testing.assert_allclose(in_float64(lambda s: pld(s, tied, Y), S), np.mean(want), rtol=1e-12)


@pytest.mark.slow
def test_pld_where_both_exclude_a_class():
    s, t = (np.insert(z, 2, -np.inf, axis=1) for z in (S, T))
    for top_m in (None, 3):
        have, want = (
            in_float64(jax.value_and_grad(lambda s, t, y, m=top_m: pld(s, t, y, top_m=m)), *x)
            for x in ((s, t, Y + (Y >= 2)), (S, T, Y))
        )
        np.testing.assert_allclose(have[0], want[0], rtol=1e-12)
        np.testing.assert_allclose(have[1], np.insert(want[1], 2, 0.0, axis=1), atol=1e-12)


def test_mcmi_is_the_conditional_information_of_the_current_centroids():
    y = np.array([0, 2, 2, 0, 2])
    P = softmax(T)
    centroids, information = in_float64(
        lambda t: (Q := class_centroids(jax.nn.softmax(t), y, C), conditional_information(t, y, Q)), T
    )
    for label in range(C):
        mine = P[y == label]
        np.testing.assert_allclose(centroids[label], mine.mean(0) if len(mine) else 0, atol=1e-15)

    def entropy(p):
        return -(p * np.log(p)).sum(-1)

    share = np.array([(y == label).mean() for label in (0, 2)])
    identity = (share * entropy(centroids[[0, 2]])).sum() - entropy(P).mean()
    np.testing.assert_allclose(information.mean(), identity, rtol=1e-11)


def test_mcmi_teacher_gradient():
    Q = softmax(RANDOM.normal(size=(C, C)))
    weight = 0.3
    value, (gradient, to_centroids) = in_float64(
        jax.value_and_grad(lambda t, Q: mcmi_teacher(t, Y, Q, weight=weight), (0, 1)), T, Q
    )
    P = softmax(T)
    information = kl(P, Q[Y])
    np.testing.assert_allclose(value, (cross_entropy(T) - weight * information.sum(1)).mean(), rtol=1e-12)
    by_information = P * (np.log(P / Q[Y]) - information.sum(1, keepdims=True))
    np.testing.assert_allclose(gradient, (P - np.eye(C)[Y] - weight * by_information) / B, atol=1e-13)
    assert (to_centroids == 0).all()


def test_mcmi_of_a_label_without_samples():
    value, gradient = jax.jit(jax.value_and_grad(lambda t: conditional_information(t, Y, jnp.zeros((C, C))).sum()))(
        np.float32(T)
    )
    want = (softmax(T) * (np.log(softmax(T)) - np.log(1e-12))).sum()
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pld(S, T, Y, top_m=0), "top_m: got 0, expected an integer of at least 1"),
        (
            lambda: mcmi_teacher(T, Y, np.ones((2, C))),
            r"centroids: got float..\[2, 7\], expected a float array \(C, C\)",
        ),
        (lambda: class_centroids(T, Y, int(Y.max())), "y: got "),
        (lambda: class_centroids(T, Y, C), "P: got -.*, expected no number below 0"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
