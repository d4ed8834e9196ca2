"""Advantages, clipping, masks by reward, KDRL, DPH and DiDi against their definitions; gradients by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.generators import GENERATORS, alpha
from tests.kd.cases import in_float64, softmax

RANDOM = np.random.default_rng(22)
Z, Z_REFERENCE = RANDOM.normal(size=(2, 6))
REFERENCE = np.log(softmax(Z_REFERENCE))


@pytest.mark.slow
def test_advantages():
    rewards = RANDOM.normal(size=(4, 5))
    rewards[1] = 0.1
    mask = RANDOM.random((4, 5)) < 0.8
    mask[2] = False
    plain, of_some, centred = in_float64(
        lambda r: (
            kd.grpo_advantage(r),
            kd.grpo_advantage(jnp.where(mask, r, jnp.nan), mask=mask),
            kd.grpo_advantage(r, scale=False),
        ),
        rewards,
    )
    others = [0, 2, 3]
    middle = rewards - rewards.mean(1, keepdims=True)
    np.testing.assert_allclose(centred[others], middle[others], rtol=1e-12)
    np.testing.assert_allclose(plain[others], middle[others] / rewards[others].std(1, keepdims=True), rtol=1e-12)
    assert (plain[1] == 0).all() and (of_some[1] == 0).all() and (of_some[~mask] == 0).all()
    for i in (0, 3):
        counted = rewards[i][mask[i]]
        np.testing.assert_allclose(of_some[i][mask[i]], (counted - counted.mean()) / counted.std(), rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("group", [3, 7, 10])
def test_a_group_of_equal_rewards_teaches_nothing(group):
    """In float32 the mean of equal numbers is not always that number."""
    equal = np.full((1, group), 0.1, np.float32) + np.float32(1e-3)
    assert (np.asarray(kd.grpo_advantage(equal)) == 0).all()
    assert (np.asarray(kd.whiten(equal)) == 0).all()


@pytest.mark.slow
def test_clipping():
    log_pi, log_old = 0.5 * RANDOM.normal(size=(2, 3, 4))
    A = RANDOM.normal(size=3)
    rho = np.exp(log_pi - log_old)
    want = -np.minimum(rho * A[:, None], np.clip(rho, 0.8, 1.28) * A[:, None])
    have, gradient = in_float64(
        lambda x: (
            kd.clipped_policy_loss(x, log_old, A, clip_high=0.28),
            jax.grad(lambda x: kd.clipped_policy_loss(x, log_old, A, clip_high=0.28).sum())(x),
        ),
        log_pi,
    )
    np.testing.assert_allclose(have, want, rtol=1e-12)
    stopped = np.where(A[:, None] > 0, rho > 1.28, rho < 0.8)
    np.testing.assert_allclose(gradient, np.where(stopped, 0, -rho * A[:, None]), rtol=1e-12)
    assert stopped.any() and not stopped.all()


def test_which_responses_are_distilled():
    correct = np.array([[True, False, True], [False, False, False], [True, True, True]])
    want = {"none": np.ones_like(correct), "response": ~correct, "group": np.array([[False], [True], [False]])}
    for guide, mask in want.items():
        np.testing.assert_array_equal(kd.guided_mask(correct, guide), np.broadcast_to(mask, correct.shape))
    np.testing.assert_array_equal(kd.mastered(correct), [False, False, True])


@pytest.mark.slow
def test_kdrl():
    log_pi, log_teacher = RANDOM.normal(size=(2, 4, 3))
    A, mask = RANDOM.normal(size=4), np.ones((4, 3), bool)
    mask[0, 2] = mask[3] = False
    taught = np.array([True, False, True, True])
    gradient, nothing = in_float64(
        lambda x: (
            jax.grad(lambda x: kd.kdrl_loss(x, log_teacher, A, beta=0.3, distilled=taught, mask=mask))(x),
            jax.grad(lambda x: kd.kdrl_loss(x, log_teacher, A, beta=0.3, mask=np.zeros_like(mask)))(x),
        ),
        log_pi,
    )
    want = (-A[:, None] + 0.3 * taught[:, None] * (log_pi - log_teacher)) * mask / mask.sum()
    np.testing.assert_allclose(gradient, want, rtol=1e-11)
    assert (nothing == 0).all()


def test_kdrl_of_one_step_follows_reward_and_teacher():
    """By enumeration: with every action once, weighted by its probability, the gradient is that of the objective."""
    reward, log_teacher = RANDOM.normal(size=6), np.log(softmax(RANDOM.normal(size=6)))

    def sampled(z):
        log_pi = jax.nn.log_softmax(z)
        pi = jax.lax.stop_gradient(jnp.exp(log_pi))
        each = [
            kd.kdrl_loss(log_pi[i, None, None], log_teacher[i, None, None], reward[i, None], beta=0.4) for i in range(6)
        ]
        return jnp.sum(pi * jnp.stack(each))

    def objective(z):
        log_pi = jax.nn.log_softmax(z)
        return jnp.sum(jnp.exp(log_pi) * (-reward + 0.4 * (log_pi - log_teacher)))

    have, want = in_float64(lambda z: (jax.grad(sampled)(z), jax.grad(objective)(z)), Z)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)


def further(place):
    """Five cases in CI, the others for whoever has the time."""
    return [pytest.mark.slow] + [pytest.mark.exhaustive] * (place > 4)


ANCHORS = [*GENERATORS.items(), ("alpha", alpha(0.2))]


@pytest.mark.parametrize(
    ("name", "generator"),
    [pytest.param(*g, id=g[0], marks=further(i)) for i, g in enumerate(ANCHORS)],
)
def test_an_anchor_has_the_divergence_and_its_gradient(name, generator):
    """Of samples of the reference, which do not move: value and gradient of D_f(pi || reference) by enumeration."""
    given = generator if name == "alpha" else name

    def anchor(z):
        each = kd.dph_anchor(jax.nn.log_softmax(z), REFERENCE, generator=given)
        return jnp.sum(np.exp(REFERENCE) * each), each

    def exact(z):
        return jnp.sum(np.exp(REFERENCE) * generator.f(jax.nn.log_softmax(z) - REFERENCE))

    ((value, each), gradient), want = in_float64(
        lambda z: (jax.value_and_grad(anchor, has_aux=True)(z), jax.value_and_grad(exact)(z)), Z
    )
    np.testing.assert_allclose(value, want[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, want[1], rtol=0, atol=1e-12)
    assert (each >= -1e-15).all()
    same = in_float64(lambda z: kd.dph_anchor(z, z, generator=given), REFERENCE)
    np.testing.assert_allclose(same, 0, atol=1e-15)


@pytest.mark.slow
def test_anchors_of_a_policy_that_barely_moved():
    x = np.concatenate([10.0 ** RANDOM.uniform(-6, 0, 100), [0.0]]).astype(np.float32)
    x = np.concatenate([x, -x])
    for generator in ("forward_kl", "reverse_kl", "squared_hellinger"):
        assert (np.asarray(kd.dph_anchor(x, np.zeros_like(x), generator=generator)) >= 0).all()


@pytest.mark.slow
def test_didi_follows_the_integral():
    """With the exact ratio as the reward the gradient is that of the weighted KL; then the loss by its definition."""
    log_p = np.log(softmax(RANDOM.normal(size=(2, 6))))
    omega, density = np.array([2.0, 0.5]), np.array([0.3, 0.7])

    def integral(z):
        log_q = jax.nn.log_softmax(z)[None]
        return jnp.sum(omega[:, None] * jnp.exp(log_q) * (log_q - log_p))

    def sampled(z):
        """Times by their density and samples by their probability: a sum over both, each reward held fixed."""
        log_q = jnp.tile(jax.nn.log_softmax(z)[None], (2, 1))
        drawn = jax.lax.stop_gradient(density[:, None] * jnp.exp(log_q))
        R = jax.lax.stop_gradient(log_q - log_p)
        return jnp.sum(drawn * (omega / density)[:, None] * R * log_q)

    have, want = in_float64(lambda z: (jax.grad(sampled)(z), jax.grad(integral)(z)), Z)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)

    log_prob, reward, weight, of_time = np.exp(RANDOM.normal(size=(4, 3, 4)))
    mask = np.ones((3, 4), bool)
    mask[0, 1] = mask[2, 3] = False
    dirty = np.where(mask, reward, np.nan)
    gradient = in_float64(
        jax.grad(lambda x: kd.didi_loss(x, dirty, weight=weight, density=np.where(mask, of_time, 0), mask=mask)),
        log_prob,
    )
    advantage = in_float64(lambda r: kd.grpo_advantage(r, mask=mask), reward)
    np.testing.assert_allclose(gradient, np.where(mask, advantage * weight / of_time, 0) / mask.sum(), rtol=1e-11)


@pytest.mark.slow
def test_the_best_discriminator_is_the_log_ratio():
    """By enumeration: samples in the proportions of q and p; at log q - log p the cross-entropy is stationary."""
    q, p = np.array([1, 2, 5]), np.array([4, 2, 2])
    which_q, which_p = (np.repeat(np.arange(3), n)[None] for n in (q, p))
    logit = np.log(q / p)

    def loss(logit, smoothing):
        return kd.didi_discriminator_loss(logit[which_q], logit[which_p], smoothing=smoothing)

    plain, smoothed = in_float64(lambda x: [jax.grad(loss)(x, s) for s in (0.0, 0.1)], logit)
    np.testing.assert_allclose(plain, 0, atol=1e-15)
    assert np.abs(smoothed).max() > 1e-3
    logits, masked = RANDOM.normal(size=(2, 4)), np.array([[True, False, True, False], [False] * 4])
    have = in_float64(lambda x: kd.didi_reward(x, masked), np.where(masked, logits, np.nan))
    np.testing.assert_allclose(have, [logits[0, [0, 2]].mean(), 0], rtol=1e-12)


@pytest.mark.slow
def test_baseline_of_recent_samples():
    parts = [RANDOM.normal(size=n).astype(np.float32) for n in (3, 5, 1, 6, 2)]
    state, seen = kd.baseline_start(7), []
    for part in parts:
        mask = RANDOM.random(len(part)) < 0.7
        state = jax.jit(kd.baseline_update)(state, np.where(mask, part, np.nan), mask=mask)
        seen.extend(part[mask])
        np.testing.assert_allclose(kd.baseline_value(state), np.mean(seen[-7:]) if seen else 0, rtol=1e-5, atol=1e-7)
    assert len(seen) > 7


def test_a_baseline_in_a_compiled_loop():
    """Also in float64, where integers are longer: a state that comes out is what goes in."""
    values = np.arange(12.0).reshape(4, 3)

    def follow(values):
        return jax.lax.scan(lambda state, x: (kd.baseline_update(state, x), None), kd.baseline_start(5), values)[0]

    state = in_float64(follow, values)
    assert state.seen == 12 and sorted(state.values) == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kd.kdrl_loss(Z[None], Z[None], Z[:1], beta=0.1, kind="k1"),
            "kind: got 'k1', whose gradient as a loss",
        ),
        (lambda: kd.grpo_advantage(Z), "rewards: got float.*, expected a float array"),
        (lambda: kd.clipped_policy_loss(Z[None], Z[None], Z[:3]), r"advantage: got float.*\[3\], expected \[1, 6\]"),
        (lambda: kd.guided_mask(Z[None]), "mask: got float"),
        (lambda: kd.guided_mask(Z[None] > 0, "prompt"), "guide: got 'prompt', expected one of none, response, group"),
        (lambda: kd.dph_anchor(Z, Z, generator="kl"), "generator: got 'kl', expected one of reverse_kl"),
        (lambda: kd.didi_reward(Z[None], None), r"masked: got None, expected bool\[1, 6\]"),
        (lambda: kd.didi_reward(Z[None], Z[None]), r"masked: got float.*, expected bool\[1, 6\]"),
        (
            lambda: kd.f_distill_weights(Z, smallest=2.0, largest=1.0),
            "largest: got 1.0, expected a number above 0 and of at least 2",
        ),
        (lambda: kd.didi_loss(Z[None], Z[None], density=np.eye(1, 6)), "the smallest of density: got 0.0"),
        (lambda: kd.didi_loss(Z[None], Z[None], weight=-np.ones((1, 6))), "weight: got -1"),
        (lambda: kd.kdrl_beta(0, least=1.0), "least: got 1.0, expected a number"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
