"""Objectives by name: what of them is frozen, and what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from experiments.distillation.networks import Outputs
from experiments.distillation.objectives import OBJECTIVES, objective


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    s, t = (
        Outputs(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((23, 10), (23, width), (23, 6))))
        for width in (4, 6)
    )
    return s, t, jnp.asarray(rng.integers(0, 10, 23))


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_gradient_goes_into_the_teacher_only_where_it_learns_too(name, batch):
    s, t, y = batch
    loss, gradients = jax.value_and_grad(OBJECTIVES[name].loss, (0, 1))(s, t, y, jnp.float32(3.0))
    student, teacher = (sum(float(jnp.abs(leaf).sum()) for leaf in each) for each in gradients)
    assert np.isfinite([loss, student]).all() and student > 0
    assert (teacher > 0) == OBJECTIVES[name].joint


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_temperature_matters_exactly_where_one_is_chosen(name, batch):
    found = {float(OBJECTIVES[name].loss(*batch, jnp.float32(temperature))) for temperature in (1.0, 5.0)}
    assert (len(found) == 2) == OBJECTIVES[name].tempered


@pytest.mark.slow
def test_weights_of_the_parts(batch):
    s, t, y = batch
    ce = -jnp.mean(jax.nn.log_softmax(s.logits)[jnp.arange(23), y])
    kl = kd.token_divergence("forward_kl", s.logits, t.logits, temperature=2.0).mean()

    def loss(name):
        return OBJECTIVES[name].loss(s, t, y, 2.0)

    np.testing.assert_allclose(loss("ce"), ce, rtol=1e-6)
    np.testing.assert_allclose(loss("hinton"), 0.1 * ce + 0.9 * 4 * kl, rtol=1e-6)
    reverse = kd.token_divergence("reverse_kl", s.logits, t.logits, temperature=2.0).mean()
    np.testing.assert_allclose(loss("reverse_kl"), 0.1 * ce + 0.9 * 4 * reverse, rtol=1e-6)
    transport = kd.sinkd(s.logits, t.logits) / 23
    np.testing.assert_allclose(loss("sinkd") - loss("hinton"), 0.8 * transport, rtol=1e-5)
    # both weights of BD-KD sum to 2, so that at equal weights it is the symmetric divergence
    np.testing.assert_allclose(
        OBJECTIVES["bd_kd"].loss(s, t, y, 2.0, delta=1.0),
        ce + 4 * kl + 4 * reverse,
        rtol=1e-6,
    )


def test_list_mle_is_the_likelihood_of_the_order(batch):
    s, t, y = batch
    total = 0.0
    for scores, teacher, label in zip(
        np.asarray(s.logits, np.float64), np.asarray(t.logits), np.asarray(y), strict=True
    ):
        order = [label, *(place for place in np.argsort(-teacher) if place != label)]
        for place in range(10):
            rest = scores[order[place:]]
            total += np.log(np.exp(rest).sum()) - rest[0]
    np.testing.assert_allclose(OBJECTIVES["list_mle"].loss(s, t, y, 1.0), total / 23, rtol=1e-4)


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="objectives: got 'kl', expected one of ce, smoothed, hinton"):
        objective("kl", "objectives")
