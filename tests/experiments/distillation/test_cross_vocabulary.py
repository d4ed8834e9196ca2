"""Tokens of two vocabularies as Markov chains, and the losses between them."""

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from experiments.distillation import cross_vocabulary
from experiments.distillation.cross_vocabulary import losses, read, setting, shares, token_chain, vocabularies
from tests.experiments.result_run import check_run

CONFIG = cross_vocabulary.PRESETS["smoke"]


@pytest.mark.slow
def test_tokens_of_a_long_text_follow_the_chain():
    random = np.random.default_rng(0)
    table = random.dirichlet(np.ones(4), 4)
    law = random.random((4, 4))
    for vocabulary in vocabularies(law):
        chain = token_chain(vocabulary, table)
        np.testing.assert_allclose(chain.sum(1), 1, rtol=1e-12)
        text = [0]
        for uniform in random.random(60_000):
            text.append(min(int((table[text[-1]].cumsum() < uniform).sum()), 3))
        tokens, ends = read(vocabulary, np.array(text))
        assert [symbol for token in tokens for symbol in vocabulary[token]] == text and ends[-1] == len(text)
        counts = shares(len(vocabulary), np.stack([tokens[:-1], tokens[1:]], 1))
        rows = counts.sum(1) > 0.01
        np.testing.assert_allclose(counts[rows] / counts[rows].sum(1, keepdims=True), chain[rows], atol=0.04)


@pytest.mark.slow
def test_losses_are_means_over_the_positions():
    given = setting(CONFIG, 3)
    s = jnp.asarray(np.random.default_rng(1).normal(size=given.log_s.shape), jnp.float32)
    log_q = np.asarray(s) - np.log(np.exp(s).sum(1, keepdims=True))
    found = losses(s, given)
    places = np.argwhere(given.aligned)
    least = given.aligned[given.aligned > 0].min()  # of one position, or a few
    times = np.rint(60 * given.aligned[tuple(places.T)] / least).astype(int)
    rows, columns = np.repeat(places, times, axis=0).T
    common = jnp.arange(len(s) - cross_vocabulary.OWN_MERGES)
    log_t = jnp.asarray(given.log_t, jnp.float32)
    assert float(found[0]) == pytest.approx(-(given.labels * log_q).sum(), rel=1e-5)
    assert float(found[2]) == pytest.approx(float(kd.uld(s[rows], log_t[columns])), rel=1e-4)
    assert float(found[3]) == pytest.approx(float(kd.hybrid_uld(s[rows], log_t[columns], common, common)), rel=1e-4)
    # a student that is the source has nothing to learn from a teacher of the same vocabulary
    assert np.abs(np.asarray(losses(jnp.asarray(given.log_s, jnp.float32), given)[5:])).max() < 1e-5
    assert float(jnp.min(found[5:])) > 0.1


def test_contexts_meet_where_both_have_read_the_same():
    given = setting(CONFIG, 5)
    vocabulary = CONFIG.symbols + 1 + cross_vocabulary.OWN_MERGES
    assert given.log_s.shape == given.log_t.shape == (vocabulary, vocabulary)
    for counts in (given.labels, given.aligned, given.shifted):
        assert counts.sum() == pytest.approx(1)
    # single symbols in common end with the same symbol, wherever the two have read the same
    singles = given.aligned[: CONFIG.symbols, : CONFIG.symbols]
    assert np.count_nonzero(singles - np.diag(np.diag(singles))) == 0
    other = given.shifted[: CONFIG.symbols, : CONFIG.symbols]
    assert np.count_nonzero(other - np.diag(np.diag(other))) > 0


def test_smoke_run(tmp_path):
    check_run(cross_vocabulary, CONFIG, tmp_path)
