"""Every use of the estimators by enumeration: what a loss of samples has for a value and for a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd.policies import importance_weights, kl_surrogate, kl_value, log_normalizer
from tests.kd.cases import in_float64, kl, softmax

RANDOM = np.random.default_rng(21)
Z, Z_TARGET, Z_PROPOSAL = 1.5 * RANDOM.normal(size=(3, 10))
TARGET, PROPOSAL = np.log(softmax(Z_TARGET)), np.log(softmax(Z_PROPOSAL))


def expected(drawn_from, loss):
    """Gradient by the logits of E loss(log pi) over what was drawn; how often it is drawn is held fixed."""

    def whole(z):
        log_pi = jax.nn.log_softmax(z)
        fixed = jax.lax.stop_gradient(jnp.exp(log_pi)) if drawn_from is None else np.exp(drawn_from)
        return jnp.sum(fixed * loss(log_pi))

    return jax.grad(whole)


def exact(forward):
    def divergence(z):
        log_pi = jax.nn.log_softmax(z)
        a, b = (TARGET, log_pi) if forward else (log_pi, TARGET)
        return jnp.sum(jnp.exp(a) * (a - b))

    return jax.grad(divergence)


def test_the_table():
    p, q = softmax(Z_TARGET), softmax(Z)
    values = in_float64(
        lambda z: [jnp.sum(jnp.exp(z) * kl_value(z, TARGET, kind=k)) for k in ("k1", "k2", "k3")], np.log(q)
    )
    np.testing.assert_allclose(values, [kl(q, p).sum(), (q * np.log(q / p) ** 2).sum() / 2, kl(q, p).sum()], rtol=1e-12)
    assert abs(values[1] - values[0]) > 0.05

    def gradients(z):
        kinds = [expected(None, lambda x, k=k: kl_surrogate(x, TARGET, kind=k))(z) for k in ("k2", "k3", "reward")]
        shifted = expected(None, lambda x: kl_surrogate(x, TARGET, kind="reward", baseline=0.7))(z)
        return [*kinds, shifted, expected(None, lambda x: x - TARGET)(z), exact(False)(z), exact(True)(z)]

    k2, k3, reward, shifted, k1, reverse, forward = in_float64(gradients, Z)
    for have, want in ((k2, reverse), (k3, forward), (reward, reverse), (shifted, reverse), (k1, 0)):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)
    assert np.abs(reverse - forward).max() > 0.05


def test_samples_of_another_policy():
    def gradients(z):
        weight = importance_weights(jax.nn.log_softmax(z)[:, None], PROPOSAL[:, None])[:, 0]
        return [
            (
                expected(PROPOSAL, lambda x, k=k: kl_surrogate(x, TARGET, kind=k, importance=weight))(z),
                expected(PROPOSAL, lambda x, k=k: kl_surrogate(x, TARGET, kind=k))(z),
                exact(k == "k3")(z),
            )
            for k in ("k2", "k3", "reward")
        ]

    for corrected, not_corrected, want in in_float64(gradients, Z):
        np.testing.assert_allclose(corrected, want, rtol=0, atol=1e-12)
        assert np.abs(not_corrected - want).max() > 0.01


@pytest.mark.slow
def test_products_of_ratios():
    log_pi, log_proposal = RANDOM.normal(size=(2, 3, 5))
    mask = np.ones((3, 5), bool)
    mask[0, 1] = mask[2, 3:] = False
    ratio = np.where(mask, np.exp(log_pi - log_proposal), 1)
    whole = ratio.prod(1, keepdims=True)
    want = {"token": ratio, "prefix": ratio.cumprod(1), "state": ratio.cumprod(1) / ratio, "sequence": whole}
    dirty = np.where(mask, log_pi, np.nan)
    for over, product in want.items():
        have = in_float64(lambda x, o=over: importance_weights(x, log_proposal, over=o, mask=mask), dirty)
        np.testing.assert_allclose(have, np.where(mask, product, 0), rtol=1e-12)
    capped = in_float64(lambda x: importance_weights(x, log_proposal, mask=mask, largest=1.1), dirty)
    np.testing.assert_allclose(capped, np.where(mask, np.minimum(ratio, 1.1), 0), rtol=1e-12)
    gradient = jax.grad(lambda x: importance_weights(x, log_proposal.astype(np.float32)).sum())
    assert (gradient(log_pi.astype(np.float32)) == 0).all()


@pytest.mark.slow
def test_never_negative_but_k1():
    d = np.concatenate([10.0 ** RANDOM.uniform(-8, 1, 500), [0, 0.1, 1, 20]]).astype(np.float32)
    d = np.concatenate([d, -d])
    k1, k2, k3 = (np.asarray(kl_value(d, np.zeros_like(d), kind=k)) for k in ("k1", "k2", "k3"))
    assert (k1 < 0).any() and (k2 >= 0).all() and (k3 >= 0).all()
    precise = d.astype(np.float64)
    series = precise**2 / 2 - precise**3 / 6 + precise**4 / 24
    want = np.where(np.abs(d) < 1e-3, series, np.expm1(-precise) + precise)
    # from 0.1 on it is a difference of numbers up to 20 times as large, each rounded
    np.testing.assert_allclose(k3, want, rtol=8e-6, atol=1e-18)


@pytest.mark.slow
def test_clipping_is_outside_only():
    d = np.linspace(-19, 19, 39).astype(np.float32)
    far = np.array([-500, 500], np.float32)
    for kind in ("k2", "k3", "reward"):
        loss = jax.value_and_grad(lambda x, n, k=kind: kl_surrogate(x, 0 * x, kind=k, largest_log_ratio=n).sum())
        near, wide = loss(d, 20.0), loss(d, 40.0)
        np.testing.assert_array_equal(near[0], wide[0])
        np.testing.assert_array_equal(near[1], wide[1])
        value, gradient = loss(far, 20.0)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.slow
def test_normalizer():
    log_P = Z_TARGET + 1.3
    have = in_float64(lambda x: log_normalizer(x, np.full(10, -np.log(10.0))), log_P)
    np.testing.assert_allclose(have, np.log(np.exp(log_P).sum()), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_surrogate(Z, Z, kind="k1"), "kind: got 'k1', whose gradient as a loss is 0 in expectation"),
        (lambda: kl_surrogate(Z, Z, kind="k4"), "kind: got 'k4', expected one of k2, k3, reward"),
        (lambda: kl_value(Z, Z[:3]), "log_target: got float"),
        (lambda: kl_surrogate(Z, Z, importance=Z[:3]), "importance: got float"),
        (lambda: importance_weights(Z, Z, over="batch"), "over: got 'batch', expected one of token, state"),
        (lambda: importance_weights(np.float32(1), np.float32(1)), "log_pi: got"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
