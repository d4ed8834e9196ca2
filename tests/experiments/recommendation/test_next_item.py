"""The next item and the Cloze: what the claims compare, and how far back attention is said to reach."""

from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.recommenders import attention_weights
from experiments.recommendation import next_item
from experiments.recommendation.attention import attention_maps
from experiments.recommendation.data import Generated, drawn
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


def test_maps_are_of_the_models_that_were_trained(monkeypatch):
    """BERT4Rec's see both ways, and have the hidden item behind the history."""

    def maps(model, params, sessions, reach, *, hidden_id=None):
        return params, model.backbone.mixer.keywords["causal"], reach, hidden_id

    def trained(config, model, sessions, folder, **_):
        return None, folder.name, 1.0

    monkeypatch.setattr("experiments.recommendation.attention.attention_maps", maps)
    monkeypatch.setattr("experiments.recommendation.recommenders.trained_scores", trained)
    monkeypatch.setattr(next_item, "reference_scores", lambda *_: {})
    config = replace(next_item.PRESETS["smoke"], models=next_item.MODELS)
    _, found = next_item._scores(config, "dense", [], np.ones(1), Path())
    assert found == {SASREC: ("1", True, 2, None), BERT4REC: ("4", False, 2, 12)}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("change", [{"longest": 8}, {"users": 2}])
def test_attention_reaches_no_further_than_the_longest_session(density, change):
    """Sessions of 7 and 8 items: 7 are before the last of the longest."""
    config = replace(next_item.PRESETS["smoke"], sparse=Generated(4, shortest=7), dense=Generated(4, shortest=7))
    config = replace(config, **{density: replace(config.sparse, **change)})
    assert replace(config, reach=7).reach == 7
    with pytest.raises(ValueError, match="reach: got 8, expected between 2 and 7"):
        replace(config, reach=8)


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
