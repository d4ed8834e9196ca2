"""Known probabilities of the two sources, the errors of a teacher, and how lambdas are chosen."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.distillation import bayes_estimation
from experiments.distillation.bayes_estimation import (
    ENTROPY,
    LONGER,
    MCMI,
    ORDINARY,
    Errors,
    Inputs,
    chosen,
    compared,
    errors,
    gaussian_parts,
    markov_parts,
    trained,
)

SMOKE = bayes_estimation.PRESETS["smoke"]


@pytest.mark.slow
def test_probabilities_are_those_of_the_labels():
    """Sorted by their probability of a class, inputs have that class as often."""
    *_, test = gaussian_parts(replace(SMOKE, test=40_000), 3)
    order = np.argsort(test.true[:, 2])
    for part in np.array_split(order, 8):
        share = (test.y[part] == 2).mean()
        assert abs(share - test.true[part, 2].mean()) < 5 * 0.5 / len(part) ** 0.5
    train, _, contexts = markov_parts(replace(SMOKE, symbols=3, tokens=20_000), 1)
    context = train.x @ np.concatenate([np.arange(3) * 3, np.arange(3)])
    for c in range(9):
        mine = train.y[context == c]
        np.testing.assert_allclose(len(mine) / 20_000, contexts.weight[c], atol=0.02)
        np.testing.assert_allclose(np.bincount(mine, minlength=3) / len(mine), contexts.true[c], atol=0.06)


def test_errors_of_a_teacher_that_is_right_at_another_temperature():
    random = np.random.default_rng(0)
    z = random.normal(size=(3000, 4))
    true = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (true.cumsum(1) > random.random((3000, 1))).argmax(1)
    part = Inputs(z, y, true, np.full(3000, 1 / 3000))
    e = errors(part, part, 4 * z, 4 * z)
    assert e.temperature == pytest.approx(4, rel=0.1) and e.tempered < 0.005 < 0.5 < e.plain and e.accuracy > 0.999
    assert e.validation[1] < e.validation[0]


@pytest.mark.slow
def test_what_the_second_stage_raises():
    """Nearly without a weight it is the longer training; with one, each raises on the sample what it is named after."""
    config = replace(SMOKE, sample=80, steps=60, fine_steps=60, weights=(0.0001, 0.8), hidden=16, weight_decay=0.0)
    train, *_ = gaussian_parts(config, 0)
    x = train.x.astype(np.float32)
    found = jax.jit(lambda x, y: trained(config, x, y, [x], jax.random.key(0), 10))(x, train.y)
    p = {method: softmax(np.asarray(each[0])) for method, each in found.items()}
    assert p[ORDINARY].shape == p[LONGER].shape == (1, 80, 10)
    centroids = np.stack([p[ORDINARY][0][train.y == y].mean(0) for y in range(10)])
    raised = {
        MCMI: (p[MCMI] * np.log(p[MCMI] / centroids[train.y][None])).sum(-1).mean(-1),
        ENTROPY: -(p[ENTROPY] * np.log(p[ENTROPY])).sum(-1).mean(-1),
    }
    for method, (little, much) in raised.items():
        np.testing.assert_allclose(p[method][0], p[LONGER][0], atol=0.01)
        assert much > 1.05 * little


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_lambda_is_chosen_by_the_sample_and_not_by_the_error():
    bad, good = Errors(1.0, 0.9, 2.0, (0.3, 0.2), 0.5), Errors(0.5, 0.4, 2.0, (0.4, 0.3), 0.5)
    assert (chosen([bad, good], False), chosen([bad, good], True)) == (1.0, 0.9)
    found = [{ORDINARY: [bad], LONGER: [good], MCMI: [bad, good], ENTROPY: [good]}]
    assert compared(found) == {
        "better-teacher": [0.0],
        "after-temperature": [0.0],
        "beyond-entropy": [0.5],
        "beside-temperature": [pytest.approx(0.1)],
        "beyond-updates": [0.5],
    }
