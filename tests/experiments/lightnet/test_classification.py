"""Digits classified: every preset runs, what is compared with what, and the accuracies that were found before."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.equal_size import count_parameters
from experiments.lightnet import classification
from experiments.lightnet.classification import BOTH, LRPE, NONE, TPE

CPU = classification.PRESETS["cpu"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_the_gpu_preset(tmp_path):
    config = classification.PRESETS["gpu"]
    variants = (("lightnet", "both", "shared"), ("softmax", "learned", ""))
    assert set(variants) <= set(config.variants)
    # Two seeds at once, as the preset takes more, keep the batched computation.
    short = replace(config, seeds=(0, 1), variants=variants, layers=1, at_once=2)
    result = classification.run(replace(short, train=replace(config.train, steps=2)), tmp_path)
    assert all(np.isfinite(values).all() for values in result.measured.values())
    sizes = {id.removeprefix("lightnet/"): len(values) for id, values in result.measured.items()}
    assert sizes == {"R3-digits-classification": 2, "R3-against-softmax": 2}
    assert len(result.tables["accuracy"]["seed"]) == 2 * len(variants)


@pytest.mark.slow
def test_the_gpu_preset_has_the_size_that_it_had_when_its_minutes_were_estimated():
    config, image = classification.PRESETS["gpu"], np.zeros((1, 8, 8, 1), np.float32)
    variants = (("lightnet", "both", "shared"), ("lightnet", "none", "shared"), ("softmax", "learned", ""))
    counts = [count_parameters(classification.model_of(config, variant, (8, 8)), image) for variant in variants]
    assert counts == [191_194, 181_834, 169_290]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_both_encodings_reach_94_percent_and_beat_none(tmp_path):
    """With one seed; the claims have five, and one encoding in between."""
    config = replace(CPU, seeds=(0,), variants=(("lightnet", "both", "shared"), ("lightnet", "none", "shared")))
    accuracy = classification.run(config, tmp_path).tables["accuracy"]["accuracy"]
    assert accuracy[0] > 94 and accuracy[0] > accuracy[1]


def test_differences_are_taken_seed_by_seed_and_only_between_variants_that_are_there():
    accuracies = {BOTH: [97.0, 96.0, 95.0], TPE: [94.0, 95.0, 93.0], LRPE: [90.0, 95.5, 91.0], NONE: [70.0, 71.0, 72.0]}
    table = {name: np.array(values) for name, values in accuracies.items()}
    table["multiplicative, lrpe"], table["multiplicative-4, lrpe"] = np.array([96.0, 92.0]), np.array([91.0, 97.0])
    measured = {id.removeprefix("lightnet/"): values for id, values in classification._measured(table).items()}
    assert measured["R4-both-over-tpe"] == [3.0, 1.0, 2.0]
    assert measured["ablation-positional-encoding"] == [3.0, 0.5, 2.0]
    assert measured["R4-digits-positions"].tolist() == [3.0, 0.5, 2.0]
    assert measured["R3-against-multiplicative"] == [-1.0]
    assert "review-2d-rotary" not in measured and "R3-against-softmax" not in measured


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch", 3, "patch: got 3, expected a divisor of 8"),
        ("smoothing", 1.0, "smoothing: got 1"),
        ("variants", (("mamba", "none", ""),), "variants: got mamba with none"),
        ("variants", (("lightnet", "none", "vectr"),), "variants: got 'vectr' as the key logits of lightnet, expected"),
        ("variants", (("lightnet", "none", ""),), "variants: got '' as the key logits of lightnet, expected 'shared'"),
        ("variants", (("softmax", "none", "shared"),), "variants: got 'shared' as the key logits of softmax"),
        ("variants", (), "variants: expected at least one"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
