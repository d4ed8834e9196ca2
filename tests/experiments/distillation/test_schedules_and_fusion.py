"""TAID's schedule, AKL's head and tail, and fused n-grams: what is trained, fused and compared."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest

from experiments.distillation import akl_gaps, fusion_ngrams, taid_schedule
from experiments.distillation.chains import Measures, best_forward, dirichlet_teacher, measures
from experiments.distillation.fusion_ngrams import Found, Models, bigram, models
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_taid_moves_along_its_line_and_lambda_1_is_forward_kl():
    config = replace(taid_schedule.PRESETS["smoke"], rate=0.1)
    teacher = jax.tree.map(np.float32, dirichlet_teacher(1, symbols=3, concentration=1.0))

    def both(adaptive, fixed):
        return taid_schedule.trained(config, 400, teacher, adaptive, fixed)

    found, shares = jax.jit(jax.vmap(both))(np.array([1.0, 0.0, 0.0]), np.array([-1.0, 1.0, 0.25]))
    np.testing.assert_allclose(shares[0], 0.4 + 0.6 * np.arange(400) / 400, atol=1e-6)
    assert set(np.asarray(shares[1])) == {1.0} and set(np.asarray(shares[2])) == {0.25}
    least = measures(best_forward(teacher, config.length), teacher, config.length).forward
    assert float(found.forward[1]) == pytest.approx(float(least), abs=1e-4)
    assert float(found.forward[2]) > float(least) + 1e-3


def test_what_taid_is_compared_with():
    names = taid_schedule.SCHEDULES
    short = {name: Measures(*np.full((3, 2), 1.0 + place)) for place, name in enumerate(names)}
    long = {name: Measures(*np.full((3, 2), 10.0 * place)) for place, name in enumerate(names)}
    ahead = {"ahead": np.array([0.1, 0.2])}
    got = {name: float(x[0]) for name, x in taid_schedule.compared(short | ahead, long | ahead).items()}
    assert got["interpolation"] == -2 and got["over-forward-kl"] == got["no-cost"] == -6 and got["over-line"] == -10
    assert got["on-the-line"] == got["off-the-line"] == 0.1


@pytest.mark.slow
def test_gaps_of_a_descent():
    random = np.random.default_rng(0)
    s, t = random.normal(size=(2, 2, 12))
    head = akl_gaps.heads(t)
    paths = jax.tree.map(np.asarray, akl_gaps._program(2, 0.5)(s, t, head))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (t, s))
    surprise = np.log(q / p)
    reverse = q * (surprise - (q * surprise).sum(1, keepdims=True))
    for name, step in ((akl_gaps.FORWARD, q - p), (akl_gaps.REVERSE, reverse)):
        after = np.exp(s - 0.5 * step)
        gap = np.abs(p - after / after.sum(1, keepdims=True))
        np.testing.assert_allclose(paths[name][0], [(np.abs(p - q) * x).sum(1) for x in (head, ~head)], rtol=1e-4)
        np.testing.assert_allclose(paths[name][1], [(gap * x).sum(1) for x in (head, ~head)], rtol=1e-4)
    gaps = [paths[name][1] for name in akl_gaps.OBJECTIVES]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in pairwise(gaps))


def test_a_source_of_order_1_is_its_own_bigram():
    z = np.random.default_rng(1).normal(size=(3, 3))
    log_q, share = bigram(np.tile(z, (3, 1, 1)))
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    np.testing.assert_allclose(log_q, np.tile(log_p, (3, 1)), rtol=1e-12)
    assert share.sum() == pytest.approx(1) and share.reshape(3, 3).sum(0) == pytest.approx(share.reshape(3, 3).sum(1))


@pytest.mark.slow
def test_fused_models_against_numpy():
    config = fusion_ngrams.PRESETS["smoke"]
    given = models(config, 2, 0.5)
    found = fusion_ngrams._program()(jax.tree.map(np.float32, given))

    def distance(z):
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (given.oracles[0], z))
        return given.shares[0] @ (p * np.log(p / q)).sum(1)

    moved = given.experts - given.small
    assert float(found.constants[0]) == pytest.approx(distance(given.large), rel=1e-4)
    assert float(found.constants[15]) == pytest.approx(distance(given.large + 1.5 * moved[0]), rel=1e-4)
    assert float(found.halves) == pytest.approx(distance(given.large + moved.sum(0) / 2), rel=1e-4)
    # a large model that is the small one has its expert at alpha 1 exactly
    same = Models(given.small, given.small, given.experts, given.experts, given.shares)
    exact = fusion_ngrams._program()(jax.tree.map(np.float32, same))
    assert abs(float(exact.dynamic)) < 1e-6 and float(exact.alpha) == pytest.approx(1, abs=1e-6)


def test_what_is_compared_of_fused_models():
    constants = np.linspace(2.0, 1.0, fusion_ngrams.POINTS)[None]
    here = Found(constants, np.array([0.5]), np.ones(1), np.array([3.0]), np.array([2.0]), np.array([0.7]))
    found = {0.0: here, 0.5: here, 1.0: here._replace(dynamic=np.array([1.5]))}
    got = {name: float(x[0]) for name, x in fusion_ngrams.compared(found).items()}
    assert got["dynamic-beats-fixed"] == -1.0 and got["dynamic-beats-constant"] == -0.5
    assert got["closes-gap"] == 0.75 and got["better-small-models"] == 0.5
    assert got["two-experts"] == -1.0 and got["right-expert"] == 0.7


@pytest.mark.parametrize("module", [taid_schedule, akl_gaps, fusion_ngrams])
def test_smoke_run(module, tmp_path):
    check_run(module, module.PRESETS["smoke"], tmp_path)
