"""ULD and its hybrid against their definitions, and alignments of tokenizations against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from tests.kd.cases import in_float64, jsd, softmax

RANDOM = np.random.default_rng(32)
S, T = RANDOM.normal(size=(4, 5)), RANDOM.normal(size=(4, 8))


def distance(q, p):
    q, p = (-np.sort(-x) for x in (q, p))
    size = max(len(q), len(p))
    return np.abs(np.pad(q, (0, size - len(q))) - np.pad(p, (0, size - len(p)))).sum()


def test_sorted_distance():
    q, p = softmax(S), softmax(T / 1.0)
    want = np.mean([distance(*pair) for pair in zip(q, p, strict=True)])
    value, other_way, renamed = in_float64(
        lambda s, t: (kd.uld(s, t), kd.uld(t, s), kd.uld(s[:, np.array([3, 1, 4, 0, 2])], t)), S, T
    )
    np.testing.assert_allclose([value, other_way, renamed], want, rtol=1e-12)


@pytest.mark.slow
def test_gradient_of_the_sorted_distance():
    gradients = in_float64(lambda s, t: jax.grad(kd.uld, (0, 1))(s, t), S, T)
    step = 1e-6
    for i in ((0, 0), (2, 3)):
        moved = np.zeros_like(S)
        moved[i] = step
        up, down = (in_float64(lambda s: kd.uld(s, T), S + sign * moved) for sign in (1, -1))
        np.testing.assert_allclose(gradients[0][i], (up - down) / (2 * step), atol=1e-8)
    assert (gradients[1] == 0).all()
    # where they agree there is nothing to learn; JAX's |x| has slope 1 at 0
    assert (in_float64(jax.grad(kd.uld), S, S) == 0).all()


@pytest.mark.slow
def test_hybrid():
    common_s, common_t = np.array([0, 3]), np.array([6, 2])
    q, p = softmax(S / 1.5), softmax(T / 1.5)
    want = np.mean(
        [
            2 * jsd(p[i, common_t], q[i, common_s], 0.3).sum()
            + 0.7 * distance(np.delete(q[i], common_s), np.delete(p[i], common_t))
            for i in range(4)
        ]
    )
    args = {"beta": 0.3, "weights": (2.0, 0.7), "temperature": 1.5}
    have, none, all_of_it, whole = in_float64(
        lambda s, t: (
            kd.hybrid_uld(s, t, common_s, common_t, **args),
            kd.hybrid_uld(s, t, common_s[:0], common_t[:0]) - kd.uld(s, t),
            kd.hybrid_uld(s, t[:, :5], np.arange(5), np.arange(5)),
            kd.gkd(s, t[:, :5]),
        ),
        S,
        T,
    )
    np.testing.assert_allclose(have, want, rtol=1e-12)
    np.testing.assert_allclose(none, 0, atol=1e-15)
    np.testing.assert_allclose(all_of_it, whole, rtol=1e-12)


def test_alignments():
    for _ in range(20):
        length = int(RANDOM.integers(1, 12))
        ends = [np.append(np.flatnonzero(RANDOM.random(length - 1) < 0.6) + 1, length) for _ in range(2)]
        alignment = kd.align_spans(*ends)
        common = sorted(set(ends[0]) & set(ends[1]))
        for spans, starts, own in zip(alignment[:2], alignment[2:], ends, strict=True):
            assert [sum(c < e for c in common) for e in own] == spans.tolist()
            begins = [0, *own[:-1]]
            assert [begins[i] for i in starts] == [0, *common[:-1]]


@pytest.mark.slow
def test_log_probabilities_of_spans():
    log_probs, spans = RANDOM.normal(size=(2, 5)), np.array([[0, 0, 1, 2, 2], [0, 1, 1, 9, 9]])
    mask = np.array([[True] * 5, [True, True, True, False, False]])
    dirty = np.where(mask, log_probs, np.inf)
    have, gradient = in_float64(
        lambda x: (
            kd.span_log_probs(x, spans, 3, mask=mask),
            jax.grad(lambda x: kd.span_log_probs(x, spans, 3, mask=mask).sum())(x),
        ),
        dirty,
    )
    x = log_probs
    want = [[x[0, :2].sum(), x[0, 2], x[0, 3:].sum()], [x[1, 0], x[1, 1:3].sum(), 0]]
    np.testing.assert_allclose(have, want, rtol=1e-12)
    np.testing.assert_array_equal(gradient, mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.uld(S, T[:3]), "t: got float.*, expected logits at the tokens of s"),
        (lambda: kd.hybrid_uld(S, T, np.array([5]), np.array([0])), "common_s: got 5 at .0., expected labels"),
        (lambda: kd.hybrid_uld(S, T, np.array([4]), np.array([0, 1])), "common_t: got int"),
        (lambda: kd.align_spans([2, 2], [2]), r"ends_s: got \[2, 2\], expected rising integers above 0"),
        (lambda: kd.align_spans([2], [1, 3]), "ends_t: got a text that ends at 3, expected 2, where ends_s does"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.slow
def test_compiled():
    """Half precision goes in, float32 comes out."""
    low = [jnp.asarray(x, jnp.bfloat16) for x in (S, T)]
    value = jax.jit(kd.uld)(*low)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, kd.uld(*(x.astype(jnp.float32) for x in low)), rtol=1e-5)
