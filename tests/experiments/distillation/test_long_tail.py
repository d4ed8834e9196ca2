"""Long-tailed digits: the draw, the views, and what is measured of experts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from experiments.distillation import long_tail as result
from experiments.distillation.digits import digit_parts, long_tail

CPU = result.PRESETS["cpu"]


def test_classes_have_ever_fewer_images_in_an_order_of_the_seed():
    labels = digit_parts().train.labels
    rows, counts = long_tail(labels, CPU.most, CPU.imbalance, seed=1)
    assert np.bincount(labels[rows], minlength=10).tolist() == counts.tolist() and len(set(rows)) == len(rows)
    assert counts.max() == 72 and counts.min() == 4
    assert counts.tolist() != long_tail(labels, CPU.most, CPU.imbalance, seed=2)[1].tolist()
    with pytest.raises(ValueError, match="most: got 90, expected at most"):
        long_tail(labels, 90, 1.0, seed=0)


@pytest.mark.slow
def test_a_strong_view_has_a_blank_patch_and_noise():
    images = jnp.ones((5, 8, 8, 1))
    weak, strong = result.views(images, jax.random.key(0), 0.0)
    # what comes in from outside is as bright as the rest of a uniform image
    assert (weak == 1).all() and np.asarray((strong == 0).sum(axis=(1, 2, 3))).tolist() == [9] * 5
    noisy = result.views(images, jax.random.key(0), 0.5)[1]
    assert 0.3 < float((noisy - strong).std()) < 0.7


@pytest.mark.slow
def test_consistency_on_all_is_that_of_chosen_images_where_all_experts_are_right():
    random = np.random.default_rng(0)
    labels = jnp.asarray(random.integers(0, 4, 6))
    strong = jnp.asarray(random.normal(size=(3, 6, 4)), jnp.float32)
    right = 5 * jax.nn.one_hot(labels, 4)[None] + 0.1 * strong
    found = [float(result.consistency(right, strong, labels, chosen)) for chosen in (True, False)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    wrong = jnp.roll(right, 1, axis=2)
    assert (
        float(result.consistency(wrong, strong, labels, True)) == 0 < result.consistency(wrong, strong, labels, False)
    )
    assert float(kd.mdcs_consistency(right, strong, labels)) == found[0]


def test_accuracies_are_those_of_the_mean_and_of_groups_by_frequency():
    labels = np.repeat(np.arange(10), 2)
    counts = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    sure = 3.0 * np.eye(10)[labels]
    blind = np.zeros((20, 10))
    blind[:, 0] = 1.0
    found = result.measured_of(np.stack([sure, blind, blind]), labels, counts)
    assert found["accuracy"] == found["few"] == found["many"] == 100.0
    assert found["expert -0.5, few"] == 100.0 and found["expert 1, many"] == 0.0
    np.testing.assert_allclose(found["expert 2.5, few"], 100 / 3)


def test_claims():
    base = {measure: [50.0] for measure in result.MEASURES}
    found = {
        name: {**base, "accuracy": [value]} for name, value in zip(result.VARIANTS, (80, 90, 85, 88, 87), strict=True)
    }
    found["diverse"] |= {"expert -0.5, many": [95.0], "expert 2.5, many": [90.0], "expert 2.5, few": [52.0]}
    measured = {id.removeprefix("distillation/mdcs-"): list(value) for id, value in result._measured(found).items()}
    assert measured == {"diverse-experts": [2.0], "consistency-helps": [1.0], "over-balanced": [-2.0]}


@pytest.mark.parametrize(
    ("field", "value"), [("variants", ("plain",)), ("most", 100), ("network", "x"), ("imbalance", 0.5)]
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        replace(CPU, **{field: value})
