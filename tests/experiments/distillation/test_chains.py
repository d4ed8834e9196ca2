"""Sequences of a Markov teacher and its students against enumeration, and the results on them."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from experiments.distillation import exposure_bias, gkd_grid
from experiments.distillation.chains import (
    Measures,
    best_forward,
    by_both,
    by_context,
    dirichlet_teacher,
    gkd_loss,
    measures,
    one_of,
    positions,
)
from tests.experiments.result_run import check_run

LENGTH = 3
TEACHER = dirichlet_teacher(4, symbols=3, concentration=0.7)
TEACHER = TEACHER._replace(start=np.random.default_rng(0).dirichlet(np.ones(9)))


def sequence_laws(log_pi):
    """Probabilities of all contexts followed by all sequences, and of the contexts at the end of each."""
    pi = np.exp(log_pi)
    laws, ends = [], []
    for start, symbols in product(range(9), product(range(3), repeat=LENGTH)):
        context, mass = start, TEACHER.start[start]
        for symbol in symbols:
            mass, context = mass * pi[context, symbol], context % 3 * 3 + symbol
        laws.append(mass)
        ends.append(context)
    return np.array(laws), np.array(ends)


def kl(a, b):
    return float((a * np.log(a / b)).sum())


def logits(params):
    return np.asarray(jax.nn.log_softmax(by_both(params)))


@pytest.mark.slow
def test_measures_are_those_of_all_sequences():
    with jax.enable_x64(True):
        s = logits(np.random.default_rng(1).normal(size=(2, 3, 3)))
        found = measures(s, TEACHER, LENGTH)
        (q, ends), (p, _) = (sequence_laws(x) for x in (s, TEACHER.log_p))
        assert found.forward == pytest.approx(kl(p, q), rel=1e-12)
        assert found.reverse == pytest.approx(kl(q, p), rel=1e-12)
        last = [np.bincount(ends, law, 9) for law in (p, q)]
        one = measures(s, TEACHER, 1).distance * 1, measures(s, TEACHER, 2).distance * 2
        at_the_end = found.distance * 3 - one[1]
        assert at_the_end == pytest.approx(np.abs(last[0] - last[1]).sum() / 2, rel=1e-9)
        given, own, reverse = positions(s, TEACHER, LENGTH)
        assert float(given.sum()) == pytest.approx(kl(p, q)) and float(reverse.sum()) == pytest.approx(kl(q, p))
        assert float(own[0]) == pytest.approx(float(given[0])) and abs(float(own[1] - given[1])) > 1e-4


@pytest.mark.slow
def test_only_through_visits_is_the_gradient_that_of_the_sequences():
    table = np.random.default_rng(2).normal(size=(2, 3, 3))

    def reverse(s, t):
        return kd.token_divergence("reverse_kl", s, t)

    with jax.enable_x64(True):
        whole, dropped = (
            jax.grad(lambda x, on=on: gkd_loss(by_both(x), TEACHER, reverse, 1.0, on, LENGTH))(table)
            for on in (1.0, 0.0)
        )
        p, _ = sequence_laws(TEACHER.log_p)
        for place in ((0, 1, 2), (1, 0, 0), (1, 2, 1)):
            step = np.zeros_like(table)
            step[place] = 1e-5
            ends = [kl(sequence_laws(logits(table + sign * step))[0], p) for sign in (1, -1)]
            assert whole[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
        assert float(jnp.abs(whole - dropped).max()) > 1e-2


@pytest.mark.slow
def test_the_best_student_by_forward_kl_is_stationary():
    def forward(s, t):
        return kd.token_divergence("forward_kl", s, t)

    with jax.enable_x64(True):
        best = best_forward(TEACHER, LENGTH)[:3]
        gradient = jax.grad(lambda x: gkd_loss(by_context(x), TEACHER, forward, 0.0, 0.0, LENGTH))
        assert float(jnp.abs(gradient(best)).max()) < 1e-12 < 1e-3 < float(jnp.abs(gradient(best + jnp.eye(3))).max())
        s, t = np.random.default_rng(3).normal(size=(2, 4, 3))
        kinds = [("jsd", {"beta": 0.3}), ("forward_kl", {})]
        chosen = one_of(kinds, np.array([0.0, 1.0]))(s, t)
        np.testing.assert_allclose(chosen, forward(s, t), rtol=1e-12)


def test_what_the_grid_compares():
    found = {cell: Measures(*np.ones((3, 2))) for cell in gkd_grid.cells()}
    found[gkd_grid.FORWARD, 0.0] = Measures(np.full(2, 0.5), np.full(2, 4.0), np.full(2, 0.2))
    found[gkd_grid.REVERSE, 0.0] = Measures(np.full(2, 3.0), np.full(2, 0.9), np.full(2, 0.1))
    found[gkd_grid.REVERSE, 0.5] = Measures(np.full(2, 3.0), np.full(2, 0.6), np.full(2, 0.1))
    found[gkd_grid.REVERSE, gkd_grid.WHOLE] = Measures(np.full(2, 3.0), np.full(2, 0.25), np.full(2, 0.5))
    got = {name: float(values[1]) for name, values in gkd_grid.compared(found, np.full(2, 0.4)).items()}
    assert got["gkd-off-policy-forward-kl"] == pytest.approx(0.1)
    assert got["gkd-tradeoff"] == pytest.approx(-0.1) and got["gkd-tradeoff-forward"] == pytest.approx(0.5)
    assert got["gkd-on-policy-small-help"] == pytest.approx(-np.log(4) / 3)
    assert got["gkd-on-policy-not-monotone"] == pytest.approx(-0.3)
    assert got["gkd-on-policy-best"] == pytest.approx(0.8) and got["minillm-reverse-kl"] == pytest.approx(0.3)
    assert got["gkd-dropped-gradient"] == pytest.approx(0.25)
    assert got["gkd-dropped-gradient-dominates"] == pytest.approx(0.75 - 0.4)


@pytest.mark.parametrize("module", [gkd_grid, exposure_bias])
def test_smoke_run(module, tmp_path):
    check_run(module, module.PRESETS["smoke"], tmp_path)
