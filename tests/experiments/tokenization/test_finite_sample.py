"""Laplace unigrams: the estimate, its excess loss, and the hypotheses of theorem C.1."""

import math

import jax
import numpy as np
import pytest

from experiments.sources import SwitchingSource
from experiments.tokenization import LZWTokenizer
from experiments.tokenization.exact import exact_losses
from experiments.tokenization.finite_sample import (
    concentrates,
    corollary_c_2_bound,
    excess_loss,
    laplace_unigram,
    theorem_c_1_symbols,
    tokens_of_text,
)
from experiments.tokenization.losses import NGram
from experiments.tokenization.theory import theorem_4_1_bound

SOURCE = SwitchingSource(1, 0.3, 0.2)
NUMBERS = {"theta": 0.01, "excess": 0.1, "failure": 0.1, "constant": 1.0}


@pytest.mark.parametrize("tokens", [None, 0, 1, 37])
def test_laplace_unigram(tokens: int | None) -> None:
    """It sums to 1 and is the n-gram with pseudo-count 1 on the beginning of the text."""
    ids = np.random.default_rng(0).integers(0, 7, 37)
    estimate = laplace_unigram(ids, 9, tokens)
    assert math.isclose(estimate.sum(), 1.0, rel_tol=1e-12)
    model = NGram.fit([ids[:tokens]], 9, 1, 1.0)
    np.testing.assert_allclose(np.log(estimate), [model.log_probability([[t]]) for t in range(9)], rtol=1e-12)


def test_excess_loss_falls_with_the_text() -> None:
    """Loss of the estimate minus the least loss, per symbol, falls like the inverse of the number of tokens."""
    text = np.asarray(SOURCE.sample(jax.random.key(0), (2, 60_000)))
    tokenizer = LZWTokenizer.train(text[:1], 60, alphabet=2)
    exact, ids = exact_losses(tokenizer, SOURCE), tokenizer.encode(text[1])
    excess = []
    for count in (30, 300, 3000):
        pieces = [laplace_unigram(ids[start:], 60, count) for start in range(0, len(ids) - count, max(count, 400))]
        excess.append(np.mean([excess_loss(exact.frequencies, piece, exact.symbols_per_token) for piece in pieces]))
        cross = -exact.frequencies @ np.log(pieces[0]) / exact.symbols_per_token
        found = excess_loss(exact.frequencies, pieces[0], exact.symbols_per_token)
        assert math.isclose(cross - exact.unigram, found, rel_tol=1e-9)
        assert found > 0
    assert excess[0] > 2 * excess[1] > 10 * excess[2] > 0


def test_the_text_has_the_tokens_that_are_kept() -> None:
    """n / l_max tokens are far fewer than there are: the algorithm wastes most of the text."""
    text = np.asarray(SOURCE.sample(jax.random.key(1), (1, 20_000)))
    tokenizer = LZWTokenizer.train(text[:, :200], 200, alphabet=2)
    kept = tokens_of_text(SOURCE, 200, text.size)
    assert 0 < kept <= len(tokenizer.encode(text[0]))
    assert kept == math.floor(text.size * 0.2 / (4 * math.log(400)))
    assert tokens_of_text(SOURCE, 200, 0) == 0


def test_concentration() -> None:
    """All strings of one length of a fair coin are equally likely; a rare one among few tokens is too rare."""
    coin = SwitchingSource(1, 0.5, 0.5)
    blocks = [tuple(int(bit) for bit in f"{i:03b}") for i in range(8)]
    assert concentrates(blocks, coin, 8, theta=0.01)
    assert not concentrates(blocks, coin, 100, theta=0.01)
    assert not concentrates([(0,), (1,), (0,) * 20], coin, 2, theta=0.5)


def test_length_of_text() -> None:
    """By hand at delta = 1/2, and its growth: nearly linear in d, quadratic in 1 / xi."""
    coin = SwitchingSource(1, 0.5, 0.5)
    expected = 1000**1.01 * math.log(20_000) ** 3 * math.log(math.log(10_000)) / (0.5 * 0.01)
    assert math.isclose(theorem_c_1_symbols(coin, 1000, **NUMBERS), expected, rel_tol=1e-12)
    half = theorem_c_1_symbols(coin, 1000, **{**NUMBERS, "excess": 0.05})
    assert math.isclose(half, 4 * expected, rel_tol=1e-12)
    assert math.isclose(corollary_c_2_bound(SOURCE, 500, 0.1), 1.1 * theorem_4_1_bound(SOURCE, 500), rel_tol=1e-12)


def test_hypotheses_are_enforced() -> None:
    for call, message in [
        (lambda: tokens_of_text(SOURCE, 10, -1), "symbols: got -1"),
        (lambda: tokens_of_text(SwitchingSource(2, 0.3, 0.2), 10, 5), "source: got order 2"),
        (lambda: laplace_unigram([0, 1], 2, 3), "tokens: got 3"),
        (lambda: laplace_unigram([0, 2], 2), "expected ids in 0..1"),
        (lambda: concentrates([(0,), (1,)], SOURCE, 2, 1.0), "theta: got 1.0"),
        (lambda: concentrates([(0,), (1,)], SOURCE, 1, 0.5), "size: got 1"),
        (lambda: theorem_c_1_symbols(SOURCE, 20, **NUMBERS), r"size, theta: got 20 .* 1 \+ delta\^-2 = 26"),
        (lambda: theorem_c_1_symbols(SOURCE, 500, **{**NUMBERS, "theta": 0.4}), "size, theta: got 500 and 0.4"),
        (lambda: theorem_c_1_symbols(SOURCE, 500, **{**NUMBERS, "constant": 0.0}), "constant: got 0.0"),
        (lambda: theorem_c_1_symbols(SOURCE, 500, **{**NUMBERS, "failure": 0.0}), "failure: got 0.0"),
        (lambda: corollary_c_2_bound(SOURCE, 500, 1.0), "excess: got 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
