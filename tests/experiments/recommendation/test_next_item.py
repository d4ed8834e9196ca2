"""The next item and the Cloze: what the claims compare, and how far back attention is said to reach."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.recommendation import next_item
from experiments.recommendation.next_item import (
    BERT4REC,
    BOTH_WAYS,
    CAUSAL_CLOZE,
    DENSITIES,
    GRU,
    MARKOV,
    POPULARITY,
    SASREC,
)
from tests.experiments.result_run import check_run


def test_claims_compare_within_a_seed_and_take_the_worse_density():
    ndcg = {POPULARITY: 1.0, MARKOV: 5.0, GRU: 4.0, SASREC: 7.0, CAUSAL_CLOZE: 3.0, BOTH_WAYS: 8.0, BERT4REC: 6.0}
    rows = [
        (density, model, value if density == "sparse" else value**2 / (1 + seed))
        for density in DENSITIES
        for model, value in ndcg.items()
        for seed in (0, 1)
    ]
    table = dict(zip(("density", "model", "NDCG"), map(list, zip(*rows, strict=True)), strict=True))
    maps = {"sparse": np.zeros((2, 1, 4)), "dense": np.zeros((2, 1, 4))}
    maps["sparse"][:, 0] = [[1, 0, 0, 0], [0.5, 0.5, 0, 0]]
    maps["dense"][:, 0] = [[0, 0, 0, 1], [0, 1, 0, 0]]
    found = {id.removeprefix("recommendation/"): value for id, value in next_item._measured(table, maps).items()}
    assert found["sasrec-beats-earlier-sparse"] == [2.0, 2.0] and found["sasrec-beats-earlier-dense"] == [24.0, 12.0]
    assert found["sasrec-beats-earlier"] == [2.0, 2.0]
    assert found["bert4rec-beats-sasrec"] == [-13.0, -6.5] and found["bert4rec-cloze-helps"] == [-28.0, -14.0]
    assert found["bert4rec-both-ways"] == [3.0, 3.0]
    assert found["sasrec-attention-adapts"] == [3.0, 0.5]


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(next_item.PRESETS["smoke"], models=next_item.MODELS)
    result = check_run(next_item, config, tmp_path)
    for density in DENSITIES:
        maps = result.series["attention"][density]
        assert maps.shape == (1, config.layers, config.reach)
        np.testing.assert_allclose(maps.sum(axis=-1), 1.0, rtol=1e-5)
