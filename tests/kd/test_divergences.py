"""The registry of divergences: values, gradients, identities, limits, and what rounding and infinities do to them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd.divergences import DIVERGENCES, divergence, present, terms
from kd.generators import GENERATORS, alpha, f_divergence
from kd.rows import exp_remainder
from tests.kd.cases import CASES, in_float64, jsd, kl, name, softmax

RANDOM = np.random.default_rng(0)
S, T = 2 * RANDOM.normal(size=(2, 3, 7))
P, Q = softmax(T), softmax(S)


def quick_and_slow(cases, quick):
    return [pytest.param(*case, id=name(case), marks=[pytest.mark.slow] * (i >= quick)) for i, case in enumerate(cases)]


def total(kind, s=S, t=T, **kind_args):
    return in_float64(lambda s, t: kd.token_divergence(kind, s, t, **kind_args), s, t)


def test_every_divergence_has_a_case():
    assert {case[0] for case in CASES} == set(DIVERGENCES)


@pytest.mark.parametrize(("kind", "args", "phi"), CASES, ids=[name(case) for case in CASES])
def test_rows_are_the_formulas(kind, args, phi):
    row = divergence(kind, **args)
    have = in_float64(row.phi, np.log(P), np.log(Q))
    np.testing.assert_allclose(have - row.slope * (Q - P), phi(P, Q), rtol=1e-11, atol=1e-13)
    if kind != "f_divergence":  # whose generator is the user's
        assert (have >= 0).all()


@pytest.mark.parametrize(("kind", "args", "phi"), quick_and_slow(CASES, 4))
def test_gradients(kind, args, phi):
    tau, row = 1.7, divergence(kind, **args)

    def all_of_it(s, t):
        lp, lq = jax.nn.log_softmax(t / tau), jax.nn.log_softmax(s / tau)
        plain = jax.grad(lambda s: row.phi(lp, jax.nn.log_softmax(s / tau)).sum())(s)
        a = row.a(lp, lq)
        closed = (a - jnp.exp(lq) * a.sum(-1, keepdims=True)) / tau
        ours = jax.grad(lambda s, t: kd.token_divergence(kind, s, t, temperature=tau, **args).sum(), (0, 1))
        return plain, closed, *ours(s, t)

    plain, closed, ours, to_teacher = in_float64(all_of_it, S, T)
    # float64 finite differences of the textbook's formula
    h = 1e-5
    differences = np.zeros_like(S)
    for where in np.ndindex(S.shape):
        step = np.zeros_like(S)
        step[where] = h
        up, down = (phi(softmax(T / tau), softmax((S + sign * step) / tau)).sum() for sign in (1, -1))
        differences[where] = (up - down) / (2 * h)
    np.testing.assert_allclose(ours, closed, atol=1e-13)
    np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(ours, differences, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.sum(-1), 0, atol=1e-12)
    assert (to_teacher == 0).all()


@pytest.mark.parametrize(("kind", "args", "phi"), quick_and_slow(CASES, 2))
def test_zero_only_where_they_agree_and_indifferent_to_shifts_and_order(kind, args, phi):
    shift, order = np.array([[5.0], [-3.0], [100.0]]), RANDOM.permutation(7)

    def all_of_it(s, t):
        def value(s, t):
            return kd.token_divergence(kind, s, t, **args)

        same, gradient = jax.value_and_grad(lambda s: value(s, t).sum())(t)
        return value(s, t), value(s + shift, t - 2 * shift), value(s[:, order], t[:, order]), same, gradient

    value, shifted, permuted, same, gradient = in_float64(all_of_it, S, T)
    assert (value > 1e-3).all()
    np.testing.assert_allclose(shifted, value, rtol=1e-10)
    np.testing.assert_allclose(permuted, value, rtol=1e-12)
    assert abs(same) < 1e-12
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind, args", [("alpha_beta", {"alpha": 0.4, "beta": -0.9}), ("alpha", {"alpha": 0.3})])
def test_second_order(kind, args):
    """Near q = p every alpha- and AB-divergence is sum p^(alpha + beta - 2) (p - q)^2 / 2."""
    power = sum(args.values()) - 2 if "beta" in args else -1
    hessian = in_float64(lambda t: jax.hessian(lambda s: kd.token_divergence(kind, s, t, **args))(t), T[0])
    p = P[0]
    jacobian = np.diag(p) - np.outer(p, p)
    np.testing.assert_allclose(hessian, jacobian @ np.diag(p**power) @ jacobian, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_temperature_to_infinity_is_the_squared_error():
    value = total("forward_kl", temperature=1e4, tau_squared=True)
    centred = (T - T.mean(-1, keepdims=True)) - (S - S.mean(-1, keepdims=True))
    np.testing.assert_allclose(value, (centred**2).sum(-1) / (2 * S.shape[-1]), rtol=1e-3)


@pytest.mark.slow
def test_jensen_shannon_family():
    forward, reverse, plain = total("forward_kl"), total("reverse_kl"), total("jsd", beta=0.3)
    mirrored = total("jsd", T, S, beta=0.7)
    beta_small, beta_large = (total("jsd", beta=beta, normalize=True) for beta in (1e-6, 1 - 1e-6))
    np.testing.assert_allclose(mirrored, plain, rtol=1e-12)
    np.testing.assert_allclose(beta_small, forward, rtol=1e-4)
    np.testing.assert_allclose(beta_large, reverse, rtol=1e-4)
    # the special cases of others jump: theirs are the limits of the scaled divergence, not of this one
    assert (total("jsd", beta=0) == 0).all() and (total("jsd", beta=1.0) == 0).all()
    np.testing.assert_allclose(total("jsd", beta=0, normalize=True), forward)
    np.testing.assert_allclose(total("jsd", beta=1, normalize=True), reverse)
    # KL to a mixture whose weights are exchanged is another number
    exchanged = 0.1 * kl(P, 0.9 * P + 0.1 * Q) + 0.9 * kl(Q, 0.9 * P + 0.1 * Q)
    right = total("jsd", beta=0.1)
    np.testing.assert_allclose(right, jsd(P, Q, 0.1).sum(-1))
    assert (np.abs(exchanged.sum(-1) - right) > 0.1 * right).all()


@pytest.mark.slow
def test_bounds_at_disjoint_supports():
    s, t = np.array([0.0, 0.0, -np.inf]), np.array([-np.inf, -np.inf, 0.0])
    values = {
        kind: float(kd.token_divergence(kind, s, t, **args))
        for kind, args in (
            ("jsd", {"beta": 0.3}),
            ("skew_kl", {"alpha": 0.1}),
            ("skew_reverse_kl", {"alpha": 0.1}),
            ("total_variation", {}),
            ("squared_hellinger", {}),
            ("f_divergence", {"generator": "total_variation"}),
        )
    }
    entropy = -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    bounds = [entropy, -np.log(0.1), -np.log(0.1), 1, 2, 1]
    np.testing.assert_allclose(list(values.values()), bounds, rtol=1e-6)


def test_skew_without_skew():
    np.testing.assert_array_equal(total("skew_kl", alpha=0), total("forward_kl"))
    np.testing.assert_array_equal(total("skew_reverse_kl", alpha=0.0), total("reverse_kl"))
    np.testing.assert_allclose(total("skew_kl", alpha=1e-9), total("forward_kl"), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("at", [0.3, 0.7, 2.0, -0.5])
@pytest.mark.parametrize("line", [lambda x, e: (x, e), lambda x, e: (e, x), lambda x, e: (x, e - x)])
def test_ab_is_continuous_at_its_singular_lines(line, at):
    rows = [divergence("alpha_beta", alpha=a, beta=b) for a, b in (line(at, 0.0), line(at, 1e-5), line(at, -2e-4))]
    (limit, d_limit), *near = [
        (in_float64(row.phi, np.log(P), np.log(Q)), in_float64(row.a, np.log(P), np.log(Q))) for row in rows
    ]
    for (phi, a), tolerance in zip(near, (2e-4, 4e-3), strict=True):
        np.testing.assert_allclose(phi, limit, rtol=tolerance)
        np.testing.assert_allclose(a, d_limit, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(1e-3, 1e-3), (3e-4, -2e-4), (1e-3, 1.0), (1.0, 1e-3), (0.5, 1e-3 - 0.5)])
def test_ab_in_float32_near_its_singular_lines(a, b):
    """The textbook's form has lost all digits there."""
    row = divergence("alpha_beta", alpha=a, beta=b)
    want = in_float64(row.phi, np.log(P), np.log(Q))
    have = row.phi(*(jnp.log(jnp.asarray(x, jnp.float32)) for x in (P, Q)))
    np.testing.assert_allclose(have, want, rtol=1e-4)


