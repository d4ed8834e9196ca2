"""Escape against length: the smoke run and refusals; how escapes are read off is tested with the training."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tokenization import escape_time
from experiments.tokenization.escape_time import PRESETS, Config
from tests.experiments.result_run import check_run


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_updates_of_two_lengths(tmp_path):
    smoke = PRESETS["smoke"]
    config = replace(smoke, train=replace(smoke.train, steps=2, eval_every=2))
    result = check_run(escape_time, config, tmp_path, absent={"F2c-escape-at-128"})
    assert set(result.series) == {"length 8", "length 16"}
    assert result.tables["escapes"]["length"] == [8, 8, 16, 16]
    # Untrained models guess uniformly, the first symbol included.
    assert result.series["length 16"]["loss"][:, 0] == pytest.approx(np.log(2), abs=0.05)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lengths", (128, 64), "lengths: got .*, expected rising values"),
        ("lengths", (), "the number of lengths: got 0"),
        ("order", 0, "order: got 0"),
        ("q", 1.0, "q: got 1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
