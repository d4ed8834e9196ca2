"""The published setting on MovieLens-1M: its recipe and size, and two updates of it through the real input pipeline."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.recommendation import movielens
from experiments.sources import movielens as source
from experiments.sources.movielens import in_sessions
from tests.experiments.result_run import check_run
from tests.experiments.sources.made_up_movielens import prepare, ratings

PAPER = movielens.PRESETS["paper"]
MADE = ratings()


def test_the_recipe_is_the_published_one():
    train, optimizer = PAPER.train, PAPER.train.optimizer
    assert (train.batch_size, train.precision, train.ema_decay, train.patience) == (2048, "float32", 0, 10)
    assert train.steps == 200 * train.eval_every and train.stop_metric == "1 - validation NDCG"
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.weight_decay) == (1e-3, "constant", 0)
    # of ML-1M 999,611 ratings of 6,040 users are of films with at least five
    prefixes = 999_611 - 3 * 6040
    assert -(-prefixes // train.batch_size) == movielens.EPOCH


def test_the_published_model_has_its_size():
    import jax

    films = 3416
    own = movielens.recommender_of(PAPER, "faithful", films)
    shapes = jax.eval_shape(own.init, jax.random.key(0))
    D, inner, states, rank = 64, 128, 32, 4
    mamba = (
        D * 2 * inner + 5 * inner + inner * (rank + 2 * states) + rank * inner + inner * (1 + states + 1) + inner * D
    )
    block = 5 * (D * D + D) + mamba + 3 * D * D + D + 6 * D * D + 3
    layer = block + 4 * D + 8 * D * D + 5 * D
    expected = (films + 1) * D + 2 * D + layer
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected == 348_675


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("model", movielens.MODELS)
def test_two_updates_of_the_published_setting_with_few_channels(tmp_path, monkeypatch, model):
    monkeypatch.setattr(source, "EXAMPLES", len(MADE["user_id"]))
    config = replace(
        PAPER,
        seeds=(3,),
        models=(model,),
        window=6,
        kept=2,
        width=4,
        state_size=2,
        scored=5,
        users=3,
        data_dir=prepare(tmp_path / "tfds", MADE),
        train=replace(PAPER.train, steps=2, batch_size=4, eval_every=1),
    )
    lacking = {claim.id.partition("/")[2] for claim in movielens.CLAIMS[model == "faithful" :]}
    result = check_run(movielens, config, tmp_path, lacking)
    (curve,) = result.series.values()
    assert curve["step"].tolist() == [0, 1, 2]
    table = result.tables["metrics"]
    assert len(set(curve["test NDCG"].tolist())) > 1 and table["NDCG"][0] in curve["test NDCG"]
    assert set(result.data) == {source.NAME}


def test_evaluation_asks_for_the_items_that_are_kept():
    """A recommender that knows the answers has the best metrics, and one that scores all alike the worst."""
    import jax.numpy as jnp

    from experiments.recommendation.recommenders import Recommender

    sessions = in_sessions(MADE)
    films = int(sessions.items.max()) + 1

    def scores(params, history, lengths):
        last = jnp.take_along_axis(history, lengths[:, None] - 1, axis=1)[:, 0]
        return params * jnp.asarray(table)[last]

    # what follows an item in the places that are asked for; of two candidates the first user's counts
    table = np.zeros((films, films), np.float32)
    for from_end in (1, 2):
        ends = sessions.offsets[1:] - from_end
        table[sessions.items[ends - 1], sessions.items[ends]] += 1
    own = Recommender(None, None, scores, 6, None)
    evaluate = movielens._evaluation(replace(PAPER, window=6, scored=5), own, sessions)
    knows, alike = evaluate(jnp.float32(1)), evaluate(jnp.float32(0))
    assert knows["test NDCG"] > 2 * alike["test NDCG"] and alike["test HR"] == 1.0  # of nine films all are listed
    assert knows["1 - validation NDCG"] == 1 - knows["validation NDCG"]
    assert abs(alike["validation MRR"] - 1 / films) < 1e-6
    table[:] = 0
    ends = sessions.offsets[1:] - 1
    table[sessions.items[ends - 1], sessions.items[ends]] = 1  # what is asked for in the test alone
    found = movielens._evaluation(replace(PAPER, window=6, scored=5), own, sessions)(jnp.float32(1))
    assert found["test NDCG"] > 1.5 * found["validation NDCG"]


def test_the_metrics_are_those_of_the_best_validation(monkeypatch, tmp_path):
    def trained(config, model, sessions, run_dir, seed):
        validation = np.array([0.9, 0.4, 0.7]) + (model == "faithful") * np.array([0.0, 0.5, 0.0])
        metrics = {f"test {name}": np.array([1.0, 2.0, 3.0]) / 10 + seed for name in ("HR", "NDCG", "MRR")}
        return metrics | {"step": np.array([0, 480, 960]), "1 - validation NDCG": validation}

    monkeypatch.setattr(movielens, "trained", trained)
    monkeypatch.setattr(source, "load_movielens", lambda data_dir: MADE)
    result = movielens.run(replace(PAPER, seeds=(1, 2), models=("faithful", "corrected")), tmp_path)
    assert result.tables["metrics"]["step"] == [960, 960, 480, 480]
    assert result.tables["metrics"]["NDCG"] == result.tables["metrics"]["HR"] == [1.3, 2.3, 1.2, 2.2]
    assert result.measured == {"recommendation/sigma-movielens": [1.3, 2.3]}


def test_claims_compare_the_models_seed_by_seed():
    ndcg = {"faithful": [0.3, 0.1], "SASRec": [0.1, 0.2], "BERT4Rec": [0.2, 0.1]}
    rows = [(model, value) for model, values in ndcg.items() for value in values]
    table = {"model": [model for model, _ in rows], "NDCG": [value for _, value in rows]}
    found = movielens._measured(table)
    assert found["recommendation/sigma-movielens"] == [0.3, 0.1]
    np.testing.assert_allclose(found["recommendation/movielens-bert4rec-beats-sasrec"], [0.1, -0.1])
    np.testing.assert_allclose(found["recommendation/movielens-sigma-beats-attention"], [0.1, -0.1])
    assert movielens._measured({"model": ["SASRec"], "NDCG": [0.1]}) == {}


def test_attention_is_causal_and_asked_for_every_item_or_both_ways_with_a_cloze(monkeypatch):
    """By what examples end with: the item before the two that are kept, or the one before the last."""
    import jax

    from experiments.baselines import recommenders

    made, causal = recommenders.attention_recommender, []
    monkeypatch.setattr(
        recommenders, "attention_recommender", lambda *a, **kw: causal.append(kw["causal"]) or made(*a, **kw)
    )
    sessions = in_sessions(MADE)
    own = {name: movielens.recommender_of(PAPER, name, 9) for name in ("SASRec", "BERT4Rec")}
    assert causal == [True, False]
    ends = {name: (sessions.offsets[1:] - one.examples(sessions).stop).tolist() for name, one in own.items()}
    assert set(ends["SASRec"]) == {3} and set(ends["BERT4Rec"]) == {2}
    for one in own.values():
        shapes = jax.eval_shape(one.init, jax.random.key(0))["params"]
        assert jax.tree.leaves(shapes["places"])[0].shape == (201, 64) and len(shapes["backbone"]) == 3


def test_whole_histories_are_fewer_in_an_update_than_prefixes(monkeypatch, tmp_path):
    from types import SimpleNamespace

    def train(config, task, columns, folder, **_):
        return SimpleNamespace(evaluation=(config.batch_size, len(columns["row"]), folder.name))

    monkeypatch.setattr("experiments.training.loop.train", train)
    sessions = in_sessions(MADE)
    found = {name: movielens.trained(PAPER, name, sessions, tmp_path, 2) for name in movielens.MODELS}
    users = len(sessions.lengths)
    assert found["SASRec"] == (128, users, "SASRec-2") and found["BERT4Rec"] == (128, users, "BERT4Rec-2")
    assert {found[name][:2] for name in ("faithful", "corrected")} == {(2048, (sessions.lengths - 3).sum())}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("models", ("released",), "models: got 'released', expected some of faithful, corrected, SASRec, BERT4Rec"),
        ("heads", 3, "heads: got 3, expected a divisor of the width, 64"),
        ("fewest", 3, "fewest: got 3, expected at least 4"),
        ("kept", 300, "kept: got 300, expected between 0 and 200"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **{field: value})