@pytest.mark.slow
def test_identities():
    pairs = (
        (("forward_kl", {}), ("alpha_beta", {"alpha": 1, "beta": 0}), 1),
        (("reverse_kl", {}), ("alpha_beta", {"alpha": 0, "beta": 1}), 1),
        (("forward_kl", {}), ("alpha", {"alpha": 1}), 1),
        (("reverse_kl", {}), ("alpha", {"alpha": 0}), 1),
        (("squared_hellinger", {}), ("alpha_beta", {"alpha": 0.5, "beta": 0.5}), 0.5),
        (("l2", {}), ("alpha_beta", {"alpha": 1, "beta": 1}), 1),
        (("chi2_pq", {}), ("alpha", {"alpha": 2}), 2),
        (("chi2_qp", {}), ("alpha", {"alpha": -1}), 2),
    )
    for (kind, args), (other, others), factor in pairs:
        np.testing.assert_allclose(total(kind, **args), factor * total(other, **others), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("generator", [*GENERATORS, "alpha 0", "alpha 0.3", "alpha 1"])
def test_generators_are_the_divergences_of_their_names(generator):
    factor, kind, args, one = 1, generator, {}, generator
    if generator == "jensen_shannon":
        factor, kind = 2, "jsd"
    if generator.startswith("alpha"):
        args = {"alpha": float(generator.split()[1])}
        kind, one = "alpha", alpha(**args)
    row = f_divergence(one)
    f, derivative = one if generator.startswith("alpha") else GENERATORS[generator]
    x = np.log(Q / P)
    have, a = in_float64(lambda lp, lq: (row.phi(lp, lq), row.a(lp, lq)), np.log(P), np.log(Q))
    slope, by_u, at_one = in_float64(
        lambda x: (derivative(x), jax.vmap(jax.grad(lambda u: f(jnp.log(u))))(jnp.exp(x)), f(jnp.zeros(()))), x.ravel()
    )
    np.testing.assert_allclose(np.sum(have, -1), factor * total(kind, **args), rtol=1e-9)
    np.testing.assert_allclose(a.ravel(), Q.ravel() * slope, rtol=1e-9)
    np.testing.assert_allclose(slope, by_u, rtol=1e-9)
    assert at_one == 0


def test_kl_is_not_negative_in_any_precision():
    """KL of 1e-3 over a large vocabulary, computed in bfloat16 throughout, comes out below 0."""
    t = 3 * RANDOM.normal(size=50_000)
    s = t + 0.05 * RANDOM.normal(size=50_000)
    for kind in ("forward_kl", "reverse_kl"):
        for logits in ((s, t), (t + 1e-5 * s, t)):
            low = [jnp.asarray(x, jnp.bfloat16) for x in logits]
            exact = total(kind, *(np.asarray(x, np.float64) for x in low))
            have = float(kd.token_divergence(kind, *low))
            assert have >= 0
            np.testing.assert_allclose(have, exact, rtol=1e-3, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "args", "phi"), CASES, ids=[name(case) for case in CASES])
