"""Four conventions of a sparse teacher: what they agree on, and what each of them does at s = t."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.sparse import CONVENTIONS, sparse_divergence
from tests.kd.cases import CASES, in_float64, name, softmax

RANDOM = np.random.default_rng(3)
V, K = 10, 4
S, T = 2 * RANDOM.normal(size=(2, 3, V))
P = softmax(T)
IDS = np.argsort(-T, -1)[:, :K]
LOGPROBS = np.log(np.take_along_axis(P, IDS, -1))


def at_student(s, ids, logprobs, **args):
    return jax.value_and_grad(lambda s: sparse_divergence("forward_kl", s, ids, logprobs, **args).sum())(s)


@pytest.mark.parametrize(
    ("kind", "args", "phi"),
    [pytest.param(*c, id=name(c), marks=[pytest.mark.slow] * (i > 0)) for i, c in enumerate(CASES)],
)
def test_the_whole_vocabulary_is_dense(kind, args, phi):
    ids = np.stack([RANDOM.permutation(V) for _ in range(3)])
    logprobs = np.log(np.take_along_axis(P, ids, -1))

    def both(s):
        sparse = [sparse_divergence(kind, s, ids, logprobs, convention=c, **args) for c in CONVENTIONS]
        return kd.token_divergence(kind, s, jnp.asarray(T), **args), *sparse

    want, *have = in_float64(both, S)
    for each in have:
        np.testing.assert_allclose(each, want, rtol=1e-9, atol=1e-12)


def test_values():
    p, q = np.exp(LOGPROBS), np.take_along_axis(softmax(S), IDS, -1)

    def kl(p, q):
        return (p * np.log(p / q)).sum(-1)

    def rest(p):
        return np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1)

    inside = p / p.sum(-1, keepdims=True)
    want = [kl(rest(p), rest(q)), kl(inside, q / q.sum(-1, keepdims=True)), kl(inside, q), kl(p, q)]
    have = in_float64(
        lambda s: [sparse_divergence("forward_kl", s, IDS, LOGPROBS, convention=c) for c in CONVENTIONS], S
    )
    np.testing.assert_allclose(have, want, rtol=1e-9)
    whole = (P * np.log(P / softmax(S))).sum(-1)
    assert (have[0] <= whole).all()


def test_at_the_teacher():
    """Value and gradient are 0 with a bucket and renormalised; teacher_renorm has neither, partial only the value."""
    have = in_float64(lambda s: [at_student(s, IDS, LOGPROBS, convention=c) for c in CONVENTIONS], T)
    zero = [(abs(value) < 1e-12, (np.abs(gradient) < 1e-12).all()) for value, gradient in have]
    assert zero == [(True, True), (True, True), (False, False), (True, False)]
    # the sharpening bias: mass outside of the stored entries is pushed down
    outside = np.ones((3, V), bool)
    np.put_along_axis(outside, IDS, False, -1)
    for _, gradient in have[2:]:
        assert (gradient[outside] > 0).all()


@pytest.mark.slow
def test_no_mass_outside():
    s = np.where(RANDOM.random((3, V)) < 0.5, -40.0, S).astype(np.float32)
    logprobs = np.log(np.full((3, K), 1 / K, np.float32))
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        value, gradient = jax.value_and_grad(lambda s: sparse_divergence(kind, s, IDS, logprobs).sum())(s)  # noqa: B023
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.slow
def test_mask_and_temperature():
    mask = np.array([True, False, True])
    ids, logprobs = np.where(mask[:, None], IDS, -7), np.where(mask[:, None], LOGPROBS, np.nan)
    s = np.where(mask[:, None], S, np.nan)
    masked = in_float64(lambda s: [at_student(s, ids, logprobs, mask=mask, convention=c) for c in CONVENTIONS], s)
    left = IDS[mask], LOGPROBS[mask]
    without = in_float64(lambda s: [at_student(s, *left, convention=c) for c in CONVENTIONS], S[mask])
    for (value, gradient), (want, _) in zip(masked, without, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-9)
        assert (gradient[1] == 0).all() and np.isfinite(gradient).all()
    gathered = np.take_along_axis(S, IDS, -1)
    have = sparse_divergence("l2", S, IDS, LOGPROBS, convention="renorm", temperature=3.0, tau_squared=True)
    want = kd.token_divergence("l2", gathered, LOGPROBS, temperature=3.0, tau_squared=True)
    np.testing.assert_allclose(have, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convention": "top"}, "convention: got 'top', expected one of bucket, renorm"),
        ({"temperature": 2.0}, "temperature: got 2.0, expected 1: only the convention renorm"),
        ({"topk_ids": np.zeros((3, K), int)}, "topk_ids: got int.., expected different entries from 0 to 9"),
        ({"topk_ids": IDS[:, :2]}, r"topk_ids: got int..\[3, 2\], expected integer\[3, 4\]"),
        ({"topk_logprobs": LOGPROBS + 3.0}, "topk_logprobs: got a mass of"),
        ({"topk_logprobs": LOGPROBS[:2]}, "topk_logprobs: got float.., expected the axes of s"),
    ],
)
def test_refused(change, message):
    given = {"s": S, "topk_ids": IDS, "topk_logprobs": LOGPROBS}
    with pytest.raises(ValueError, match=f"^{message.replace('.., ', '.*, ')}"):
        sparse_divergence("l2", **{**given, **change})
