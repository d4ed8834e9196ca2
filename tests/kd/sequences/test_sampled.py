"""MiniLLM, sequence-level distillation and GKD on the tree of all sequences: exact gradients, and what is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from tests.kd.cases import in_float64, softmax
from tests.kd.sequences.tree import PREFIXES, V, chances, divergence, expected

RANDOM = np.random.default_rng(31)
STUDENT, TEACHER = RANDOM.normal(size=(2, PREFIXES, V))
TOKENS = np.zeros((1, PREFIXES), int)


def student(table, other):
    return table


def teacher(table, other):
    return other


def mixed(table, other):
    return kd.teacher_mixed_logits(table, other, alpha=0.4)


def minillm(mixture, **args):
    def loss(s, t, y, m):
        proposal = None
        if mixture:
            proposal = kd.token_log_probs(kd.teacher_mixed_logits(s, t, alpha=0.4), y, mask=m)
        return kd.minillm(s, t, y, log_proposal=proposal, mask=m, denominator=1.0, length_normalized=False, **args)

    return loss


def test_minillm_has_the_gradient_of_whole_sequences():
    """From samples of the student, and of the mixture with products of ratios; one step ahead is not all of it."""

    def gradients(table, other):
        def one_step(s, t, y, m):
            return kd.gkd(s, t, beta=1, mask=m, denominator=1.0)

        return [
            jax.grad(f)(table, other)
            for f in (
                divergence,
                expected(student, minillm(False)),
                expected(mixed, minillm(True, importance="prefix")),
                expected(mixed, minillm(True)),
                expected(student, one_step),
            )
        ]

    want, own, products, ratios, one_step = in_float64(gradients, STUDENT, TEACHER)
    np.testing.assert_allclose(own, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(products, want, rtol=0, atol=1e-12)
    assert np.abs(ratios - want).max() > 1e-3  # the paper's approximation
    assert np.abs(one_step - want).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("importance", [None, "token"])
def test_minillm_by_its_formula(importance):
    s, t = RANDOM.normal(size=(2, 2, 4, 5))
    y, mask = RANDOM.integers(0, 5, (2, 4)), np.array([[True] * 4, [True, True, True, False]])
    chosen = [np.take_along_axis(np.log(softmax(z)), y[..., None], -1)[..., 0] for z in (s, t)]
    log_proposal = np.log(RANDOM.random((2, 4)))
    proposal = None if importance is None else log_proposal
    have = in_float64(jax.grad(lambda s: kd.minillm(s, t, y, log_proposal=proposal, mask=mask)), s)
    weight = np.ones((2, 4)) if importance is None else np.exp(chosen[0] - log_proposal)
    p, q = softmax(t), softmax(s)
    want = np.zeros_like(s)
    for b, length in ((0, 4), (1, 3)):
        r = (chosen[1] - chosen[0])[b, :length]
        for i in range(length):
            gap = np.log(q[b, i] / p[b, i])
            want[b, i] = q[b, i] * (gap - (q[b, i] * gap).sum())
            if i + 1 < length:
                want[b, i] -= r[i + 1 :].mean() * (np.eye(5)[y[b, i]] - q[b, i])
            want[b, i] *= weight[b, i]
    np.testing.assert_allclose(have, want / 7, rtol=0, atol=1e-12)


def test_minillm_where_the_teacher_alone_excludes_an_entry():
    """Of the sampled token, or of another: as if it had e^-20 of the student's probability."""
    s, t = RANDOM.normal(size=(2, 1, 3, 5))
    y, out = np.array([[1, 0, 4]]), np.zeros((1, 3, 5), bool)
    out[0, [0, 1], [1, 2]] = True
    p = softmax(np.where(out, -np.inf, t))
    log_p = np.log(np.where(out, softmax(s) * np.exp(-20.0), p))

    def both(s, t):
        return jax.value_and_grad(lambda s: kd.minillm(s, t, y))(s)

    have, want = in_float64(both, s, np.where(out, -np.inf, t)), in_float64(both, s, log_p)
    assert np.isfinite(have[0])
    np.testing.assert_allclose(
        have[0], want[0], rtol=1e-8
    )  # r is clipped at 20 exactly, beside a sum that is 1 + e^-20
    np.testing.assert_allclose(have[1], want[1], rtol=0, atol=1e-7)
    assert (have[1][out] > 0).all()


