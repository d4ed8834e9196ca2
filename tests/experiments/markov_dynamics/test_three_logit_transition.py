"""The three-number induction head: its loss written out, transitions of made-up curves, the smoke run, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.markov_dynamics import three_logit_transition
from experiments.markov_dynamics.three_logit_transition import PRESETS, Config, first_below, last_above
from experiments.markov_dynamics.three_logits import loss
from tests.experiments.result_run import check_run


def written_out(parameters: np.ndarray, items: int, labels: int) -> float:
    """Both attention layers as arrays of positions, one softmax after the other."""
    beta, alpha, xi = parameters
    total = 0.0
    for pair in range(items):
        position = 2 * (pair + 1)  # of the label, counted from 1
        first = np.zeros(position)
        first[-2] = beta
        own_item = (np.exp(first) / np.exp(first).sum())[-2]
        second = np.zeros(2 * items + 1)
        second[position - 1] = alpha * own_item
        attention = np.exp(second) / np.exp(second).sum()
        scores = np.zeros(labels)
        scores[:items] = xi * attention[1 : 2 * items : 2]
        total += np.log(np.exp(scores).sum()) - scores[pair]
    return total / items


@pytest.mark.slow
@pytest.mark.parametrize(("items", "labels"), [(2, 2), (3, 7), (8, 8), (5, 32)])
def test_the_loss_is_that_of_two_attention_layers(items, labels):
    for parameters in np.random.default_rng(items).normal(0, 2, (4, 3)):
        given = loss(jnp.asarray(parameters, jnp.float32), items, labels)
        assert float(given) == pytest.approx(written_out(parameters, items, labels), rel=1e-5)


@pytest.mark.slow
def test_the_gradient_is_finite_with_no_label_to_spare():
    gradient = jax.grad(loss)(jnp.array([0.1, 0.2, 0.3]), 4, 4)
    assert np.isfinite(gradient).all() and np.abs(gradient).min() > 0


def test_smoke_run(tmp_path):
    result = check_run(three_logit_transition, PRESETS["smoke"], tmp_path)
    transitions = dict(
        zip(result.tables["transitions"]["labels"], result.tables["transitions"]["transition"], strict=True)
    )
    # Reference: steps 800 to 820 with 32 labels from every start; later than 1500 with 8.
    assert 780 < transitions[32] < 840 and transitions[8] is None


def test_first_below_and_last_above():
    curves = np.array([[5.0, 5.0, 1.0], [3.0, 5.0, 5.0], [1.0, 5.0, 1.0], [5.0, 5.0, 1.0]])
    below = first_below(curves, 2.0)
    assert below.tolist() == [2, 4, 0]
    assert last_above(curves, 4.0, below).tolist() == [0, 3, -1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", (9, 32), "labels: got .*, expected rising numbers that begin with items = 8"),
        ("labels", (8,), "the number of labels: got 1"),
        ("items", 1, "items: got 1"),
        ("steps", 1, "steps: got 1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
