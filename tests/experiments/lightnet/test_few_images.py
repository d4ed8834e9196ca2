"""Few training images: how many there are, and which differences are measured."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.digit_classification import standardised_parts
from experiments.lightnet import few_images

CPU = few_images.PRESETS["cpu"]


def test_two_hundred_images_are_trained_on_and_all_others_tested_on():
    train, test, _ = standardised_parts(CPU.images.test_images)
    assert (len(train), len(test)) == (200, 1597)
    assert set(np.unique(train.labels)) == set(range(10))


def test_differences_are_those_of_the_same_seed():
    table = {"positions": ["tpe", "tpe", "none", "none", "both", "both"], "accuracy": [90.0, 80, 50, 60, 91, 79]}
    assert few_images.measured(table) == {
        "lightnet/R4-few-images-both-over-tpe": [1.0, -1.0],
        "lightnet/R4-few-images-tpe-over-none": [40.0, 20.0],
    }


@pytest.mark.parametrize("positions", [(), ("learned",), ("tpe", "tpe")])
def test_other_positions_are_refused(positions):
    with pytest.raises(ValueError, match=r"positions: got .*, expected some of both, tpe, lrpe, none, each once"):
        replace(CPU, positions=positions)
