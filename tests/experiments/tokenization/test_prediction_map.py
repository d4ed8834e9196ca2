"""Predictions against their average: the smoke run, constant predictions, padding, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tokenization import prediction_map
from experiments.tokenization.prediction_map import PRESETS, Config, compare
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    smoke = PRESETS["smoke"]
    config = replace(smoke, seeds=(0,), train=replace(smoke.train, steps=2))
    result = check_run(prediction_map, config, tmp_path)
    first = result.series["first text"]["seed 0"]
    np.testing.assert_allclose(first.sum(axis=-1), 1, rtol=1e-5)
    assert first.shape[1] == 5 and 32 / 5 < len(first) <= 32
    # An untrained model guesses nearly the same everywhere: it is its own average.
    table = result.tables["predictions"]
    assert table["total_variation"][0] < 0.05
    assert table["model"][0] == pytest.approx(table["average"][0], abs=0.01)


def test_constant_predictions_are_their_own_average_and_padding_does_not_count():
    random = np.random.default_rng(0)
    law, tokens = random.dirichlet(np.ones(4)), random.integers(0, 4, (3, 6))
    mask = np.arange(6) < np.array([[6], [2], [4]])
    laws = np.where(mask[..., None], law, random.dirichlet(np.ones(4), (3, 6)))
    found = compare(laws, tokens, mask, symbols=10)
    assert found["total_variation"] == pytest.approx(0, abs=1e-12)
    assert found["model"] == pytest.approx(found["average"]) == pytest.approx(-np.log(law[tokens[mask]]).sum() / 10)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dictionary_size", 2, "dictionary_size: got 2"),
        ("tokenizer_characters", 10, "tokenizer_characters: got 10"),
        ("p", 0.0, "p: got 0"),
        ("evaluation_rows", 0, "evaluation_rows: got 0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
