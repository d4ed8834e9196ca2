"""Architectures: the smoke run, tokens in the pool, the claims of made-up rows, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tokenization import architectures
from experiments.tokenization.architectures import CLAIMS, PRESETS, Config, measure
from tests.experiments.result_run import check_run

SMOKE = PRESETS["smoke"]


@pytest.mark.slow
def test_smoke_run(tmp_path):
    absent = {claim.id.partition("/")[2] for claim in CLAIMS}
    result = check_run(architectures, SMOKE, tmp_path, absent=absent)
    (loss,) = (series["loss"] for series in result.series.values())
    # An untrained model guesses uniformly among its four tokens.
    (line,) = result.tables["references"]["characters_per_token"]
    assert loss[:, 0] == pytest.approx(np.log(4) / line, rel=0.2)


def test_claims_are_differences_of_made_up_rows():
    config = Config(seeds=(4,))
    steps = {"transformer": 300, "LightNet": 350, "Mamba": 20, "Mamba, one tap": 90, "S5": 40}
    rows = [
        {
            "architecture": name,
            "order": order,
            "size": size,
            "seed": 4,
            "escape": step * order // size,
            "last_loss": size / 100,
        }
        for name, step in steps.items()
        for order, size in config.settings
    ]
    references = [{"order": 2, "size": 10, "unigram_entropy": 0.7, "entropy_rate": 0.5}]
    found = {id.partition("/")[2]: value for id, (value,) in measure(config, rows, references).items()}
    assert found.pop("A-tokens-help-all") == pytest.approx(0.1 - 0.6)
    assert found == {
        "A-mamba-no-barrier": -280.0,
        "A-s5-no-barrier": -260.0,
        "A-lightnet-barrier": 350.0 - 70.0,
        "A-convolution": 70.0,
        "A-beyond-convolution": 40.0,
    }
    assert measure(config, rows[:1], references) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("architectures", ("S6",), "unknown architecture 'S6'"),
        ("architectures", (), "the number of architectures: got 0"),
        ("settings", ((2, 1),), "each dictionary size of settings: got 1"),
        ("p", 1.0, "p: got 1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(Config(), **{field: value})
