"""What recommenders are trained on: losses by hand, and that neither padding nor what is asked for is seen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.baselines.recommenders import Size, attention_recommender, recurrent_recommender
from experiments.recommendation.data import recipe
from experiments.recommendation.epochs import sampled_loss
from experiments.recommendation.recommenders import (
    Recommender,
    _mean_cross_entropy,
    cloze,
    cloze_places,
    hidden_next,
    last_of_prefixes,
    next_items,
    trained_scores,
)
from experiments.sources.sessions import Sessions, Stretches
from ssm import SIGMA

WINDOW, ITEMS = 5, 7
SIZE = Size(items=ITEMS, width=4, layers=1, dropout=0.0)
HISTORY = jnp.array([[1, 2, 3, 0, 0], [6, 5, 4, 3, 2]])
FOLLOWING = jnp.array([[2, 3, 4, 0, 0], [5, 4, 3, 2, 1]])
LENGTHS = jnp.array([3, 5])
CAUSAL, BOTH_WAYS = (attention_recommender(SIZE, WINDOW + 1, causal=causal) for causal in (True, False))
KINDS = {
    "next items": next_items(CAUSAL, WINDOW),
    "recurrent": next_items(recurrent_recommender(SIZE), WINDOW),
    "causal, Cloze": cloze(CAUSAL, ITEMS, WINDOW, 0.5),
    "BERT4Rec": cloze(BOTH_WAYS, ITEMS, WINDOW, 0.5),
    "both ways, next item": hidden_next(BOTH_WAYS, ITEMS, WINDOW),
    "SIGMA": last_of_prefixes(SIGMA(ITEMS, width=4, state_size=2, dropout=0.0), WINDOW),
}


def large(recommender):
    shapes = nn.unbox(jax.eval_shape(recommender.init, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_a_history_does_not_matter(kind):
    own = KINDS[kind]
    params, key = large(own), jax.random.key(2)
    other = HISTORY.at[0, 3:].set(5), FOLLOWING.at[0, 3:].set(6)

    @jax.jit
    def outputs(history, following):
        return own.scores(params, history, LENGTHS), own.loss(params, history, following, LENGTHS, key)

    for found, changed in zip(outputs(HISTORY, FOLLOWING), outputs(*other), strict=True):
        np.testing.assert_array_equal(found, changed)
        assert np.isfinite(found).all()
    assert np.abs(np.diff(own.scores(params, HISTORY, LENGTHS), axis=0)).max() > 1e-3


def cross_entropy(logits, label):
    logits = np.asarray(logits, np.float64)
    return float(np.log(np.exp(logits).sum()) - logits[label])


@pytest.mark.slow
def test_next_items_are_asked_for_at_every_place():
    own = KINDS["next items"]
    params = large(own)
    logits = [CAUSAL.apply(params, row[None, :length])[0] for row, length in zip(HISTORY, LENGTHS, strict=True)]
    losses = [cross_entropy(logits[b][t], FOLLOWING[b, t]) for b in range(2) for t in range(int(LENGTHS[b]))]
    found = own.loss(params, HISTORY, FOLLOWING, LENGTHS, jax.random.key(0))
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(own.scores(params, HISTORY, LENGTHS)[0], logits[0][2], rtol=1e-4)


def test_rows_are_read_from_the_array_of_all_sessions():
    """What a loss and scores are given: histories, what follows each item, lengths."""
    given = Recommender(None, lambda *seen: seen, lambda *seen: seen, 3, None)
    stretches, items = Stretches(np.array([2, 0, 5]), np.array([4, 3, 6])), jnp.arange(10, 20)
    rows = jnp.array([2, 0])
    found = given.loss_of_rows(stretches)("parameters", rows, "key", items)
    assert [x if isinstance(x, str) else x.tolist() for x in found] == [
        "parameters",
        [[15, 0, 0], [12, 13, 0]],
        [[16, 0, 0], [13, 14, 0]],
        [1, 2],
        "key",
    ]
    _, history, lengths = given.scores_of("parameters", items, stretches)
    assert history.tolist() == [[12, 13, 0], [10, 11, 12], [15, 0, 0]] and lengths.tolist() == [2, 3, 1]


def test_nothing_hidden_costs_nothing():
    counted = jnp.zeros((1, 2), bool)
    assert _mean_cross_entropy(jnp.full((1, 2, 3), jnp.inf), jnp.full((1, 2), -1), counted) == 0


def test_every_seed_is_trained_on_its_own_sessions_and_asked_for_the_last_item(tmp_path):
    """The model counts which items it has seen; its scores tell what it is asked about."""
    offsets = np.array([0, 5, 9])
    sessions = [Sessions(first + np.arange(9), offsets) for first in (0, 10)]

    def loss(params, history, following, lengths, key):
        real = jnp.arange(4)[None] < lengths[:, None]
        return -jnp.sum(params["seen"][history] * real)

    def scores(params, history, lengths):
        return jnp.concatenate([jnp.tile(params["seen"][None], (len(history), 1)), history, lengths[:, None]], axis=1)

    own = Recommender(lambda key: {"seen": jnp.zeros(20)}, loss, scores, 4, lambda sessions: sessions.trained(4))
    found, _, _ = trained_scores(recipe(1, 2), own, sessions, tmp_path, seeds=(3, 4), label="")
    for seed, first in enumerate((0, 10)):
        assert np.flatnonzero(found[seed, 0, :20]).tolist() == [first, first + 1, first + 5]
        assert (found[seed, :, 20:24] == [first + np.arange(4), first + np.array([5, 6, 7, -first])]).all()
        assert found[seed, :, 24].tolist() == [4, 3]


@pytest.mark.slow
def test_a_cloze_asks_for_hidden_items_alone_and_does_not_see_them():
    own, key = KINDS["BERT4Rec"], jax.random.key(4)
    params = large(own)
    hidden = np.asarray(cloze_places(jax.random.split(key)[0], LENGTHS, WINDOW, 0.5))
    seen = np.where(hidden, ITEMS, HISTORY)
    assert hidden.sum() >= 2
    losses = []
    for b in range(2):
        length = int(LENGTHS[b])
        logits = BOTH_WAYS.apply(params, jnp.asarray(seen[b : b + 1, :length]))[0]
        losses += [cross_entropy(logits[t], HISTORY[b, t]) for t in np.flatnonzero(hidden[b])]
    found = own.loss(params, HISTORY, FOLLOWING, LENGTHS, key)
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)


def test_a_cloze_hides_a_share_or_the_last_item():
    lengths = jnp.tile(LENGTHS, 2000)
    hidden = np.asarray(cloze_places(jax.random.key(0), lengths, WINDOW, 0.3))
    real = np.arange(WINDOW)[None] < np.asarray(lengths)[:, None]
    assert not hidden[~real].any()
    # of items before the last one, in nine rows of ten
    before = real & (np.arange(WINDOW)[None] < np.asarray(lengths)[:, None] - 1)
    np.testing.assert_allclose(hidden[before].mean(), 0.9 * 0.3, atol=5 * 0.45 / before.sum() ** 0.5)
    np.testing.assert_allclose(hidden[real & ~before].mean(), 0.1 + 0.9 * 0.3, atol=5 * 0.5 / 4000**0.5)


@pytest.mark.slow
def test_scores_are_of_an_item_hidden_behind_the_history_and_of_the_next_one():
    """Of histories without padding, one by one."""
    for kind, model in (("BERT4Rec", BOTH_WAYS), ("SIGMA", None)):
        own = KINDS[kind]
        params = large(own)
        found = own.scores(params, HISTORY, LENGTHS)
        for row, length, scores in zip(HISTORY, LENGTHS.tolist(), found, strict=True):
            if model is None:
                loss = own.loss(params, row[None], FOLLOWING[:1], jnp.array([length]), jax.random.key(0))
                np.testing.assert_allclose(loss, cross_entropy(scores, FOLLOWING[0, length - 1]), rtol=1e-4)
            else:
                expected = model.apply(params, jnp.append(row[:length], ITEMS)[None])[0, -1]
                np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_item_behind_is_asked_for_where_a_history_ends():
    """Averaged over many ends: the mean of what a hidden item behind each prefix costs."""
    own = KINDS["both ways, next item"]
    params = large(own)
    loss = jax.jit(lambda key: own.loss(params, HISTORY[1:], FOLLOWING[1:], LENGTHS[1:], key))
    found = {round(float(loss(jax.random.key(seed))), 4) for seed in range(40)}
    expected = {
        round(cross_entropy(own.scores(params, HISTORY[1:], jnp.array([end]))[0], FOLLOWING[1, end - 1]), 4)
        for end in range(1, 6)
    }
    assert len(expected) == 5
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=2e-4)


def test_examples_of_each_kind():
    sessions = Sessions(np.arange(13) % ITEMS, np.array([0, 6, 13]))
    counts = {name: own.examples(sessions).lengths.tolist() for name, own in KINDS.items()}
    assert counts["next items"] == counts["recurrent"] == counts["both ways, next item"] == [3, 4]
    assert counts["BERT4Rec"] == counts["causal, Cloze"] == [4, 5]
    assert counts["SIGMA"] == [1, 2, 3, 1, 2, 3, 4]


def test_the_sampled_loss_is_that_of_a_pair():
    h, W = jnp.array([[[1.0], [2.0], [9.0]]]), jnp.array([[1.0], [3.0]])
    real, key = jnp.array([[True, True, False]]), jax.random.key(0)
    others = np.asarray(jax.random.randint(key, (1, 3), 0, 2))[0]
    following = jnp.array([[1, 0, 0]])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    pairs = [(3.0, float(W[others[0], 0])), (2.0, 2 * float(W[others[1], 0]))]
    expected = -np.mean([np.log(sigmoid(right)) + np.log(sigmoid(-other)) for right, other in pairs])
    np.testing.assert_allclose(sampled_loss(h, W, following, real, key), expected, rtol=1e-5)
