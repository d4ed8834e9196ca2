"""Digits as sequences: models of equal size, what is claimed of which model, and what a training hands on."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.equal_size import count_parameters
from experiments.state_spaces import digits_sequence
from experiments.training.config import TrainConfig

CPU = digits_sequence.PRESETS["cpu"]
SMALL = replace(digits_sequence.PRESETS["smoke"], seeds=(3, 5), train=TrainConfig(steps=3, eval_every=2))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_models_have_equal_sizes_and_differ_in_their_mixer_only():
    for name in CPU.models:
        model, hidden = digits_sequence.model_of(CPU, name)
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((2, 64, 2), np.float32))["params"]
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert abs(size - CPU.parameters) < 0.01 * CPU.parameters and hidden > 8, name
        assert shapes["embed"]["kernel"].value.shape == (2, 32) and len(shapes["backbone"]) == 3, name


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_accuracy_that_counts_is_the_last_one_and_that_of_its_seed(tmp_path):
    result = digits_sequence.run(SMALL, tmp_path)
    curves, table = result.series["accuracy"], result.tables["accuracy"]
    assert curves["updates"].tolist() == [0, 2, 3] and curves["mamba+none"].shape == (2, 3)
    assert table["seed"] == [3, 5] and table["accuracy"] == curves["mamba+none"][:, -1].tolist()
    assert list(result.measured) == ["long_memory/digits-as-sequence-mamba"]
    model, _ = digits_sequence.model_of(SMALL, "mamba+none")
    assert table["parameters"][0] == count_parameters(model, np.zeros((1, 64, 2), np.float32))


def test_the_joint_claim_is_about_the_worst_of_four():
    found = {"s4d+none": [96.0, 97.0], "s5+none": [95.0, 99.0], "mamba+none": [98.0, 96.5], "softmax+both": [1.0, 2]}
    accuracies = {name: np.array(values) for name, values in found.items()}
    assert "long_memory/digits-as-sequence" not in digits_sequence._measured(accuracies)
    measured = digits_sequence._measured({**accuracies, "mamba2+none": np.array([97.0, 97.0])})
    assert measured["long_memory/digits-as-sequence"].tolist() == [95.0, 96.5]
    assert measured["long_memory/digits-as-sequence-s5"].tolist() == [95.0, 99.0]
    assert set(measured) == {claim.id for claim in digits_sequence.CLAIMS}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("parameters", 0, "parameters: got 0"),
        ("smoothing", 1.0, "smoothing: got 1"),
        ("models", ("mamba",), "models: got 'mamba', expected a mixer and its positions"),
        ("models", ("mambo+none",), "models: got mambo with none: unknown mixer 'mambo'; nearest: mamba"),
        ("models", ("multiplicative-4+none",), "multiplicative-4 scans two axes"),
        ("models", (), "models: expected at least one"),
        ("train", replace(CPU.train, eval_every=0), "eval_every: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
