"""Divergences at thousands of random pairs: nearly equal, nearly certain, of any size; and what a bucket can hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.divergences import divergence, present
from tests.kd.cases import CASES, in_float64, name, softmax

RANDOM = np.random.default_rng(12)
PAIRS, SAME = 1000, 100
BOUNDS = {"jsd": 0.6109, "skew_kl": 2.3026, "skew_reverse_kl": 2.3026, "total_variation": 1.0}
BOUNDS |= {"squared_hellinger": 2.0, "l2": 1.0, "f_divergence": 2 * np.log(2)}
LEAST = (0.0, -1e-12)  # a generator that is the user's may round below 0
# what joining entries cannot raise: all that is sum p f(q / p)
JOINED = [case for case in CASES if case[0] not in ("l2", "alpha_beta")]


def pairs(vocabulary):
    """Spreads of the logits from 0.01 to 10 each; a third differs by 1e-4 to 1e-1 only, a tenth not at all."""
    spread = np.exp(RANDOM.uniform(np.log(0.01), np.log(10), (2, PAIRS, 1)))
    s, t = spread * RANDOM.normal(size=(2, PAIRS, vocabulary))
    third = PAIRS // 3
    near = 10 ** RANDOM.uniform(-4, -1, (third, 1))
    s[:third] = t[:third] + near * RANDOM.normal(size=(third, vocabulary))
    s[:SAME] = t[:SAME] + RANDOM.normal(size=(SAME, 1))
    return s, t


@pytest.mark.parametrize(
    ("kind", "args", "phi"),
    [pytest.param(*c, id=name(c), marks=[pytest.mark.slow] * (i != 2)) for i, c in enumerate(CASES)],
)
def test_never_negative_and_zero_only_where_they_agree(kind, args, phi):
    def both(s, t):
        value = kd.token_divergence(kind, s, t, **args)
        gradient = jax.grad(lambda s: kd.token_divergence(kind, s, t, **args).sum())(s)
        a = present(divergence(kind, **args).a, jax.nn.log_softmax(t), jax.nn.log_softmax(s))
        return value, gradient, jnp.abs(a).sum(-1)

    s, t = pairs(9)
    # vocabularies of 2 to 9 entries: what both exclude is not there
    absent = np.arange(9)[None] >= RANDOM.choice([2, 3, 9], (PAIRS, 1))
    s, t = (np.where(absent, -np.inf, z) for z in (s, t))
    value, gradient, size = in_float64(both, s, t)
    p, q = softmax(t), softmax(s)
    want = np.where(absent, 0, phi(np.where(absent, 1, p), np.where(absent, 1, q)))
    np.testing.assert_allclose(value, want.sum(-1), rtol=1e-6, atol=1e-12 * (1 + np.abs(want).max()))
    assert (value[np.abs(p - q).max(-1) > 1e-6] > 0).all()
    first_order = kind in ("total_variation", "f_divergence")  # in rounding: the others are of second order
    assert (np.abs(value[:SAME]) < (1e-14 if first_order else 1e-20)).all()
    assert np.isfinite(gradient).all() and (gradient[absent] == 0).all()
    assert (np.abs(gradient.sum(-1)) <= 1e-14 * (1 + size)).all()  # a - q sum a rounds as a does
    if kind in BOUNDS and not args.get("normalize"):
        assert value.max() <= BOUNDS[kind] * (1 + 1e-4)


@pytest.mark.parametrize(
    ("kind", "args", "phi"),
    [pytest.param(*c, id=name(c), marks=[pytest.mark.slow] * (i != 0)) for i, c in enumerate(JOINED)],
)
def test_a_bucket_hides_but_never_adds(kind, args, phi):
    s, t = pairs(9)
    log_p = np.log(softmax(t))
    order = np.argsort(-log_p, axis=1)

    def all_of_it(s, t):
        whole = kd.token_divergence(kind, s, t, **args)
        buckets = [
            kd.sparse_divergence(kind, s, order[:, :k], np.take_along_axis(log_p, order[:, :k], 1), **args)
            for k in (1, 3, 8)
        ]
        return whole, buckets

    whole, buckets = in_float64(all_of_it, s, t)
    for k, bucket in zip((1, 3, 8), buckets, strict=True):
        outside = np.exp(np.take_along_axis(log_p, order[:, k:], 1)).sum(1)
        # a bucket is never quite empty: the smallest mass outside is 1e-7
        assert (bucket <= whole * (1 + 1e-9) + 1e-12)[outside > 2e-7].all()
        assert (bucket >= LEAST[kind == "f_divergence"]).all()


def test_joining_entries_can_raise_the_squared_error():
    s, t = np.log([[0.5, 0.25, 0.25]]), np.log([[0.7, 0.15, 0.15]])
    first = np.array([[0]])
    both = in_float64(
        lambda s, t: (kd.token_divergence("l2", s, t), kd.sparse_divergence("l2", s, first, t[:, :1])), s, t
    )
    np.testing.assert_allclose(both, [[0.03], [0.04]], rtol=1e-9)