def test_bfloat16_logits(kind, args, phi):
    """Logits of a language model whose rounding is the only error: within 2e-2 of what float64 ones give."""
    t, s = 2 * RANDOM.normal(size=(2, 4, 5_000))
    exact = total(kind, s, t, **args)
    have = kd.token_divergence(kind, *(jnp.asarray(x, jnp.bfloat16) for x in (s, t)), **args)
    assert have.dtype == jnp.float32
    np.testing.assert_allclose(have, exact, rtol=2e-2)


@pytest.mark.slow
def test_excluded_entries():
    both = np.array([-np.inf, 0.3, 1.0]), np.array([-np.inf, 0.5, -1.0])
    student = np.array([0.1, -np.inf, 1.0]), np.array([0.2, 0.5, -1.0])
    teacher = student[::-1]
    for (kind, args, _), (s, t) in itertools.product(CASES[:6], (both, student, teacher)):
        value, gradient = jax.value_and_grad(lambda s: kd.token_divergence(kind, s, t, **args))(jnp.asarray(s))  # noqa: B023
        if t is both[1]:
            np.testing.assert_allclose(value, kd.token_divergence(kind, s[1:], t[1:], **args), rtol=1e-6)
        infinite = (kind == "forward_kl" and s is student[0]) or (kind == "reverse_kl" and t is student[0])
        assert bool(jnp.isposinf(value)) == infinite
        if kind != "reverse_kl" or not infinite:
            assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_masked_tokens_do_not_count_whatever_they_contain():
    mask = np.array([True, False, True])
    s, t = S.astype(np.float32), T.astype(np.float32)
    poisoned = [np.where(mask[:, None], x, poison) for x, poison in ((s, np.nan), (t, -np.inf))]

    def loss(s, t, mask):
        return kd.reduce_tokens(kd.token_divergence("jsd", s, t, mask=mask), mask)

    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(*poisoned, mask)
    want, want_gradient = both(s[mask], t[mask], None)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient[mask], want_gradient, rtol=1e-6)
    assert (gradient[1] == 0).all()
    value, gradient = both(*poisoned, np.zeros(3, bool))
    assert value == 0 and (gradient == 0).all()


