"""The masking figure: the smoke run, what is compared, refusals."""

import numpy as np
import pytest

from experiments.markov_dynamics import memory_mask
from experiments.markov_dynamics.memory_mask import PRESETS, Config, measure
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    result = check_run(memory_mask, PRESETS["smoke"], tmp_path, absent={"M3-memory-mask-immediate"})
    assert set(result.series) == {"window 2", "all"}
    assert result.tables["windows"]["window"] == [2, 2, 0, 0]


def test_short_windows_by_size_of_their_distance_and_the_least_rise():
    last = {1: [0.49, 0.53], 2: [0.5, 0.5], 5: [0.6, 0.6], 0: [0.7, 0.58]}
    measured = measure((1, 2, 5, 0), {window: np.array(losses) for window, losses in last.items()}, 0.5)
    np.testing.assert_allclose(measured["markov_dynamics/M3-memory-mask-immediate"], [-0.01, 0.03])
    np.testing.assert_allclose(measured["markov_dynamics/M3-memory-mask-monotone"], [0.1, -0.02])
    assert measure((1,), {1: np.array([0.5])}, 0.5) == {}


@pytest.mark.parametrize("windows", [(0, 5), (5, 2), (2, 2), (-1, 3)])
def test_windows_must_rise_and_end_with_the_whole_view(windows):
    with pytest.raises(ValueError, match="windows: got .*, expected rising numbers, and 0 as the last one only"):
        Config(windows=windows)
