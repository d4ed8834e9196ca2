"""TAID, AKL, f-DPG and f-DPO: their special cases, and where gradients must not go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.adaptive import akl, akl_weight, taid, taid_start, taid_update
from kd.generators import GENERATORS, alpha
from kd.sampled import f_dpg_loss, f_dpo_loss
from tests.kd.cases import in_float64, kl, softmax

RANDOM = np.random.default_rng(8)
S, T = 2 * RANDOM.normal(size=(2, 4, 9))


@pytest.mark.slow
def test_taid_between_student_and_teacher():
    def at(interpolation):
        return in_float64(jax.value_and_grad(lambda s, t: taid(s, t, interpolation).sum(), (0, 1)), S, T)

    (start, none), (end, forward), (value, between) = at(0.0), at(1.0), at(0.3)
    p, q = softmax(T), softmax(S)
    np.testing.assert_allclose(start, -(q * np.log(q)).sum(), rtol=1e-12)
    np.testing.assert_allclose(none[0], 0, atol=1e-14)
    np.testing.assert_allclose(end, -(p * np.log(q)).sum(), rtol=1e-12)
    np.testing.assert_allclose(forward[0], q - p, atol=1e-13)
    target = softmax(0.7 * S + 0.3 * T)
    np.testing.assert_allclose(value, -(target * np.log(q)).sum(), rtol=1e-12)
    np.testing.assert_allclose(between[0], q - target, atol=1e-13)
    assert all((gradient[1] == 0).all() for gradient in (none, forward, between))


def test_taid_where_both_exclude_an_entry():
    s, t = (np.concatenate([z, np.full((4, 1), -np.inf)], 1) for z in (S, T))
    for interpolation in (0.0, 0.3, 1.0):
        have, want = (
            in_float64(jax.value_and_grad(lambda s, t, x=interpolation: taid(s, t, x).sum()), *z)
            for z in ((s, t), (S, T))
        )
        np.testing.assert_allclose(have[0], want[0], rtol=1e-12)
        np.testing.assert_allclose(have[1], np.concatenate([want[1], np.zeros((4, 1))], 1), atol=1e-12)


@pytest.mark.slow
def test_taid_schedule():
    def run(losses):
        def step(state, inputs):
            state = taid_update(state, *inputs, steps=len(losses), rate=0.05)
            return state, state.interpolation

        return jax.lax.scan(step, taid_start(), (losses, jnp.arange(1, len(losses) + 1)))[1]

    losses = np.linspace(9.0, 0.1, 200).astype(np.float32)
    falling, rising = jax.jit(run)(losses), jax.jit(run)(losses[::-1].copy())
    for path in (falling, rising):
        assert (np.diff(path) >= 0).all() and path[-1] == 1
        assert (path >= 0.4 + 0.6 * np.arange(1, 201) / 200 - 1e-6).all()
    assert (falling >= rising).all() and (falling > rising).any()


def test_akl_against_its_definition():
    p, q = softmax(T), softmax(S)
    want = []
    for row_p, row_q in zip(p, q, strict=True):
        order = np.argsort(-row_p)
        head, mass = [order[0]], row_p[order[0]]
        for v in order[1:]:
            mass += row_p[v]
            if mass <= 0.5:
                head.append(v)
        gap = np.abs(row_p - row_q)
        w = gap[head].sum() / gap.sum()
        want.append(w * kl(row_p, row_q).sum() + (1 - w) * kl(row_q, row_p).sum())
    value, gradient, weight = in_float64(
        lambda s: (akl(s, T), jax.grad(lambda s: akl(s, T).sum())(s), akl_weight(s, jnp.asarray(T))), S
    )
    np.testing.assert_allclose(value, want, rtol=1e-11)
    # the weights are constants in the gradient
    both = in_float64(
        lambda s: [
            jax.grad(lambda s, k=k: kd.token_divergence(k, s, T).sum())(s) for k in ("forward_kl", "reverse_kl")
        ],
        S,
    )
    fixed = weight[:, None] * both[0] + (1 - weight[:, None]) * both[1]
    np.testing.assert_allclose(gradient, fixed, atol=1e-12)
    step = np.zeros_like(S)
    step[0, 1] = 1e-6
    up, down = (in_float64(lambda s: akl(s, T).sum(), S + sign * step) for sign in (1, -1))
    assert abs((up - down) / 2e-6 - gradient[0, 1]) > 1e-4


@pytest.mark.slow
def test_akl_where_they_agree_or_do_not_count():
    mask = np.array([True, False, True, True])
    s = np.where(mask[:, None], T, np.nan).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda s: akl(s, np.float32(T), mask=mask).sum()))(s)
    assert abs(value) < 1e-6 and np.isfinite(gradient).all() and (gradient[1] == 0).all()


def test_generators_are_had_from_kd():
    given = RANDOM.normal(size=(4, 5)).astype(np.float32)
    for generator in ("forward_kl", kd.GENERATORS["forward_kl"], kd.alpha(1.0)):
        np.testing.assert_allclose(
            kd.f_dpo_loss(*given, generator=generator), kd.f_dpo_loss(*given, generator="forward_kl"), rtol=1e-5
        )
    assert {"GENERATORS", "Generator", "alpha"} <= set(kd.__all__)


def test_akl_where_the_teacher_alone_excludes_an_entry():
    """As if it had e^-20 of the student's probability; in the limit of less, value and gradient are not finite."""
    out = np.zeros((4, 9), bool)
    out[[0, 2], [3, 7]] = True
    temperature = 2.0
    p, q = softmax(np.where(out, -np.inf, T) / temperature), softmax(S / temperature)
    least = np.where(out, q * np.exp(-20.0), p)
    log_p = np.log(least / least.sum(1, keepdims=True))

    def both(s, t):
        return jax.value_and_grad(lambda s: akl(s, t, temperature=temperature).sum())(s)

    have, want = (in_float64(both, S, t) for t in (np.where(out, -np.inf, T), temperature * log_p))
    assert np.isfinite(have[0])
    np.testing.assert_allclose(have[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(have[1], want[1], rtol=0, atol=1e-12)
    assert (have[1][out] > 0).all()  # away from what the teacher excludes
    excluded = in_float64(both, *(np.where(out, -np.inf, z) for z in (S, T)))
    assert np.isfinite(excluded[0]) and np.isfinite(excluded[1]).all()


GENERATORS_AND_ALPHA = [*GENERATORS.items(), ("alpha", alpha(0.3))]


@pytest.mark.parametrize(
    ("name", "generator"),
    [pytest.param(*g, id=g[0], marks=[pytest.mark.slow] * (i > 1)) for i, g in enumerate(GENERATORS_AND_ALPHA)],
)
def test_f_dpg_has_the_gradient_of_the_divergence(name, generator):
    """By enumeration: with every state once and a uniform proposal the mean is the expectation."""
    z, log_p = S[0], np.log(softmax(T[0]))
    uniform = np.full(9, -np.log(9.0))

    def sampled(z, baseline):
        log_pi = jax.nn.log_softmax(z)
        return f_dpg_loss(log_pi, log_p, uniform, generator=generator, baseline=baseline)

    def exact(z):
        log_pi = jax.nn.log_softmax(z)
        return jnp.sum(jnp.exp(log_p) * generator.f(log_pi - log_p))

    plain, shifted, want = in_float64(
        lambda z: (jax.grad(sampled)(z, 0.0), jax.grad(sampled)(z, 0.7), jax.grad(exact)(z)), z
    )
    np.testing.assert_allclose(plain, want, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(shifted, want, rtol=1e-10, atol=1e-14)


def test_f_dpo():
    given = RANDOM.normal(size=(4, 5))
    better, worse = given[0] - given[2], given[1] - given[3]

    def all_of_it(*x):
        kinds = ["reverse_kl", "forward_kl", alpha(0.0), alpha(1.0)]
        return [jax.value_and_grad(f_dpo_loss, (0, 3))(*x, beta=0.3, generator=g) for g in kinds]

    dpo, forward, zero, one = in_float64(all_of_it, *given)
    np.testing.assert_allclose(dpo[0], np.log1p(np.exp(-0.3 * (better - worse))).mean(), rtol=1e-12)
    np.testing.assert_allclose(zero[0], dpo[0], rtol=1e-12)
    np.testing.assert_allclose(one[0], forward[0], rtol=1e-12)
    np.testing.assert_allclose(
        forward[0], np.log1p(np.exp(-0.3 * (np.exp(-worse) - np.exp(-better)))).mean(), rtol=1e-12
    )
    assert (np.abs(dpo[1][0]) > 0).all() and (dpo[1][1] == 0).all()
    # Log ratios of whole sequences are large.
    far = in_float64(all_of_it, *(40 * given))[0]
    np.testing.assert_allclose(far[0], np.log1p(np.exp(-12 * (better - worse))).mean(), rtol=1e-12)


@pytest.mark.slow
def test_masked_samples():
    given = RANDOM.normal(size=(4, 5)).astype(np.float32)
    mask = np.array([True, False, True, True, False])
    losses = [
        lambda a, b, c, d, m: f_dpg_loss(a, b, c, mask=m),
        lambda a, b, c, d, m: f_dpo_loss(a, b, c, d, generator="forward_kl", mask=m),
    ]
    for loss in losses:
        both = jax.jit(jax.value_and_grad(loss))
        few, dirty, none = (
            both(*given[:, mask], mask[mask]),
            both(*np.where(mask, given, np.nan), mask),
            both(*np.full_like(given, np.inf), np.zeros_like(mask)),
        )
        np.testing.assert_allclose(dirty[0], few[0], rtol=1e-6)
        np.testing.assert_allclose(dirty[1][mask], few[1], rtol=1e-5, atol=1e-7)
        assert (dirty[1][~mask] == 0).all() and none[0] == 0 and (none[1] == 0).all()


@pytest.mark.slow
def test_ratios_far_out_stay_finite():
    far = np.array([-500.0, 500.0], np.float32)
    zero = np.zeros(2, np.float32)
    for generator in GENERATORS:
        value, gradient = jax.value_and_grad(f_dpo_loss)(far, -far, zero, zero, generator=generator)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert np.isfinite(jax.grad(f_dpg_loss)(far, zero, generator=generator)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: taid(S, T, 1.5), "interpolation: got 1.5, expected a number of at least 0 and of at most 1"),
        (lambda: akl(S, T, mu=0.0), "mu: got 0.0, expected a number above 0"),
        (lambda: f_dpg_loss(S[0], T[0], generator="kl"), "generator: got 'kl', expected one of reverse_kl"),
        (lambda: f_dpo_loss(S[0], T[0], S[0], T[:2]), "worse_reference: got float"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
