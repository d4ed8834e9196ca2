"""The bandit of DPH-RL: Pass@k by enumeration, what anchors do, and what claims compare."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import pass_at_k
from experiments.distillation.pass_at_k import ANCHORS, FORWARD, NOTHING, REVERSE, SHANNON, anchored, bandit, pass_at
from tests.experiments.result_run import check_run

SMOKE = pass_at_k.PRESETS["smoke"]


def test_pass_at_k_counts_all_draws():
    base, correct = bandit(SMOKE, 3)
    passed = []
    for prompt, answers in enumerate(correct):
        draws = product(range(4), repeat=3)
        share = {draw: np.exp(base[prompt, list(draw)].sum()) for draw in draws}
        passed += [sum(p for draw, p in share.items() if answer in draw) for answer in answers]
    assert float(pass_at(base, correct, 3)) == pytest.approx(np.mean(passed), rel=1e-5)


@pytest.mark.slow
def test_expected_gradients_of_the_anchors():
    config = replace(SMOKE, prompts=1)
    base, _ = bandit(config, 1)
    z = jnp.array([[0.5, -0.2, 0.1, 0.9]])
    keys = jax.random.split(jax.random.key(0))
    own = jax.random.categorical(keys[0], z[:, None], shape=(1, 40_000))
    stored = jax.random.categorical(keys[1], jnp.asarray(base)[:, None], shape=(1, 40_000))

    def by_samples(which):
        return jax.grad(lambda z: anchored(config, which, jax.nn.log_softmax(z), jnp.asarray(base), own, stored))(z)

    found = dict(zip(ANCHORS, np.asarray(jax.jit(jax.vmap(by_samples))(jnp.eye(len(ANCHORS)))), strict=True))
    pi, p = np.exp(jax.nn.log_softmax(z)), np.exp(base)
    surprise = np.log(pi / p)
    assert np.abs(found[NOTHING]).max() == 0
    np.testing.assert_allclose(found[FORWARD], pi - p, atol=0.02)
    np.testing.assert_allclose(found[REVERSE], pi * (surprise - (pi * surprise).sum()), atol=0.02)
    slope = pi * np.log(2 * pi / (pi + p))
    np.testing.assert_allclose(found[SHANNON], slope - pi * slope.sum(), atol=0.02)


def test_what_is_compared():
    found = {name: np.zeros((2, 3, 2)) for name in ANCHORS}
    for place, name in enumerate(ANCHORS):
        found[name][:, 0], found[name][:, -1] = [0.1, 0.5], [0.2 + 0.01 * place, 0.4 + 0.1 * place]
    got = {name: float(x[1]) for name, x in pass_at_k.compared(found).items()}
    want = {"pass-1-rises": 0.1, "none-collapses": -0.1, "reverse-kl-collapses": 0.0, "mass-covering-keeps": 0.1}
    want |= {"mass-covering-over-reverse": 0.1, "mass-covering-pass-1": 0.02}
    assert got == pytest.approx(want)


def test_smoke_run(tmp_path):
    check_run(pass_at_k, SMOKE, tmp_path)
