"""Seconds per epoch: an epoch has an update for every batch of users, and a ratio is taken within a repetition."""

from dataclasses import replace
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.baselines.lstm import GRU
from experiments.baselines.recommenders import hidden_states, items_mask
from experiments.recommendation import epochs, speed
from experiments.recommendation.data import drawn
from experiments.recommendation.recommenders import cloze_places
from ssm import SIGMA
from tests.experiments.result_run import check_run


def test_ratios_are_within_a_repetition():
    names = [name for _ in range(2) for name in speed.EPOCHS]
    found = speed._measured({"model": names, "cpu_seconds": [2.0, 70.0, 30.0, 1.0, 1.0, 4.0, 90.0, 20.0, 1.0, 1.0]})
    values = {id.removeprefix("recommendation/"): x for id, x in found.items()}
    assert values["sasrec-efficiency"] == [15.0, 5.0] and values["sasrec-epoch"] == [2.0, 4.0]
    assert values["sasrec-epoch-all-items"] == [70.0, 90.0]


def test_the_sessions_have_the_size_of_movielens():
    sessions = speed.PRESETS["cpu"].sessions
    lengths = sessions.shortest + np.arange(sessions.users) % (sessions.longest - sessions.shortest + 1)
    assert (sessions.users, sessions.items) == (6000, 3400) and 155 < lengths.mean() < 175


@pytest.fixture
def met(monkeypatch):
    """The rows of each update, none of which is done."""
    rows = []

    def update_program(task, optimizer, batches):
        return lambda: rows.append(next(batches)["rows"].tolist())

    monkeypatch.setattr(epochs, "update_program", update_program)
    monkeypatch.setattr(epochs, "task_of", lambda *_: None)
    return rows


def test_an_epoch_meets_every_user(met):
    """With five users in batches of two, the third batch is filled up with somebody's second turn."""
    config = speed.Config(sessions=speed.Generated(users=5, items=4), batch=2, models=(speed.SASREC,))
    epoch = epochs.epoch_programs(config, None)[speed.SASREC]
    epoch.run()
    assert [len(rows) for rows in met] == [2, 2, 2] and {row for rows in met for row in rows} == set(range(5))
    assert (epoch.timed, epoch.updates) == (3, 3)


