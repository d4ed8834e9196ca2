"""SIGMA's ablation: who counts as having a short history, and which differences the claims are."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recommendation import sigma
from experiments.recommendation.data import (
    MARKOV,
    POPULARITY,
    REFERENCES,
    SOURCE,
    Generated,
    drawn,
    law_of_last,
    reference_scores,
)
from experiments.recommendation.sigma import COMPARED, GROUPS, KINDS
from experiments.sources.sessions import Sessions
from ssm.sigma import partial_flip
from tests.experiments.result_run import check_run

CPU = sigma.PRESETS["cpu"]


def test_short_histories_are_those_of_which_the_released_flip_sees_nothing():
    window = CPU.sessions.longest
    for length in range(1, window + 1):
        flipped = partial_flip(jnp.arange(window)[None] < length, CPU.kept)
        assert (not flipped[0, :length].any()) == (length <= CPU.unseen)


def test_metrics_are_means_over_the_users_of_a_group():
    law = np.eye(12)[[0, 1, 2]] * 0.6 + np.eye(12)[[3, 4, 5]] * 0.4
    scores = np.stack([-np.arange(12.0)] * 3)  # ranks 1 to 12
    found = sigma._by_length(scores, law, np.array([2, 9, 3]), unseen=3)
    mrr = np.array([0.6 / (1 + i) + 0.4 / (4 + i) for i in range(3)])
    assert list(found) == list(GROUPS)
    expected = 100 * np.array([mrr.mean(), mrr[::2].mean(), mrr[1]])
    np.testing.assert_allclose([found[name][2] for name in GROUPS], expected, rtol=1e-5)
    np.testing.assert_allclose(found["all"][0], 100)


def test_claims_are_differences_within_a_seed():
    models = (*REFERENCES, *KINDS)
    rows = [
        (model, seed, group, (1 + place) ** 2.0 * (1 + seed) + 100 * (group == "short") * place)
        for place, model in enumerate(models)
        for seed in (0, 1)
        for group in GROUPS
    ]
    table = dict(zip(("model", "seed", "histories", "NDCG"), map(list, zip(*rows, strict=True)), strict=True))
    found = sigma._measured(sigma.PRESETS["smoke"], table)
    assert set(found) == {claim.id for claim in sigma.CLAIMS}
    for id, (one, other, group) in COMPARED.items():
        first, second = models.index(one), models.index(other)
        gain = (1 + first) ** 2 - (1 + second) ** 2
        more = 100 * (first - second) * (group == "short")
        assert found[f"recommendation/sigma-{id}"] == [gain + more, 2 * gain + more]
    np.testing.assert_allclose(found["recommendation/sigma-step-size-init"], [np.log(2)], rtol=1e-5)


def test_what_is_left_out_is_what_the_name_says():
    released, corrected = (sigma.model_of(CPU, kind) for kind in (sigma.RELEASED, sigma.CORRECTED))
    assert (released.mode, corrected.mode) == ("faithful", "corrected")
    fields = {"gate": sigma.NO_GATE, "flip": sigma.NO_FLIP, "recurrent": sigma.NO_GRU}
    for field, kind in fields.items():
        assert sigma.model_of(CPU, kind) == corrected.clone(**{field: False})
    assert sigma.model_of(CPU, sigma.RELEASED_NO_FLIP) == released.clone(flip=False)


def test_the_law_of_the_last_item_is_that_after_the_two_before():
    law, sessions = drawn(Generated(users=5, items=6, longest=7), 1)
    found = law_of_last(law, sessions)
    for user, end in enumerate(sessions.offsets[1:]):
        older, last = sessions.items[end - 3], sessions.items[end - 2]
        np.testing.assert_allclose(found[user], np.exp(law.log_law(older, last)), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)


def test_what_counts_sees_neither_the_last_item_nor_another_set():
    """Of both sets item 3 is nowhere but last; an answer that were seen would be in the counts or be the row read."""
    offsets = np.array([0, 5, 9])
    items = np.array([[0, 1, 0, 1, 3, 2, 1, 1, 3], [2, 2, 0, 0, 3, 2, 2, 2, 3]])
    law = np.random.default_rng(0).dirichlet(np.ones(4), (2, 2))
    found = reference_scores([Sessions(own, offsets) for own in items], law)
    assert list(found) == list(REFERENCES)
    assert found[POPULARITY].tolist() == [[[2, 2, 1, 0]] * 2, [[1, 0, 4, 0]] * 2]
    # behind item 1, of each user of the first set: 0 follows it once, and all items count as popularity says
    np.testing.assert_allclose(found[MARKOV][0], np.tile([(1 + 2 / 5) / 2, 1 / 5, 1 / 10, 0], (2, 1)))
    assert found[SOURCE] is law


@pytest.mark.slow
def test_scores_and_laws_of_a_seed_stay_together(monkeypatch, tmp_path):
    """The law itself scores best with its own seed; each kind is trained as the model of its name."""
    made, kinds = [], (sigma.RELEASED, sigma.NO_GRU)
    config = replace(CPU, seeds=(4, 7), kinds=kinds, sessions=Generated(users=40, items=30, shortest=4, longest=8))

    def trained_scores(train, model, sessions, folder, *, seeds, label):
        assert folder.name == label.replace(", ", "-").replace(" ", "-") and seeds == config.seeds
        laws = [drawn(config.sessions, seed)[0] for seed in seeds]
        return np.stack([law_of_last(*own) for own in zip(laws, sessions, strict=True)]), None, 0.0

    monkeypatch.setattr("experiments.recommendation.recommenders.trained_scores", trained_scores)
    monkeypatch.setattr("experiments.recommendation.recommenders.last_of_prefixes", lambda *given: made.append(given))
    table = sigma.run(config, tmp_path).tables["metrics"]
    assert made == [(sigma.model_of(config, kind), 8) for kind in kinds]
    rows = zip(table["model"], table["seed"], table["histories"], table["NDCG"], strict=True)
    ndcg = {tuple(row): value for *row, value in rows}
    for seed in config.seeds:
        law = law_of_last(*drawn(config.sessions, seed))
        best = np.sort(law, axis=1)[:, :-11:-1] / np.log2(np.arange(2, 12))
        for model in (SOURCE, *kinds):
            np.testing.assert_allclose(ndcg[model, seed, "all"], 100 * best.sum(axis=1).mean(), rtol=1e-5)


def test_settings_without_short_or_long_histories_are_refused():
    with pytest.raises(ValueError, match="kept: with 15 histories of at most 2 items are short, and none are"):
        replace(CPU, kept=15)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    config = replace(sigma.PRESETS["smoke"], kinds=tuple(KINDS))
    table = check_run(sigma, config, tmp_path).tables["metrics"]
    assert len(table["HR"]) == (len(KINDS) + len(REFERENCES)) * len(GROUPS)
    assert all(0 <= m <= n <= h <= 100 for h, n, m in zip(table["HR"], table["NDCG"], table["MRR"], strict=True))
