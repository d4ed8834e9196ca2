"""The lengths of a batch, and a small run on two virtual devices."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.sequence_parallelism import length_aware
from experiments.sequence_parallelism.groups import degrees
from tests.experiments.result_run import check_run


def test_lengths_have_a_long_tail_and_fit_all_devices():
    config = length_aware.PRESETS["cpu"]
    lengths = np.concatenate([length_aware.batch(config, seed) for seed in range(20)])
    assert (lengths % config.devices == 0).all() and lengths.min() > 0
    assert lengths.max() == config.capacity * config.devices
    assert abs(np.median(lengths) / config.median - 1) < 0.15 and lengths.mean() > 1.5 * np.median(lengths)


def test_all_devices_are_a_size_of_a_group():
    assert degrees(1) == [1] and degrees(16) == [1, 2, 4, 8, 16]
    with pytest.raises(ValueError, match="devices: got 6, expected a power of two"):
        replace(length_aware.PRESETS["smoke"], devices=6)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(length_aware, length_aware.PRESETS["smoke"], tmp_path)
    steps = result.tables["steps"]
    assert min(steps["static measured"] + steps["aware measured"]) > 0
    assert steps["padded"][0] >= steps["tokens"][0]
