"""KL-Top, MDCS and the fusion of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.classification import kl_top, mdcs_consistency, mdcs_diversity
from kd.fusion import fuse_logits, solve_alpha
from tests.kd.cases import in_float64, kl, softmax

RANDOM = np.random.default_rng(7)
K, B, C = 3, 6, 5
WEAK, STRONG = 2 * RANDOM.normal(size=(2, K, B, C))
Y = RANDOM.integers(0, C, B)
COUNTS = np.array([100.0, 50.0, 20.0, 5.0, 1.0])


def test_kl_top():
    s, t = 2 * RANDOM.normal(size=(2, 4, 9))
    mask = np.array([True, True, False, True])
    ids = np.argsort(-t, 1)[:, :3]
    p, q = (softmax(np.take_along_axis(z, ids, 1)) for z in (t, s))
    poisoned = np.where(mask[:, None], s, np.nan)
    value, gradient = in_float64(jax.value_and_grad(lambda s: kl_top(s, t, k=3, mask=mask)), poisoned)
    np.testing.assert_allclose(value, kl(p, q).sum(1)[mask].mean(), rtol=1e-12)
    # what leaks out of the kept logits is invisible
    kept = np.zeros((4, 9), bool)
    np.put_along_axis(kept, ids, True, 1)
    assert (gradient[~kept] == 0).all() and (gradient[~mask] == 0).all() and np.isfinite(gradient).all()
    whole = in_float64(lambda s: (kl_top(s, t, k=9), kd.token_divergence("forward_kl", s, t).mean()), s)
    np.testing.assert_allclose(*whole, rtol=1e-12)


def test_experts_with_priors():
    want = 0.0
    for z, tau in zip(WEAK, (-0.5, 1.0, 2.5), strict=True):
        want += -np.log(softmax(z + np.log(COUNTS**tau + 1e-9))[np.arange(B), Y]).mean()
    value, scaled = in_float64(lambda z: (mdcs_diversity(z, Y, COUNTS), mdcs_diversity(z, Y, 7 * COUNTS)), WEAK)
    np.testing.assert_allclose(value, want, rtol=1e-6)  # the released code adds 1e-9
    np.testing.assert_allclose(scaled, value, rtol=1e-12)


def test_consistency_on_what_an_expert_is_right_about():
    y = Y.copy()
    y[:2] = WEAK[0, :2].argmax(1)
    want = 0.0
    for weak, strong in zip(WEAK, STRONG, strict=True):
        right = weak.argmax(1) == y
        if right.any():
            want += kl(softmax(weak), softmax(strong)).sum(1)[right].mean()
    value, gradients = in_float64(jax.value_and_grad(lambda w, s: mdcs_consistency(w, s, y), (0, 1)), WEAK, STRONG)
    assert want > 0
    np.testing.assert_allclose(value, want, rtol=1e-12)
    assert (gradients[0] == 0).all() and np.abs(gradients[1]).max() > 0
    nowhere = (WEAK[:1].argmax(2)[0] + 1) % C
    value, gradient = in_float64(jax.value_and_grad(lambda s: mdcs_consistency(WEAK[:1], s, nowhere)), STRONG[:1])
    assert value == 0 and (gradient == 0).all()


def test_fusion():
    M_L, M_S = RANDOM.normal(size=(2, 4, 7))
    experts = RANDOM.normal(size=(2, 4, 7))
    alpha = RANDOM.random((2, 4))
    fused, base = in_float64(
        lambda L: (fuse_logits(L, M_S, experts, alpha), fuse_logits(L, M_S, experts, np.zeros(2))), M_L
    )
    want = M_L + (alpha[..., None] * (experts - M_S)).sum(0)
    np.testing.assert_allclose(fused, want, rtol=1e-12)
    np.testing.assert_array_equal(base, M_L)


@pytest.mark.slow
def test_alpha_is_the_best_of_the_grid():
    M_L, M_S = 2 * RANDOM.normal(size=(2, 4, 7))
    experts = M_S + RANDOM.normal(size=(2, 4, 7))

    def regret(k, alpha, row):
        P_alpha, P, Q = (softmax(z[row]) for z in (M_L + alpha * (experts[k] - M_S), M_L, M_S))
        Q_all = [softmax(each[row]) for each in experts]
        moved = [(kl(P_alpha, P).sum() - kl(Q_k, Q).sum()) ** 2 for Q_k in Q_all]
        return sum(moved) + sum((kl(P, P_alpha).sum() - kl(Q, Q_k).sum()) ** 2 for Q_k in Q_all)

    have = in_float64(lambda L: solve_alpha(L, M_S, experts), M_L)
    for row in range(4):
        candidates = {(k, i): regret(k, i / 10, row) for k in range(2) for i in range(21)}
        k, i = min(candidates, key=candidates.get)
        want = np.zeros(2)
        want[k] = i / 10
        np.testing.assert_allclose(have[:, row], want, atol=1e-6)


def test_alpha_of_equal_models_is_1():
    M, expert = RANDOM.normal(size=(2, 3, 7)).astype(np.float32)
    alpha = jax.jit(lambda M: solve_alpha(M, M, expert[None]))(M)
    np.testing.assert_allclose(alpha, 1)
    np.testing.assert_allclose(fuse_logits(M, M, expert[None], alpha), expert, rtol=1e-5, atol=1e-6)


def test_fusion_where_models_exclude_an_entry():
    M_L, M_S, expert = 2 * RANDOM.normal(size=(3, 4, 7)).astype(np.float32)
    padded = [np.concatenate([z, np.full((4, 2), -np.inf, np.float32)], 1) for z in (M_L, M_S, expert)]

    def both(M_L, M_S, expert):
        alpha = solve_alpha(M_L, M_S, expert[None])
        return alpha, fuse_logits(M_L, M_S, expert[None], alpha)

    (want, fused), (alpha, longer) = jax.jit(both)(M_L, M_S, expert), jax.jit(both)(*padded)
    assert (want > 0).any()
    np.testing.assert_array_equal(alpha, want)
    np.testing.assert_allclose(longer[:, :7], fused, rtol=1e-6)
    assert np.isneginf(longer[:, 7:]).all()


def test_counts_are_integers_and_known_inside_of_a_compiled_function():
    want = mdcs_diversity(WEAK, Y, COUNTS)
    for counts in (COUNTS.astype(int), jnp.asarray(COUNTS)):
        np.testing.assert_allclose(
            jax.jit(lambda z, counts=counts: mdcs_diversity(z, Y, counts))(WEAK), want, rtol=1e-6
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_top(WEAK, STRONG, k=6), "k: got 6, expected an integer of at least 1 and at most 5"),
        (lambda: mdcs_diversity(WEAK, Y, 0 * COUNTS), "counts: got 0, expected at least one sample of each class"),
        (lambda: mdcs_diversity(WEAK, Y, COUNTS, taus=(1.0,)), "taus: got 1, expected one for each of the 3 experts"),
        (lambda: solve_alpha(WEAK[0], WEAK[1], STRONG[0]), "M_experts: got float"),
        (lambda: fuse_logits(WEAK[0], WEAK[1], STRONG, jnp.ones(2)), "alpha: got float32.2., expected"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
