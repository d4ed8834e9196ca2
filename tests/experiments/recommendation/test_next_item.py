"""The next item and the Cloze: what the claims compare, and how far back attention is said to reach."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.recommenders import attention_weights
from experiments.recommendation import next_item
from experiments.recommendation.attention import attention_maps
from experiments.recommendation.data import drawn
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
    maps = {f"{name}, {density}": np.full((2, 1, 4, 4), 9.0) for name in next_item.MAPPED for density in DENSITIES}
    maps["SASRec, sparse"][:, 0, -1] = [[0, 0, 0, 1], [0, 0, 0.5, 0.5]]
    maps["SASRec, dense"][:, 0, -1] = [[1, 0, 0, 0], [0, 0, 1, 0]]
    found = {id.removeprefix("recommendation/"): value for id, value in next_item._measured(table, maps).items()}
    assert found["sasrec-beats-earlier-sparse"] == [2.0, 2.0] and found["sasrec-beats-earlier-dense"] == [24.0, 12.0]
    assert found["sasrec-beats-earlier"] == [2.0, 2.0]
    assert found["bert4rec-beats-sasrec"] == [-13.0, -6.5] and found["bert4rec-cloze-helps"] == [-28.0, -14.0]
    assert found["bert4rec-both-ways"] == [3.0, 3.0]
    assert found["sasrec-attention-adapts"] == [3.0, 0.5]


def test_models_are_what_their_names_say(monkeypatch):
    """Causal or both ways, and the task; places for the whole history and the item behind it."""
    for task in ("next_items", "cloze", "hidden_next"):

        def named(model, *given, task=task):
            mixer = getattr(model.backbone.mixer, "keywords", {"causal": "recurrent"})
            return task, mixer["causal"], given

        monkeypatch.setattr(f"experiments.recommendation.recommenders.{task}", named)
    config = replace(next_item.PRESETS["cpu"], hidden=0.25)
    assert next_item.recommenders(config, "dense") == {
        GRU: ("next_items", "recurrent", (39,)),
        SASREC: ("next_items", True, (39,)),
        CAUSAL_CLOZE: ("cloze", True, (200, 39, 0.25)),
        BOTH_WAYS: ("hidden_next", False, (200, 39)),
        BERT4REC: ("cloze", False, (200, 39, 0.25)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
def test_attention_is_that_of_the_last_items_of_users_who_have_enough(hidden):
    config = replace(next_item.PRESETS["smoke"], seeds=(0, 1))
    sessions = [drawn(config.sparse, seed)[1] for seed in config.seeds]  # of 4, 5, 6 and 4 items, the last one kept
    model = next_item._attention_model(config, "sparse", causal=not hidden)
    params = [nn.unbox(model.init(jax.random.key(seed), jnp.zeros((1, 6), jnp.int32))) for seed in config.seeds]
    params = jax.tree.map(lambda *leaves: 3 * jnp.stack(leaves), *params)
    maps = attention_maps(model, params, sessions, 4, hidden_id=12 if hidden else None)
    for i, own in enumerate(sessions):
        lists = np.stack([[*own.items[end - 5 : end - 1], *[12] * hidden] for end in own.offsets[2:4]])
        weights = attention_weights(model, jax.tree.map(lambda leaf, i=i: leaf[i], params), jnp.asarray(lists))
        expected = np.asarray(weights).mean(axis=(1, 2))
        assert np.ptp(expected[:, -1]) > 0.01
        np.testing.assert_allclose(maps[i], expected, atol=1e-4)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(next_item.PRESETS["smoke"], models=next_item.MODELS)
    result = check_run(next_item, config, tmp_path)
    for density in DENSITIES:
        for name, places in ((SASREC, config.reach), (BERT4REC, config.reach + 1)):
            maps = result.series["attention"][f"{name}, {density}"]
            assert maps.shape == (1, config.layers, places, places)
            np.testing.assert_allclose(maps.sum(axis=-1), 1.0, rtol=1e-5)