def test_an_epoch_of_prefixes_is_timed_in_part(met):
    config = replace(speed.PRESETS["smoke"], models=(speed.OF_PREFIXES,), timed=2)
    sessions = drawn(config.sessions, 0)[1]  # of 4, 5, 6 and 4 items
    epoch = epochs.epoch_programs(config, sessions)[speed.OF_PREFIXES]
    rows = len(sessions.prefixes(config.window).stop)
    assert rows > config.sessions.users and epoch.updates == -(-rows // 2) > epoch.timed == 2
    for _ in range(epoch.updates):
        epoch.run()
    assert {row for rows in met[: epoch.updates] for row in rows} == set(range(rows))


def test_scores_are_timed_per_user_and_epochs_as_often_as_they_have_updates(monkeypatch, tmp_path):
    from experiments.scan_benchmark.measure import Seconds

    monkeypatch.setattr("experiments.scan_benchmark.measure.clocked", lambda call: (Seconds(3.0, 5.0), call()))
    epoch = epochs.Epoch(lambda: None, 4, 10)
    monkeypatch.setattr(epochs, "epoch_programs", lambda *_: {speed.SASREC: epoch})
    monkeypatch.setattr(speed, "score_programs", lambda *_: {speed.SASREC: lambda: None})
    tables = speed.run(replace(speed.PRESETS["smoke"], batch=4), tmp_path).tables
    assert tables["scores"]["cpu_ms_per_user"] == [750.0]
    assert tables["epochs"]["cpu_seconds"] == [7.5] and tables["epochs"]["wall_seconds"] == [12.5]


def test_models_are_what_their_names_say():
    config = replace(CONFIG, width=6, layers=3)
    sigma = epochs.model_of(config, speed.OF_PREFIXES)
    assert isinstance(sigma, SIGMA) and (sigma.num_items, sigma.width) == (12, 6)
    kinds = {}
    for name in set(speed.EPOCHS) - {speed.OF_PREFIXES}:
        model = epochs.model_of(config, name)
        assert (model.vocab_size, model.backbone.width, model.backbone.num_layers) == (12, 6, 3)
        kinds[name] = getattr(model.backbone.mixer, "keywords", {"causal": model.backbone.mixer})["causal"]
    assert kinds == {speed.SASREC: True, speed.SASREC_ALL: True, speed.RECURRENT: GRU, speed.BERT4REC: False}


def test_the_last_item_of_each_user_is_scored_as_the_model_was_trained(monkeypatch):
    tasks = ("next_items", "cloze", "last_of_prefixes")
    for number, task in enumerate(tasks):
        made = SimpleNamespace(init=lambda key: key, scores=lambda *given, number=number: (number, *given[1:]))
        monkeypatch.setattr(f"experiments.recommendation.recommenders.{task}", lambda *_, made=made: made)
    _, sessions = drawn(LONGER, 0)  # of 5 and 6 items, the last one asked for
    expected = {speed.SASREC: 0, speed.RECURRENT: 0, speed.BERT4REC: 1, speed.OF_PREFIXES: 2}
    for name, program in speed.score_programs(replace(CONFIG, scored=speed.SCORED), sessions).items():
        number, history, lengths = program()
        assert number == expected[name] and lengths.tolist() == [4, 5]
        assert history.tolist() == [[*sessions.items[:4], 0], sessions.items[5:10].tolist()]


CONFIG = speed.PRESETS["smoke"]
LONGER = replace(CONFIG.sessions, shortest=5, longest=8)  # trained on: 2, 3, 4 and 5 items


def large(task):
    """Parameters with which all losses differ: with the initial ones every item is nearly as likely."""
    return jax.tree.map(lambda x: 10 * x, nn.unbox(task.init(jax.random.key(0))))


@pytest.mark.slow
@pytest.mark.parametrize("name", [speed.SASREC, speed.SASREC_ALL, speed.RECURRENT])
def test_an_epoch_has_the_model_and_the_loss_of_its_name(name):
    """On a history that fills the window and on one that does not, whose places behind the last item do not count."""
    key, (_, sessions) = jax.random.key(1), drawn(LONGER, 0)
    task = epochs.task_of(CONFIG, sessions, name)
    params = large(task)
    found, _ = task.loss(params, {"rows": jnp.array([3, 0])}, key)
    start, stop = sessions.trained(CONFIG.window)
    places = [np.arange(start[row], stop[row]) for row in (3, 0)]
    right = np.concatenate([sessions.items[own + 1] for own in places])
    history = np.stack([np.pad(sessions.items[own], (0, CONFIG.window - len(own))) for own in places])
    # the same random numbers, so that the same is dropped
    model = epochs.model_of(CONFIG, name)
    mask = items_mask(model, jnp.array([len(own) for own in places]), CONFIG.window)
    h, W = hidden_states(model, params, jnp.asarray(history), mask=mask, rngs={"dropout": key})
    others = np.asarray(jax.random.randint(key, history.shape, 0, len(W)))
    states, other = (np.concatenate([x[i, : len(own)] for i, own in enumerate(places)]) for x in (h, others))
    scores, at = states @ np.asarray(W).T, np.arange(len(right))
    if name == speed.SASREC_ALL:
        expected = optax.softmax_cross_entropy_with_integer_labels(scores, right).mean()
    else:
        expected = np.mean(np.logaddexp(0, -scores[at, right]) + np.logaddexp(0, scores[at, other]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_an_epoch_of_bert4rec_asks_for_what_it_hides():
    """On the histories without the two items that are kept, and at the hidden places alone."""
    key, (_, sessions) = jax.random.key(1), drawn(LONGER, 0)
    config = replace(CONFIG, hidden=0.6)
    task = epochs.task_of(config, sessions, speed.BERT4REC)
    params = large(task)
    found, _ = task.loss(params, {"rows": jnp.array([3, 0])}, key)
    start, stop = sessions.kept(2, CONFIG.window)
    own = [sessions.items[start[row] : stop[row]] for row in (3, 0)]
    lengths = jnp.array([len(items) for items in own])
    history = np.stack([np.pad(items, (0, CONFIG.window - len(items))) for items in own])
    hidden = np.asarray(cloze_places(key, lengths, CONFIG.window, 0.6))
    assert 0 < hidden.sum() < lengths.sum()
    model, real = epochs.model_of(config, speed.BERT4REC), np.arange(CONFIG.window) < np.asarray(lengths)[:, None]
    seen = np.where(hidden, CONFIG.sessions.items, history)
    h, W = hidden_states(model, params, jnp.asarray(seen), mask=jnp.asarray(real), rngs={"dropout": key})
    scores = np.asarray(h)[hidden] @ np.asarray(W).T
    expected = optax.softmax_cross_entropy_with_integer_labels(scores, history[hidden]).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_an_epoch_of_sigma_asks_for_what_follows_each_prefix():
    key, (_, sessions) = jax.random.key(1), drawn(LONGER, 0)
    task = epochs.task_of(CONFIG, sessions, speed.OF_PREFIXES)
    params, rows = large(task), np.array([5, 0])
    found, _ = task.loss(params, {"rows": jnp.asarray(rows)}, key)
    start, stop = (places[rows] for places in sessions.prefixes(CONFIG.window))
    history = [np.pad(sessions.items[a:b], (0, CONFIG.window - (b - a))) for a, b in zip(start, stop, strict=True)]
    model = epochs.model_of(CONFIG, speed.OF_PREFIXES)
    scores = model.apply(params, jnp.asarray(history), jnp.asarray(stop - start), rngs={"dropout": key})
    expected = optax.softmax_cross_entropy_with_integer_labels(scores, sessions.items[stop]).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(speed.PRESETS["smoke"], models=speed.EPOCHS, scored=speed.SCORED)
    result = check_run(speed, config, tmp_path)
    assert result.tables["epochs"]["model"] == list(speed.EPOCHS)
    assert result.tables["scores"]["model"] == list(speed.SCORED)
