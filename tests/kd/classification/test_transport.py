"""SinKD and Sinkhorn's iterations: limits, marginals, invariances, and what the absolute value does at ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kd.classification import sinkd, sinkd_sample_wise, sinkhorn
from kd.classification.potentials import potentials
from kd.classification.sinkhorn import l1_costs
from tests.kd.cases import in_float64, softmax

RANDOM = np.random.default_rng(6)
B, C = 8, 5
S, T = 3 * RANDOM.normal(size=(2, B, C))
COST = np.abs(softmax(S / 2)[:, None] - softmax(T / 2)[None]).sum(2)


def test_costs_and_their_gradient():
    x, y, g = softmax(S), softmax(T)[:3], RANDOM.normal(size=(B, 3))
    y[0] = x[0]  # a tie, at which the absolute value has no gradient

    def all_of_it(x, y):
        cost, pull = jax.vjp(l1_costs, x, y)
        return cost, *pull(jnp.asarray(g))

    cost, dx, dy = in_float64(all_of_it, x, y)
    signs = np.sign(x[:, None] - y[None])
    np.testing.assert_allclose(cost, np.abs(x[:, None] - y[None]).sum(2), rtol=1e-13)
    np.testing.assert_allclose(dx, (g[..., None] * signs).sum(1), atol=1e-13)
    np.testing.assert_allclose(dy, -(g[..., None] * signs).sum(0), atol=1e-13)


def test_one_sample_is_twice_the_total_variation():
    value = in_float64(lambda s: sinkd(s, T[:1]), S[:1])
    np.testing.assert_allclose(value, np.abs(softmax(S[:1] / 2) - softmax(T[:1] / 2)).sum(), rtol=1e-12)


def test_plan():
    """Columns are exact, rows nearly; both domains are the same; and it is the released arithmetic."""
    logs, exps = in_float64(lambda W: (sinkhorn(W), sinkhorn(W, log_domain=False)), COST)
    np.testing.assert_allclose(logs, exps, rtol=1e-9)
    np.testing.assert_allclose(logs.sum(0), 1, rtol=1e-12)
    np.testing.assert_allclose(logs.sum(1), 1, atol=0.02)
    plan = np.exp(-COST / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    np.testing.assert_allclose(exps, plan, rtol=1e-11)
    a, b = RANDOM.dirichlet(np.ones(B)), RANDOM.dirichlet(np.ones(3))
    both = in_float64(lambda W: [sinkhorn(W, a, b, n_iters=300, log_domain=d) for d in (True, False)], COST[:, :3])
    for plan in both:
        np.testing.assert_allclose(plan.sum(0), b, rtol=1e-9)
        np.testing.assert_allclose(plan.sum(1), a, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [2.0, 15.0, 300.0])
def test_potentials_and_their_gradient(spread):
    """Products of exponentials where these are in range, logarithms elsewhere: the iterations and their gradient."""
    L = -spread * RANDOM.random((5, 4))
    log_a, log_b, *g = (np.log(RANDOM.dirichlet(np.ones(n))) for n in (5, 4, 5, 4))

    def iterated(L, log_a, log_b):
        g = jnp.zeros_like(log_b)
        for _ in range(6):
            f = log_a - jax.nn.logsumexp(L + g[None], axis=1)
            g = log_b - jax.nn.logsumexp(L + f[:, None], axis=0)
        return f, g

    def value_and_gradients(iterate):
        def of(*x):
            found, pull = jax.vjp(iterate, *x)
            return found, pull((jnp.asarray(g[0]), jnp.asarray(g[1])))

        return in_float64(of, L, log_a, log_b)

    have, want = (value_and_gradients(f) for f in (lambda *x: potentials(6, *x), iterated))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11), have, want)


def test_limits_of_the_entropy():
    large, small = in_float64(lambda s: (sinkd(s, T, eps=1e4), sinkd(s, T, eps=2e-3, n_iters=500)), S)
    np.testing.assert_allclose(large, B * COST.mean(), rtol=1e-3)
    np.testing.assert_allclose(small, COST[linear_sum_assignment(COST)].sum(), rtol=2e-3)


def test_order_and_shifts_of_the_rows_do_not_matter():
    order, shift = RANDOM.permutation(B), RANDOM.normal(size=(B, 1))
    value, permuted, shifted = in_float64(lambda s: (sinkd(s, T), sinkd(s[order], T), sinkd(s + shift, T - shift)), S)
    np.testing.assert_allclose([permuted, shifted], value, rtol=1e-5)  # 20 iterations do not end where they begin
    np.testing.assert_allclose(shifted, value, rtol=1e-12)


@pytest.mark.slow
def test_float32_far_below_the_costs():
    value, gradient = jax.jit(jax.value_and_grad(lambda s: sinkd(s, np.float32(T), eps=1e-3)))(np.float32(100 * S))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # where the kernel itself is 0
    far = np.full((2, 2), 2.0, np.float32)
    assert np.isnan(jax.jit(lambda W: sinkhorn(W, eps=0.01, log_domain=False))(far)).all()
    np.testing.assert_allclose(jax.jit(lambda W: sinkhorn(W, eps=0.01))(far), 0.5, rtol=1e-5)


@pytest.mark.slow
def test_debiased():
    def both(s, t, **args):
        return jax.value_and_grad(lambda s: sinkd(s, t, **args))(s)

    # Both as arguments: a teacher that is a constant is folded with another rounding, and then nothing ties.
    biased, (value, gradient) = in_float64(lambda s, t: (both(s, t), both(s, t, debiased=True)), T, T)
    assert biased[0] > 1e-3 and np.abs(biased[1]).max() > 1e-4
    assert abs(value) < 1e-12 and np.abs(gradient).max() < 1e-4


@pytest.mark.slow
def test_gradients():
    """Through the plan by finite differences, with a fixed one by its formula; none into the teacher."""
    through, fixed, to_teacher, plan = in_float64(
        lambda s, t: (
            jax.grad(sinkd)(s, t),
            jax.grad(lambda q: sinkd(2 * jnp.log(q), t, detach_plan=True))(jax.nn.softmax(s / 2)),
            jax.grad(sinkd, 1)(s, t),
            sinkhorn(jnp.asarray(COST)),
        ),
        S,
        T,
    )
    step = np.zeros_like(S)
    step[2, 1] = 1e-6
    up, down = in_float64(lambda s: (sinkd(s + step, T), sinkd(s - step, T)), S)
    np.testing.assert_allclose(through[2, 1], (up - down) / 2e-6, rtol=1e-5)
    assert (to_teacher == 0).all()
    q, p = softmax(S / 2), softmax(T / 2)
    by_probability = (plan[..., None] * np.sign(q[:, None] - p[None])).sum(1)
    # softmax(log q) is q / sum q
    np.testing.assert_allclose(
        fixed, by_probability - (by_probability * q).sum(1, keepdims=True), rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_sample_wise():
    """With a cost of 1 between different classes and little entropy it is the total variation."""
    cost = 1.0 - np.eye(C)
    value = in_float64(lambda s: sinkd_sample_wise(s, T, cost, eps=5e-3, n_iters=5000), S)
    np.testing.assert_allclose(value, np.abs(softmax(S / 2) - softmax(T / 2)).sum() / 2, rtol=1e-3)
    value, gradient = jax.jit(jax.value_and_grad(sinkd_sample_wise))(np.float32(S), np.float32(T))
    assert value > 0 and np.isfinite(gradient).all()


@pytest.mark.slow
def test_sample_wise_of_certain_outputs():
    """Masses that are 0 in float32: transport between what is left, with a gradient."""
    s, t = np.float32([[600.0, 0.0, 0.0], [1.0, 0.0, -np.inf]]), np.float32([[0.0, 1.0, 2.0], [0.0, 1.0, -np.inf]])
    both = jax.jit(jax.value_and_grad(sinkd_sample_wise))
    for one, other in ((s, t), (t, s)):
        value, gradient = both(one, other)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(both(t[:1], s[:1])[0], sinkd_sample_wise(t[:1], np.float32([[60, 0, 0]])), rtol=1e-5)


@pytest.mark.slow
def test_against_ott():
    """The same plan by another library, whose masses sum to 1."""
    pytest.importorskip("ott", reason="ott-jax is not installed")
    from ott.geometry import geometry
    from ott.solvers import linear

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        problem = geometry.Geometry(cost_matrix=jnp.asarray(COST), epsilon=0.1)
        theirs = np.asarray(linear.solve(problem, threshold=1e-10, max_iterations=5000).matrix)
    ours = in_float64(lambda W: sinkhorn(W, n_iters=2000), COST)
    np.testing.assert_allclose(ours, B * theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkd(S, T, eps=0.0), "eps: got 0.0, expected a number above 0"),
        (lambda: sinkd(S, T, n_iters=0), "n_iters: got 0, expected an integer of at least 1"),
        (lambda: sinkhorn(COST, np.ones(3)), r"a: got float..\[3\], expected a float array of the 8 sums of cost"),
        (lambda: sinkhorn(COST, np.arange(-1.0, 7.0), np.ones(8)), "a: got -1, expected no number below 0"),
        (lambda: sinkhorn(COST, 2 * np.ones(8)), "b: got a mass of 8, expected that of a, 16"),
        (lambda: sinkhorn(COST[:3]), "b: got a mass of 8, expected that of a, 3"),
        (
            lambda: sinkd_sample_wise(S, T, COST),
            r"cost: got float..\[8, 8\], expected a float array \(C, C\) = \(5, 5\)",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
