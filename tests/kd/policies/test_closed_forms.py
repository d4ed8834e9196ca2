"""f-distill's weights, fine-tuning by an f-divergence and the tilted optimum: identities on tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.generators import GENERATORS, Generator
from tests.kd.cases import in_float64, kl, softmax

RANDOM = np.random.default_rng(23)

# f of D = E_q f(r), r = p / q, and h = r^2 f''(r); a factor in h is that of the divergence
H = {
    "reverse_kl": (lambda r: -jnp.log(r), lambda r: np.ones_like(r)),
    "forward_kl": (lambda r: r * jnp.log(r), lambda r: r),
    "jensen_shannon": (lambda r: r * jnp.log(r) - (r + 1) * jnp.log((r + 1) / 2), lambda r: r / (1 + r)),
    "softened_kl": (lambda r: (1 + r) * jnp.log((1 + r) / (2 * r)), lambda r: 1 / (1 + r)),
    "jeffreys": (lambda r: (r - 1) * jnp.log(r), lambda r: 1 + r),
    "squared_hellinger": (lambda r: (jnp.sqrt(r) - 1) ** 2, lambda r: np.sqrt(r) / 2),
    "chi2_qp": (lambda r: (1 - r) ** 2 / r, lambda r: 2 / r),
    "chi2_pq": (lambda r: (r - 1) ** 2, lambda r: 2 * r**2),
}


@pytest.mark.slow
def test_weights_of_f_distill():
    assert set(H) == set(GENERATORS) - {"total_variation"}
    r = np.exp(RANDOM.uniform(-2, 2.9, 20))
    for name, (f, h) in H.items():
        have, second, value = in_float64(
            lambda r, n=name, f=f: (
                kd.f_distill_weights(jnp.log(r), generator=n, normalize=False),
                jax.vmap(jax.grad(jax.grad(f)))(r),
                f(r) / r - GENERATORS[n].f(-jnp.log(r)),
            ),
            r,
        )
        np.testing.assert_allclose(have, h(r), rtol=1e-10)
        np.testing.assert_allclose(have, r**2 * second, rtol=1e-9)
        np.testing.assert_allclose(value, 0, atol=1e-12)  # the same divergence as in the table of generators


@pytest.mark.slow
def test_weights_are_clipped_and_have_mean_one():
    logit = np.array([-50.0, -1.0, 0.0, 2.0, 50.0])
    mask = np.array([True, False, True, True, True])
    raw, weights = in_float64(
        lambda x: (
            kd.f_distill_weights(x, normalize=False),
            kd.f_distill_weights(jnp.where(mask, x, jnp.nan), mask=mask),
        ),
        logit,
    )
    np.testing.assert_allclose(raw, [0.1, np.exp(-1), 1, np.exp(2), 20], rtol=1e-10)
    np.testing.assert_allclose(weights, np.where(mask, raw, 0) / raw[mask].mean(), rtol=1e-10)
    nothing = kd.f_distill_weights(logit.astype(np.float32), mask=np.zeros(5, bool))
    assert (np.asarray(nothing) == 0).all()


@pytest.mark.slow
def test_ratios_over_time():
    logit, times = RANDOM.normal(size=40), np.concatenate([RANDOM.random(38), [0.0, 1.0]])
    have = np.exp(in_float64(kd.balance_over_time, logit, times))
    part = np.minimum((times * 10).astype(int), 9)
    for i in set(part):
        np.testing.assert_allclose(have[part == i].mean(), 1, rtol=1e-12)


@pytest.mark.slow
def test_surrogate_of_f_distill():
    x, difference = RANDOM.normal(size=(2, 3, 2, 4))
    w = RANDOM.random(3)
    have = in_float64(jax.grad(kd.f_distill_loss), x, difference, w)
    np.testing.assert_allclose(have, w[:, None, None] * difference / 3, rtol=1e-11)


# of 24 samples each: enumeration by repetition
DATA, DRAWN = np.array([1, 6, 2, 15]), np.array([6, 4, 12, 2])
P_DATA, P_REFERENCE = DATA / 24, DRAWN / 24


def f_sft(z, generator):
    of_data, of_drawn = (np.repeat(np.arange(4), n) for n in (DATA, DRAWN))
    log_pi, log_reference = jax.nn.log_softmax(z), jnp.log(P_REFERENCE)
    return kd.f_sft_loss(
        log_pi[of_data], log_reference[of_data], log_pi[of_drawn], log_reference[of_drawn], generator=generator
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] + [pytest.mark.exhaustive] * (i > 4))
        for i, n in enumerate(GENERATORS)
        if n != "total_variation"
    ],
)
def test_fine_tuning_has_its_optimum_at_the_data(name):
    at_data, elsewhere = np.log(P_DATA), RANDOM.normal(size=(8, 4))
    gradient, best, others = in_float64(
        lambda z, o: (jax.grad(f_sft)(z, name), f_sft(z, name), jax.vmap(lambda z: f_sft(z, name))(o)),
        at_data,
        elsewhere,
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert (others > best).all()
    # there it is -D_f(data || reference)
    divergence = (P_REFERENCE * in_float64(GENERATORS[name].f, np.log(P_DATA / P_REFERENCE))).sum()
    np.testing.assert_allclose(best, -divergence, rtol=1e-12)


def test_fine_tuning_by_the_kl_is_maximum_likelihood():
    """f = u log u: the reference enters with a constant only. For another f it does not."""

    def likelihood(z):
        return -jnp.sum(P_DATA * jax.nn.log_softmax(z))

    z = RANDOM.normal(size=4)
    have, other, want = in_float64(
        lambda z: (jax.grad(f_sft)(z, "reverse_kl"), jax.grad(f_sft)(z, "jensen_shannon"), jax.grad(likelihood)(z)), z
    )
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)
    assert np.abs(other - want).max() > 0.01


@pytest.mark.slow
def test_masked_responses_of_fine_tuning():
    x = RANDOM.normal(size=(2, 5)).astype(np.float32)
    mask = np.array([True, True, False, True, False])
    loss = jax.value_and_grad(lambda a, b: kd.f_sft_loss(a, x[1], b, x[1], data_mask=mask, drawn_mask=mask), (0, 1))
    clean, dirty = loss(x[0], x[0]), loss(*2 * [np.where(mask, x[0], np.nan)])
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    none = np.zeros(5, bool)
    value, gradient = jax.value_and_grad(
        lambda a: kd.f_sft_loss(a, a, a, a, data_mask=none, drawn_mask=none, generator="chi2_qp")
    )(np.full(5, np.nan, np.float32))
    assert value == 0 and (gradient == 0).all()


TABLE, REWARD = np.log(softmax(RANDOM.normal(size=(3, 12)))), RANDOM.normal(size=(3, 12))


def test_tilting_is_inference():
    Z = RANDOM.normal(size=(3, 12))
    beta = 0.3
    reference = np.exp(TABLE)
    tilted = reference * np.exp(REWARD / beta)
    optimum = tilted / tilted.sum(1, keepdims=True)
    value = beta * np.log(tilted.sum(1))

    def all_of_it(z, log_reference, reward):
        log_pi = jax.nn.log_softmax(z)
        log_best = kd.tilted_optimum(log_reference, reward, beta=beta)

        def matching(z):
            return beta * kd.token_divergence("reverse_kl", z, log_best).sum()

        def objective(z):
            return kd.regularised_reward(jax.nn.log_softmax(z), log_reference, reward, beta=beta).sum()

        return {
            "optimum": jnp.exp(log_best),
            "value": kd.tilted_value(log_reference, reward, beta=beta),
            "at": kd.regularised_reward(log_pi, log_reference, reward, beta=beta),
            "at optimum": kd.regularised_reward(log_best, log_reference, reward, beta=beta),
            "gradients": (jax.grad(objective)(z), jax.grad(matching)(z)),
        }

    have = in_float64(all_of_it, Z, TABLE, REWARD)
    np.testing.assert_allclose(have["optimum"], optimum, rtol=1e-12)
    np.testing.assert_allclose(have["value"], value, rtol=1e-12)
    np.testing.assert_allclose(have["at optimum"], value, rtol=1e-12)
    pi = softmax(Z)
    np.testing.assert_allclose(have["at"], value - beta * kl(pi, optimum).sum(1), rtol=1e-11)
    np.testing.assert_allclose(have["gradients"][0], -have["gradients"][1], rtol=0, atol=1e-12)
    # a policy is a reward
    np.testing.assert_allclose(beta * np.log(have["optimum"] / reference) + value[:, None], REWARD, rtol=1e-10)


def test_without_regularisation_the_reward_alone_counts():
    log_pi, log_reference = np.log([0.5, 0.5]), np.array([0.0, -np.inf])
    assert in_float64(lambda x: kd.regularised_reward(x, log_reference, np.array([0.0, 1.0]), beta=0.0), log_pi) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_by_enumeration(n):
    reward = np.array([0.3, 1.0, 0.3, -2.0, 0.5])  # two are equal
    p = softmax(RANDOM.normal(size=5))
    want = np.zeros(5)
    for draw in np.ndindex(*n * (5,)):
        chance, rewards = p[list(draw)].prod(), reward[list(draw)]
        best = [x for x, r in zip(draw, rewards, strict=True) if r == rewards.max()]
        for x in best:
            want[x] += chance / len(best)
    have = in_float64(lambda x: jnp.exp(kd.best_of_n(x, reward, n=n)), np.log(p))
    np.testing.assert_allclose(have, want, rtol=1e-12)


@pytest.mark.slow
def test_divergence_of_best_of_n():
    def divergence(log_p, reward, n):
        return kd.regularised_reward(kd.best_of_n(log_p, reward, n=n), log_p, 0 * reward, beta=1.0)

    for n in (1, 2, 5, 64):
        have = -in_float64(lambda x, r, n=n: divergence(x, r, n), TABLE, REWARD)
        assert (have <= kd.best_of_n_bound(n) + 1e-12).all()
    # many equally likely responses with different rewards: the bound is met but for O(n^2 / N)
    many, levels = np.full(600, -np.log(600.0)), np.arange(600.0)
    for n in (2, 5):
        have = -in_float64(lambda x, r, n=n: divergence(x, r, n), many, levels)
        np.testing.assert_allclose(have, kd.best_of_n_bound(n), atol=n**2 / 600)
        assert have < kd.best_of_n_bound(n)


@pytest.mark.slow
def test_impossible_responses():
    log_reference, reward = np.array([np.log(0.5), np.log(0.5), -np.inf]), np.array([0.0, 1.0, 9.0])
    gradient, best, of_two = in_float64(
        lambda x: (
            jax.grad(lambda r: kd.regularised_reward(kd.tilted_optimum(x, r, beta=1.0), x, r, beta=1.0))(reward),
            kd.tilted_optimum(x, reward, beta=1.0),
            kd.best_of_n(x, reward, n=2),
        ),
        log_reference,
    )
    assert np.isfinite(gradient).all() and gradient[2] == 0
    np.testing.assert_allclose(np.exp(best), [1 / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-12)
    np.testing.assert_allclose(np.exp(of_two), [0.25, 0.75, 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.tilted_optimum(TABLE, REWARD, beta=0.0), "beta: got 0.0, expected a number above 0"),
        (lambda: kd.best_of_n(TABLE, REWARD, n=0), "n: got 0, expected an integer of at least 1"),
        (lambda: kd.best_of_n(TABLE, REWARD[:1], n=2), "reward: got float"),
        (lambda: kd.f_distill_weights(TABLE), "logit: got float"),
        (
            lambda: kd.f_distill_weights(TABLE[0], generator="total_variation"),
            "generator: got total_variation, expected",
        ),
        (lambda: kd.f_sft_loss(TABLE[0], TABLE[0], TABLE[1], TABLE[:, 0]), "drawn_reference: got float"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.slow
def test_a_generator_of_ones_own():
    own = Generator(lambda x: jnp.exp(x) * x, lambda x: x + 1)
    z = RANDOM.normal(size=4)
    np.testing.assert_allclose(*in_float64(lambda z: (f_sft(z, own), f_sft(z, "reverse_kl")), z), rtol=1e-12)
