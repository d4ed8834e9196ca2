"""Gains against the number of recordings: what is claimed of which model and number."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.hiss import data_size
from experiments.hiss.comparison import recipe
from experiments.hiss.data_size import ALIGNED, HIERARCHY, RELEASED
from experiments.sources.sensors import Sensors
from tests.experiments.result_run import check_run

CPU = data_size.PRESETS["cpu"]
SMALL = replace(
    data_size.PRESETS["smoke"],
    seeds=(3,),
    sensors=Sensors(length=20),
    models=("lstm over lstm", "flat lstm end"),
    recordings=(2, 4),
    train=recipe(2, 1, 2),
)


def test_claims_are_about_the_numbers_that_they_name():
    errors = {(name, count): np.full(2, 0.5) for name in CPU.models for count in CPU.recordings}
    errors[HIERARCHY, 24] = np.array([0.25, 0.4])
    errors[HIERARCHY, 96] = np.array([0.4, 0.45])
    errors[ALIGNED, 768] = np.array([0.4, 0.45])
    errors[RELEASED, 768] = np.array([0.625, 0.5])
    measured = data_size._measured(errors, CPU.recordings)
    assert set(measured) == {claim.id for claim in data_size.CLAIMS}
    short = {name.removeprefix("hiss/"): np.round(values, 6).tolist() for name, values in measured.items()}
    assert short["synthetic-96-aligned"] == short["synthetic-96-released"] == [0.2, 0.1]
    assert short["synthetic-768-aligned"] == [-0.25, round(1 - 0.5 / 0.45, 6)]
    assert short["synthetic-768-released"] == [0.2, 0.0]
    assert short["synthetic-against-aligned-flat"] == [0.2, 0.0]
    assert short["abstract-small-data"] == [0.3, 0.2]
    assert short["small-data-against-aligned-flat"] == [0.75, round(0.2 - 1 + 0.5 / 0.45, 6)]


def test_claims_whose_models_or_numbers_are_absent_are_not_measured():
    errors = {(name, 24): np.full(2, 0.5) for name in CPU.models}
    assert data_size._measured(errors, (24,)) == {}
    del errors[ALIGNED, 24]
    assert data_size._measured(errors, (24,)) == {}


def test_smoke_run(tmp_path):
    result = check_run(data_size, SMALL, tmp_path, absent={claim.id.partition("/")[2] for claim in data_size.CLAIMS})
    assert result.tables["errors"]["recordings"] == [2, 2, 4, 4]


@pytest.mark.parametrize("recordings", [(), (96, 24), (24, 24), (1,)])
def test_numbers_that_are_not_ascending_or_fill_no_batch_are_refused(recordings):
    with pytest.raises(ValueError, match="recordings: got"):
        replace(SMALL, recordings=recordings)
