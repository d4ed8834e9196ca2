"""Escape over orders and lengths: the smoke run, two updates of the largest setting, exponents, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tokenization import escape_scaling
from experiments.tokenization.escape_scaling import CLAIMS, PRESETS, Config, measure
from tests.experiments.result_run import check_run

ALL = {claim.id.partition("/")[2] for claim in CLAIMS}


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(PRESETS["smoke"], train=replace(PRESETS["smoke"].train, steps=2))
    result = check_run(escape_scaling, config, tmp_path, absent=ALL)
    assert result.series["order 2, length 8"]["loss"][:, 0] == pytest.approx(np.log(2), abs=0.05)
    assert result.tables["escapes"]["escape"] == [2, 2] and result.tables["escapes"]["left"] == [False, False]


@pytest.mark.slow
def test_two_updates_of_the_gpu_preset(tmp_path):
    published = PRESETS["gpu"]
    assert (published.orders, published.lengths) == ((1, 2, 4, 8), (64, 128, 256, 512, 1024))
    config = replace(
        published,
        seeds=(0,),
        orders=(8,),
        lengths=published.lengths[-1:],
        evaluation_rows=2,
        train=replace(published.train, steps=2, eval_every=2),
    )
    result = check_run(escape_scaling, config, tmp_path, absent=ALL)
    assert result.series["order 8, length 1024"]["step"].tolist() == [0, 2]


def test_claims_of_made_up_escapes():
    # Steps that grow as length^order, for two seeds, the second ten times slower.
    escapes = {(o, n): np.array([1, 10]) * n**o for o in (1, 2, 3) for n in (2, 4, 8)}
    found = measure(escapes)
    assert found["tokenization/F2c-escape-exponent"] == pytest.approx([2.0, 2.0])
    assert found["tokenization/F2c-escape-with-order"] == [512 - 64, 10 * (512 - 64)]
    assert found["tokenization/F2c-no-escape-needed"] == [8 - 64, 10 * (8 - 64)]
    assert measure({(2, 8): np.array([3])}) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("orders", (2, 1), "orders: got .*, expected rising"),
        ("lengths", (), "the number of lengths: got 0"),
        ("q", 1.0, "q"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
