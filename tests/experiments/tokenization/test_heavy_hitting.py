"""Heavy hitting: maximal tokens and their probabilities by definition, and the lemmas on exact LZW dictionaries."""

import itertools
import math
from functools import cache

import jax
import numpy as np
import pytest

from experiments.sources import MarkovSource, Source, SwitchingSource
from experiments.tokenization import GreedyTokenizer, LZWTokenizer
from experiments.tokenization.exact import exact_losses
from experiments.tokenization.heavy_hitting import (
    corollary_a_9_tokens,
    heavy_hitting_exponent,
    lemma_a_6_bound,
    lemma_a_7_length,
    lemma_a_8_length,
    lemma_a_11_log_probability,
    maximal_tokens,
    worst_log_probability,
)
from experiments.tokenization.theory import token_cross_entropy

KEY = jax.random.key(8)
SOURCES = [
    SwitchingSource(1, 0.8, 0.8),
    SwitchingSource(1, 0.1, 0.3),
    MarkovSource([[0.1, 0.6, 0.3], [0.45, 0.05, 0.5], [0.2, 0.7, 0.1]]),
    MarkovSource([0.2, 0.3, 0.5]),
]


@cache
def text_of(number: int) -> np.ndarray:
    """One text of each source."""
    return np.asarray(SOURCES[number].sample(KEY, (1, 500)))


def test_maximal_tokens_by_definition() -> None:
    """t is maximal if it is the longest token at the beginning of some strictly longer string."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        strings = {tuple(generator.integers(0, 2, generator.integers(1, 5)).tolist()) for _ in range(12)}
        vocabulary = [*{(0,), (1,)}, *(string for string in strings if len(string) > 1)]
        texts = [text for length in range(1, 7) for text in itertools.product((0, 1), repeat=length)]
        longest = [(text, max((t for t in vocabulary if text[: len(t)] == t), key=len)) for text in texts]
        found = {token for text, token in longest if len(token) < len(text)}
        assert {vocabulary[i] for i in maximal_tokens(vocabulary, 2)} == found


@pytest.mark.parametrize("number", range(4))
def test_greedy_uses_maximal_tokens_only(number: int) -> None:
    source = SOURCES[number]
    tokenizer = LZWTokenizer.train(text_of(number), 40, alphabet=source.alphabet)
    used = np.flatnonzero(exact_losses(tokenizer, source).frequencies > 0)
    assert set(used) <= set(maximal_tokens(tokenizer.vocabulary, source.alphabet))


@pytest.mark.parametrize("source", SOURCES)
def test_worst_probability_by_definition(source: Source) -> None:
    kernel = np.broadcast_to(source.kernel, (source.alphabet,) * 2)
    tokens = list(itertools.product(range(source.alphabet), repeat=3))
    expected = [max(kernel[:, a]) * kernel[a, b] * kernel[b, c] for a, b, c in tokens]
    np.testing.assert_allclose(np.exp(worst_log_probability(tokens, source)), expected, rtol=1e-12)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("size", [20, 300])
def test_lemma_a_6_holds_exactly(number: int, size: int) -> None:
    """H(Q_MLE, P) >= beta log d for the greedy encoder with any dictionary, here LZW's and a random one."""
    source, text = SOURCES[number], text_of(number)[:, :size]
    generator = np.random.default_rng(size)
    strings = {tuple(generator.integers(0, source.alphabet, generator.integers(2, 6)).tolist()) for _ in range(15)}
    random = GreedyTokenizer([*((a,) for a in range(source.alphabet)), *sorted(strings)])
    for tokenizer in (LZWTokenizer.train(text, size, alphabet=source.alphabet), random):
        beta = heavy_hitting_exponent(tokenizer.vocabulary, source, size)
        cross_entropy = token_cross_entropy(exact_losses(tokenizer, source).frequencies, tokenizer.vocabulary, source)
        assert cross_entropy >= lemma_a_6_bound(beta, size) - 1e-9


@pytest.mark.parametrize("number", range(4))
def test_lemmas_on_lzw(number: int) -> None:
    """A.7 admits no exception; A.8, A.9 and A.11 hold for these texts."""
    source = SOURCES[number]
    for size in (50, 500):
        tokenizer = LZWTokenizer.train(text_of(number)[:, :size], size, alphabet=source.alphabet)
        logs = worst_log_probability(tokenizer.vocabulary, source)
        delta = float(source.kernel.min())
        for beta in (0.2, 0.9):
            likely = logs >= math.log(delta) - beta * math.log(size)
            assert tokenizer.lengths[likely].max() <= lemma_a_7_length(source, size, beta)
        assert tokenizer.lengths.max() <= lemma_a_8_length(source, size)
        assert len(tokenizer) >= corollary_a_9_tokens(source, size)
        assert logs.min() > lemma_a_11_log_probability(source, size, 1.0)


def test_the_exponent_of_the_theorem_is_not_reached() -> None:
    """beta = 0.99 is what large d gives with high probability; at d = 500 LZW is far from it."""
    tokenizer = LZWTokenizer.train(text_of(0), 500, alphabet=2)
    assert heavy_hitting_exponent(tokenizer.vocabulary, SOURCES[0], 500) < 0.6


def test_hypotheses_are_enforced() -> None:
    first, second, zeros = SOURCES[0], SwitchingSource(2, 0.8, 0.8), SwitchingSource(1, 1.0, 0.5)
    for call, message in [
        (lambda: worst_log_probability([(0,)], second), "source: got order 2"),
        (lambda: heavy_hitting_exponent([(0,)], second, 5), "source: got order 2"),
        (lambda: heavy_hitting_exponent([(0,)], first), "size: got 1"),
        (lambda: heavy_hitting_exponent([(0,)], first, math.nan), "size: got nan"),
        (lambda: heavy_hitting_exponent([], first, 5), "vocabulary: got no token"),
        (lambda: worst_log_probability([(0,), (2,)], first), r"vocabulary: got \[2\]; expected symbols in 0..1"),
        (lambda: worst_log_probability([(-1,)], first), r"vocabulary: got \[-1\]"),
        (lambda: worst_log_probability([()], first), r"vocabulary: got \[\]"),
        (lambda: lemma_a_6_bound(-0.1, 5), "beta: got -0.1"),
        (lambda: lemma_a_7_length(zeros, 5, 0.5), "source: got delta = 0.0"),
        (lambda: lemma_a_8_length(first, 1), "size: got 1"),
        (lambda: lemma_a_8_length(zeros, 5), "source: got delta = 0.0"),
        (lambda: lemma_a_11_log_probability(first, 5, 0.0), "gamma: got 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
