"""Exact losses over greedy tokens: against samples, by hand, and against the entropies that bound them."""

import itertools
import math

import jax
import numpy as np
import pytest

from experiments.sources import MarkovSource, Source, SwitchingSource, ThreeStateSource
from experiments.sources.dirichlet import clip_rows
from experiments.sources.markov import entropy
from experiments.tokenization import BPETokenizer, CharacterTokenizer, GreedyTokenizer, LZWTokenizer, MinimalTokenizer
from experiments.tokenization.exact import _emissions, exact_kgram_loss, exact_losses
from experiments.tokenization.losses import plug_in_loss

KEY = jax.random.key(5)
RANDOM = np.random.default_rng(5)
SOURCES = [
    SwitchingSource(1, 0.8, 0.8),
    SwitchingSource(2, 0.3, 0.2),
    MarkovSource(RANDOM.dirichlet(np.ones(3))),
    MarkovSource(clip_rows(RANDOM.dirichlet(np.ones(2), (2, 2, 2)), 0.05)),
    MarkovSource(clip_rows(RANDOM.dirichlet(np.ones(4), 4), 0.05)),
]


def random_dictionary(source: Source, generator: np.random.Generator, count: int) -> GreedyTokenizer:
    """Single symbols and random strings, most of whose prefixes are no tokens."""
    strings = {tuple(generator.integers(0, source.alphabet, generator.integers(2, 7)).tolist()) for _ in range(count)}
    return GreedyTokenizer([*((symbol,) for symbol in range(source.alphabet)), *sorted(strings)])


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [5, 30])
def test_exact_losses_agree_with_a_long_sample(source: Source, size: int) -> None:
    """Plug-in losses of 40 independent texts scatter around the exact value; their bias is about d**order / 2n."""
    train, test = (np.asarray(source.sample(jax.random.key(seed), (40, 20_000))) for seed in (1, 2))
    tokenizer = LZWTokenizer.train(train, size, alphabet=source.alphabet)
    losses = exact_losses(tokenizer, source)
    ids = tokenizer.encode_batch(test)
    lengths = np.array([test.shape[1] / len(row) for row in ids])
    assert abs(lengths.mean() - losses.symbols_per_token) < 4 * lengths.std() / math.sqrt(len(lengths)) + 1e-3
    for order, exact in ((1, losses.unigram), (2, losses.bigram)):
        pooled = plug_in_loss(ids, size=len(tokenizer), order=order, symbols=test.size)
        each = [
            plug_in_loss([row], size=len(tokenizer), order=order, symbols=len(symbols))
            for row, symbols in zip(ids, test, strict=True)
        ]
        bias = len(tokenizer) ** order / test.size
        assert abs(pooled - exact) < 4 * np.std(each) / math.sqrt(len(each)) + bias + 1e-3


@pytest.mark.parametrize("source", SOURCES)
def test_exact_losses_of_characters(source: Source) -> None:
    losses = exact_losses(GreedyTokenizer(CharacterTokenizer.train([], alphabet=source.alphabet).vocabulary), source)
    assert math.isclose(losses.unigram, source.unigram_entropy(), rel_tol=1e-12)
    assert math.isclose(losses.bigram, source.block_entropy(2) - source.block_entropy(1), rel_tol=1e-9)
    assert math.isclose(losses.symbols_per_token, 1.0, rel_tol=1e-12)


