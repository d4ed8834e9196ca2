"""Random chains: the smoke run, one chain for all seeds, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tokenization import random_chains
from experiments.tokenization.random_chains import PRESETS, Config, chain
from tests.experiments.result_run import check_run


@pytest.mark.slow
def test_smoke_run(tmp_path):
    smoke = PRESETS["smoke"]
    config = replace(smoke, seeds=(0,), train=replace(smoke.train, steps=2))
    result = check_run(random_chains, config, tmp_path, absent={"F3-order-4", "F6-gap-falls-with-dictionary"})
    models = result.tables["models"]
    assert models["size"] == [2, 10] and models["characters_per_token"][0] == 1 < models["characters_per_token"][1]
    # An untrained model guesses uniformly among its tokens.
    untrained = [result.series[f"order 2, {size} tokens"]["gap"][0, 0] for size in (2, 10)]
    expected = np.log([2, 10]) / models["characters_per_token"] - np.array(models["own_code_length"])
    np.testing.assert_allclose(untrained, expected, atol=0.05)


def test_the_chain_depends_on_its_own_seed_and_the_order_alone():
    one, other = chain(Config(seeds=(0,)), 2), chain(Config(seeds=(5,)), 2)
    np.testing.assert_array_equal(one.kernel, other.kernel)
    assert chain(Config(), 4).kernel.shape == (2,) * 5
    assert not np.array_equal(one.kernel, chain(Config(chain_seed=1), 2).kernel)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("models", (), "the number of models: got 0"),
        ("models", ((4, 10), (2, 10)), "models: got .*, expected rising pairs"),
        ("models", ((2, 1),), "each dictionary size of models: got 1"),
        ("minimum", 0.6, "minimum: got 0.6"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