@pytest.mark.slow
def test_sequences_of_the_teacher():
    """Their cross-entropy has the gradient of KL(teacher || student); so, weighted, do those of the student."""

    def cross_entropy(weighted):
        def loss(s, t, y, m):
            weights = None
            if weighted:
                log_ratio = kd.token_log_probs(t, y, mask=m) - kd.token_log_probs(s, y, mask=m)
                weights = jnp.exp(log_ratio.sum(1))
            return kd.sequence_kd(s, y, weights=weights, mask=m, denominator=1.0)

        return loss

    def gradients(table, other):
        return [
            jax.grad(f)(table, other)
            for f in (
                lambda s, t: divergence(t, s),
                expected(teacher, cross_entropy(False)),
                expected(student, cross_entropy(True)),
            )
        ]

    want, have, weighted = in_float64(gradients, STUDENT, TEACHER)
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weighted, want, rtol=0, atol=1e-12)

    def values(table, other):
        entropy = -jnp.sum(jnp.exp(chances(other, counted=False)) * chances(other))
        return expected(teacher, cross_entropy(False))(table, other), divergence(other, table) + entropy

    np.testing.assert_allclose(*in_float64(values, STUDENT, TEACHER), rtol=1e-12)


@pytest.mark.slow
def test_the_ends_of_beta():
    s, t = STUDENT, TEACHER

    def values(s, t):
        def at(beta, ends):
            return kd.gkd(s, t, beta=beta, ends=ends)

        forward, reverse = (kd.token_divergence(k, s, t).mean() for k in ("forward_kl", "reverse_kl"))
        betas = (0, 1e-4, 0.5, 1 - 1e-4, 1)
        return forward, reverse, [[at(b, e) for b in betas] for e in ("kl", "limit", "normalize")]

    forward, reverse, (released, limit, whole) = in_float64(values, s, t)
    np.testing.assert_allclose([released[0], released[-1]], [forward, reverse], rtol=1e-12)
    np.testing.assert_allclose([limit[0], limit[-1]], 0)
    np.testing.assert_allclose(released[1:4], limit[1:4], rtol=1e-12)
    assert released[1] < 2e-4 * released[0] and released[3] < 2e-4 * released[4]  # the jump
    np.testing.assert_allclose([whole[0], whole[-1]], [forward, reverse], rtol=1e-12)
    np.testing.assert_allclose([whole[1], whole[3]], [forward, reverse], rtol=1e-2)
    np.testing.assert_allclose(whole[2], 4 * limit[2], rtol=1e-12)


@pytest.mark.slow
def test_schedule_of_distillm():
    def run(losses):
        def step(state, loss):
            state = kd.distillm_update(state, loss)
            return state, state.fraction

        return jax.lax.scan(step, kd.distillm_start(), losses)[1]

    losses = np.array([3.0, 2.0, 3.05, 3.11, 3.16, 3.25, 1.0, 9.0], np.float32)
    # 3.0 is the first; 3.11 has risen from it, 3.16 not from 3.11, 3.25 has, and so has 9
    np.testing.assert_allclose(jax.jit(run)(losses), [0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.3], atol=1e-6)
    rising = jax.jit(run)(np.arange(15.0, dtype=np.float32))
    assert rising[-1] == 1 and (np.diff(rising) >= 0).all()
    share = np.asarray(kd.own_sequences(jax.random.key(3), 0.3, 10_000)).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.21 / 10_000)


@pytest.mark.slow
def test_returns():
    r, mask = RANDOM.normal(size=(3, 6)), RANDOM.random((3, 6)) < 0.7
    plain, mean = in_float64(
        lambda r: [kd.returns_after(r, normalize=n, mask=mask) for n in (False, True)], np.where(mask, r, np.nan)
    )
    for i in np.ndindex(3, 6):
        after = r[i[0], i[1] + 1 :][mask[i[0], i[1] + 1 :]]
        np.testing.assert_allclose(plain[i], after.sum() * mask[i], rtol=1e-11, atol=1e-15)
        np.testing.assert_allclose(mean[i], after.mean() * mask[i] if after.size else 0, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.gkd(STUDENT, TEACHER, beta=2.0), "beta: got 2.0, expected a number from 0 to 1"),
        (lambda: kd.gkd(STUDENT, TEACHER, ends="trl"), "ends: got 'trl', expected one of kl, limit, normalize"),
        (lambda: kd.token_log_probs(STUDENT, np.full(13, 3)), "tokens: got 3 at .0., expected labels from 0 to 2"),
        (lambda: kd.sequence_kd(STUDENT, np.zeros(13, int)), "s: got float.*, expected a float array .B, T, V."),
        (lambda: kd.minillm(STUDENT[None], TEACHER[None], TOKENS, importance="x"), "importance: got 'x'"),
        (lambda: kd.teacher_mixed_logits(STUDENT, TEACHER, alpha=-0.1), "alpha: got -0.1"),
        (lambda: kd.distillm_update(kd.distillm_start(), 1.0, increment=0.0), "increment: got 0.0"),
        (lambda: kd.own_sequences(jax.random.key(0), 1.5, 2), "fraction: got 1.5"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