def test_parts_of_a_batch_sum_to_the_whole():
    x, mask = RANDOM.normal(size=(4, 5)).astype(np.float32), RANDOM.random((4, 5)) < 0.6
    parts = sum(kd.reduce_tokens(x[i], mask[i], denominator=int(mask.sum())) for i in range(4))
    np.testing.assert_allclose(parts, kd.reduce_tokens(x, mask), rtol=1e-6)
    np.testing.assert_allclose(kd.reduce_tokens(x), x.mean(), rtol=1e-5)
    assert kd.reduce_tokens(x, denominator=0) == 0


@pytest.mark.slow
def test_same_under_jit_and_over_seeds():
    s, t = (np.stack([x, 2 * x]).astype(np.float32) for x in (S, T))
    plain = kd.token_divergence("skew_kl", s, t, temperature=2.0)
    traced = jax.jit(lambda tau: jax.vmap(lambda s, t: kd.token_divergence("skew_kl", s, t, temperature=tau))(s, t))
    np.testing.assert_allclose(traced(2.0), plain, rtol=1e-5)
    low = jax.grad(lambda s: kd.token_divergence("l2", s, t[0]).sum())(jnp.asarray(s[0], jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_elementwise_pieces():
    absent = jnp.array([-jnp.inf, 0.0])
    gradient = jax.grad(lambda lq: present(lambda lp, lq: (lq - lp) ** 2, absent, lq).sum())(absent)
    assert (gradient == 0).all()
    lp = jnp.log(jnp.array([0.2, 0.8]))
    by_log_p = jax.grad(lambda lp: terms(divergence("l2"), lp, jnp.log(jnp.array([0.5, 0.5]))).sum())(lp)
    assert (by_log_p == 0).all()
    x = np.array([-0.99, -0.1001, -0.0999, -1e-6, 1e-9, 0.05, 0.0999, 0.1001, 0.9])
    exact = [sum(v**n / math.factorial(n) for n in range(2, 30)) for v in x]
    np.testing.assert_allclose(in_float64(exp_remainder, x), exact, rtol=3e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.token_divergence("kl", S, T), "kind: got 'kl', expected one of forward_kl, "),
        (lambda: kd.token_divergence("jsd", S, T, beta=1.5), "beta: got 1.5, expected a number from 0 to 1"),
        (lambda: kd.token_divergence("jsd", S, T, beta=jnp.ones(())), "beta: got float32.., expected a Python number"),
        (lambda: kd.token_divergence("jsd", S, T, alpha=0.5), "jsd: got the arguments {'alpha': 0.5}"),
        (lambda: kd.token_divergence("skew_kl", S, T, alpha=1), "alpha: got 1, expected a number from 0 to below 1"),
        (lambda: kd.token_divergence("l2", S, T[:, :6]), r"t: got float64\[3, 6\], expected a float array \(..., V\)"),
        (lambda: kd.token_divergence("l2", S, T, common_vocab=8), "common_vocab: got 8, expected an integer"),
        (lambda: kd.token_divergence("l2", S, T, temperature=0), "temperature: got 0.0, expected a number above 0"),
        (lambda: kd.token_divergence("l2", S, T, mask=np.ones(3)), r"mask: got float64\[3\], expected bool\[3\]"),
        (lambda: kd.token_divergence("l2", S.tolist(), T), "s: got list, expected a float array"),
        (lambda: kd.reduce_tokens(S, denominator=-1), "denominator: got -1.0, expected a number of at least 0"),
        (lambda: kd.token_divergence("f_divergence", S, T, generator="kl"), "generator: got 'kl', expected one of"),
        (lambda: kd.token_divergence("alpha", S, T, alpha=float("nan")), "alpha: got nan, expected a number finite"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_vocabularies_of_different_sizes_are_cut_to_what_they_share():
    np.testing.assert_array_equal(total("l2", S, T[:, :6], common_vocab=5), total("l2", S[:, :5], T[:, :5]))
