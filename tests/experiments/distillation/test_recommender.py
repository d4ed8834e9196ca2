"""Models that are measured by a law of sessions that is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import recommender
from experiments.distillation.recommender import BLOCKS, measures
from tests.experiments.result_run import check_run

CONFIG = recommender.PRESETS["smoke"]


def test_measures_by_brute_force():
    random = np.random.default_rng(0)
    logits = random.normal(size=(5, 7))
    law = random.dirichlet(np.ones(7), 5)
    hits, ranks, distance = 0.0, 0.0, 0.0
    for z, p in zip(logits, law, strict=True):
        order = list(np.argsort(-z))
        hits += p[order[0]] / 5
        ranks += sum(p[item] / (1 + place) for place, item in enumerate(order)) / 5
        q = np.exp(z) / np.exp(z).sum()
        distance += (p * np.log(p / q)).sum() / 5
    found = measures(logits, np.log(law))
    np.testing.assert_allclose(found, [100 * hits, 100 * ranks, distance], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("layers", [4, 8])
def test_states_of_blocks_do_not_see_the_future(layers):
    model = recommender.recommender(CONFIG, layers)
    tokens = jnp.array([[1, 2, 3, 4], [6, 5, 4, 3]])
    params = model.init(jax.random.key(0, impl="rbg"), tokens)
    states, logits = model.apply(params, tokens)
    assert states.shape == (BLOCKS, 8, 4) and logits.shape == (BLOCKS, 8, 7)
    other, _ = model.apply(params, tokens.at[0, 3].set(0))
    same = np.abs(np.asarray(states - other)).max((0, 2)) < 1e-6
    assert same.tolist() == [True, True, True, False, True, True, True, True]
    # what a new block adds is small
    assert all(float(jnp.abs(a - b).max()) > 1e-5 for a, b in zip(states[1:], states[:-1], strict=True))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_teacher_learns_its_source():
    config = replace(CONFIG, sessions=400, tests=50, width=16, batch=32, teacher_steps=150, steps=2, rate=1e-2)
    each, _ = recommender._program(config)(jnp.stack([jax.random.key(0, impl="rbg")]))
    teacher, student = np.asarray(each)[0, [0, 1], 2]
    assert teacher < 0.5 * student


def test_smoke_run(tmp_path):
    check_run(recommender, CONFIG, tmp_path)