def test_exact_frequencies_of_a_small_dictionary() -> None:
    """A fair coin with the tokens 0, 1, 00: by hand, a token is 00, 0, 1 with probabilities 1/4, 1/4, 1/2 at a start
    with two fresh symbols, but after a lone 0 the next symbol is known to be 1."""
    losses = exact_losses(GreedyTokenizer([(0,), (1,), (0, 0)]), MarkovSource([0.5, 0.5]))
    # Starts are fresh (F) or known to be 1 (K): F emits 0 -> K with 1/4, else stays F; K emits 1 -> F.
    fresh = 0.8
    expected = [fresh / 4, fresh / 2 + (1 - fresh), fresh / 4]
    np.testing.assert_allclose(losses.frequencies, expected, atol=1e-12)
    assert math.isclose(losses.symbols_per_token, 1.2, rel_tol=1e-12)
    assert math.isclose(losses.unigram, entropy(expected) / 1.2, rel_tol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_exact_losses_are_at_least_the_entropy_rate(source: Source) -> None:
    for size in (4, 17, 120):
        train = source.sample(jax.random.key(size), (1, 20_000))
        losses = exact_losses(LZWTokenizer.train(train, size, alphabet=source.alphabet), source)
        assert losses.unigram >= losses.bigram - 1e-12
        assert losses.bigram >= source.entropy_rate() - 1e-9


@pytest.mark.parametrize("source", [SOURCES[1], *(pytest.param(s, marks=pytest.mark.slow) for s in SOURCES[2:])])
def test_any_dictionary_agrees_with_a_long_sample(source: Source) -> None:
    """Where prefixes of tokens are no tokens, the encoder steps back: frequencies of tokens, pairs and triples."""
    generator = np.random.default_rng(source.order)
    tokenizer = random_dictionary(source, generator, 12)
    assert not tokenizer.prefix_closed
    test = np.asarray(source.sample(jax.random.key(2), (30, 10_000)))
    ids = tokenizer.encode_batch(test)
    exact = exact_losses(tokenizer, source)
    share = np.array([np.bincount(row, minlength=len(tokenizer)) / len(row) for row in ids])
    error = share.std(axis=0) / math.sqrt(len(share))
    assert np.all(np.abs(share.mean(axis=0) - exact.frequencies) < 5 * error + 1e-4)
    for order in (1, 2, 3):
        pooled = plug_in_loss(ids, size=len(tokenizer), order=order, symbols=test.size)
        each = [plug_in_loss([row], size=len(tokenizer), order=order, symbols=len(test[0])) for row in ids]
        bias = len(tokenizer) ** order / test.size
        value = exact_kgram_loss(tokenizer, source, order)
        assert abs(pooled - value) < 4 * np.std(each) / math.sqrt(len(each)) + bias + 1e-3


def test_a_dictionary_that_steps_back_by_hand() -> None:
    """A fair coin with the tokens 0, 1, 001. Read 0: a 1 (1/2) makes tokens 0, 1; 00 then 1 makes 001, and 00 then 0
    makes the token 0 with 00 pending. So N_0, the zeros before the next 1, is geometric: none, one, or two and more."""
    losses = exact_losses(GreedyTokenizer([(0,), (1,), (0, 0, 1)]), MarkovSource([0.5, 0.5]))
    # Per 1 in the text: zeros n with probability 2^-(n+1); n = 0: 1; n = 1: 0, 1; n >= 2: n - 2 times 0, then 001.
    ones, triples = 0.75, 0.25
    zeros = 0.25 * 1 + sum((n - 2) * 2.0 ** -(n + 1) for n in range(2, 60))
    expected = np.array([zeros, ones, triples]) / (zeros + ones + triples)
    np.testing.assert_allclose(losses.frequencies, expected, atol=1e-12)
    assert math.isclose(losses.symbols_per_token, 2 / (zeros + ones + triples), rel_tol=1e-12)


@pytest.mark.parametrize("source", [*SOURCES, ThreeStateSource(0.1)])
def test_emissions_are_a_law(source: Source) -> None:
    """From every state, the next token and state have total probability 1; fuzzed over dictionaries."""
    generator = np.random.default_rng(source.alphabet)
    for count in (0, 1, 5, 40):
        (starts, _, ends, weights), states = _emissions(random_dictionary(source, generator, count).vocabulary, source)
        np.testing.assert_allclose(np.bincount(starts, weights, states), 1, atol=1e-12)
        assert 0 <= ends.min() <= ends.max() < states


@pytest.mark.parametrize("source", SOURCES)
def test_kgram_losses(source: Source) -> None:
    """They fall with k, never below the entropy rate; k = 1, 2 are those of `exact_losses`."""
    tokenizer = random_dictionary(source, np.random.default_rng(7), 6)
    losses = [exact_kgram_loss(tokenizer, source, k) for k in (1, 2, 3, 4)]
    known = exact_losses(tokenizer, source)
    np.testing.assert_allclose(losses[:2], [known.unigram, known.bigram], rtol=1e-9)
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    assert losses[-1] >= source.entropy_rate() - 1e-9


def test_character_kgrams_reach_the_entropy_rate() -> None:
    """H_k - H_{k-1} of characters is the entropy rate from k = order + 1 on."""
    source = SOURCES[3]
    for k in range(1, 7):
        expected = source.block_entropy(k) - source.block_entropy(k - 1)
        assert math.isclose(exact_kgram_loss(GreedyTokenizer([(0,), (1,)]), source, k), expected, rel_tol=1e-9)


def test_exact_losses_of_merged_tokens() -> None:
    """The greedy encoding with a BPE dictionary of ten tokens on the order-2 source, p = q = 0.8; its bigram is nearly
    optimal."""
    source = SwitchingSource(2, 0.8, 0.8)
    text = np.asarray(source.sample(jax.random.key(0), (1, 200_000)))
    losses = exact_losses(GreedyTokenizer(BPETokenizer.train(text, 10).vocabulary), source)
    assert abs(losses.unigram - 0.5576) < 0.003
    assert abs(losses.bigram - source.entropy_rate()) < 1e-9


def test_encoders_that_are_not_greedy_are_refused() -> None:
    """They have the same dictionary, but other tokens."""
    for tokenizer in (MinimalTokenizer([(0,), (1,)]), BPETokenizer.from_merges((0, 1), [(0, 1)])):
        with pytest.raises(ValueError, match=f"tokenizer: got a {type(tokenizer).__name__}; expected a greedy one"):
            exact_losses(tokenizer, SwitchingSource(1, 0.8, 0.8))  # type: ignore[arg-type]


def test_arguments_are_checked() -> None:
    source = SwitchingSource(1, 0.8, 0.8)
    with pytest.raises(ValueError, match="alphabet"):
        exact_losses(GreedyTokenizer([(0,), (1,), (2,)]), source)
    tokenizer = GreedyTokenizer([(0,), (1,)])
    with pytest.raises(ValueError, match="order: got 0"):
        exact_kgram_loss(tokenizer, source, 0)
    with pytest.raises(ValueError, match="order: got 25 with 2 tokens"):
        exact_kgram_loss(tokenizer, source, 25)
