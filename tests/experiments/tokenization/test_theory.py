"""Theorems and exact losses: hypotheses are enforced, conclusions hold, sampling agrees with the exact numbers."""

import itertools
import math

import jax
import numpy as np
import pytest

from experiments.sources import MarkovSource, SwitchingSource
from experiments.sources.markov import entropy
from experiments.tokenization import BlockTokenizer, CharacterTokenizer, GreedyTokenizer, LZWTokenizer
from experiments.tokenization.exact import exact_losses
from experiments.tokenization.losses import plug_in_loss
from experiments.tokenization.theory import (
    block_loss,
    log_probability,
    smallest_transition,
    theorem_4_1_bound,
    theorem_4_3_bound,
    theorem_4_5_bound,
    token_cross_entropy,
)

KEY = jax.random.key(5)
FAST = SwitchingSource(1, 0.8, 0.8)
SOURCES = [
    SwitchingSource(1, 0.8, 0.8),
    SwitchingSource(2, 0.3, 0.2),
    MarkovSource.random(KEY, 0, 3, minimum=0.05),
    MarkovSource.random(KEY, 3, 2, minimum=0.05),
    MarkovSource.random(KEY, 1, 4, minimum=0.05),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [5, 30])
def test_exact_losses_agree_with_a_long_sample(source: MarkovSource | SwitchingSource, size: int) -> None:
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
def test_exact_losses_of_characters(source: MarkovSource | SwitchingSource) -> None:
    losses = exact_losses(GreedyTokenizer(CharacterTokenizer.train([], alphabet=source.alphabet).vocabulary), source)
    assert math.isclose(losses.unigram, source.unigram_entropy(), rel_tol=1e-12)
    assert math.isclose(losses.bigram, source.block_entropy(2) - source.block_entropy(1), rel_tol=1e-9)
    assert losses.symbols_per_token == 1.0


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


@pytest.mark.parametrize("source", SOURCES)
def test_exact_losses_are_at_least_the_entropy_rate(source: MarkovSource | SwitchingSource) -> None:
    for size in (4, 17, 120):
        train = source.sample(jax.random.key(size), (1, 20_000))
        losses = exact_losses(LZWTokenizer.train(train, size, alphabet=source.alphabet), source)
        assert losses.unigram >= losses.bigram - 1e-12
        assert losses.bigram >= source.entropy_rate() - 1e-9


def test_exact_losses_need_a_prefix_closed_dictionary_over_the_source() -> None:
    source = SwitchingSource(1, 0.8, 0.8)
    with pytest.raises(ValueError, match="not prefix-closed"):
        exact_losses(GreedyTokenizer([(0,), (1,), (0, 1, 1)]), source)
    with pytest.raises(ValueError, match="alphabet"):
        exact_losses(GreedyTokenizer([(0,), (1,), (2,)]), source)


@pytest.mark.parametrize("parameters", [(0.8, 0.8), (0.1, 0.1), (0.3, 0.2), (0.5, 0.9)])
def test_conclusions_of_theorems_4_3_and_4_5(parameters: tuple[float, float]) -> None:
    source = SwitchingSource(1, *parameters)
    delta = smallest_transition(source)
    assert delta >= 0.1 - 1e-12
    text = np.asarray(source.sample(KEY, (1, 1000)))
    for size in (50, 200, 1000):
        tokenizer = LZWTokenizer.train(text[:, :size], size, alphabet=2)
        losses = exact_losses(tokenizer, source)
        assert losses.unigram <= theorem_4_5_bound(source, size, training_symbols=size)
        cross_entropy = token_cross_entropy(losses.frequencies, tokenizer.vocabulary, source)
        if cross_entropy > math.log(1 / delta):
            assert losses.unigram <= theorem_4_3_bound(source, cross_entropy)


def test_the_formula_of_theorem_4_5_is_false_for_higher_orders() -> None:
    """Why the bound refuses such sources: LZW on d symbols of an order-4 source has a higher loss."""
    source, size = SwitchingSource(4, 0.9, 0.9), 1000
    tokenizer = LZWTokenizer.train(np.asarray(source.sample(KEY, (1, size))), size, alphabet=2)
    epsilon = math.log(1 / smallest_transition(source)) / (0.99 * math.log(size))
    assert epsilon < 1
    assert exact_losses(tokenizer, source).unigram > source.entropy_rate() / (1 - epsilon)


def test_the_formula_of_theorem_4_3_is_false_for_higher_orders() -> None:
    """Eight neighbours in an order-8 source are independent: blocks of 8 are rare and yet lose as much as symbols."""
    source = SwitchingSource(8, 0.9, 0.9)
    tokenizer = GreedyTokenizer([token for r in range(1, 9) for token in itertools.product((0, 1), repeat=r)])
    losses = exact_losses(tokenizer, source)
    epsilon = math.log(1 / 0.1) / token_cross_entropy(losses.frequencies, tokenizer.vocabulary, source)
    assert epsilon < 1
    assert math.isclose(losses.unigram, source.unigram_entropy(), rel_tol=1e-9)
    assert losses.unigram > source.entropy_rate() / (1 - epsilon)


def test_bounds_of_an_independent_source() -> None:
    """Order 0 is a chain of order 1 with equal rows."""
    law = [0.3, 0.7]
    assert theorem_4_1_bound(MarkovSource(law), 500) == theorem_4_1_bound(MarkovSource([law, law]), 500)


def test_published_scale_of_the_bounds() -> None:
    """Values worked out by hand from the formulas."""
    source = SwitchingSource(1, 0.1, 0.1)
    rate = source.entropy_rate()
    assert math.isclose(theorem_4_1_bound(source, 10_000), rate / (1 - 1 / (4 * 0.99)), rel_tol=1e-12)
    assert math.isclose(theorem_4_3_bound(source, math.log(1000)), 1.5 * rate, rel_tol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_block_loss(order: int) -> None:
    """H_r / r, which for order 1 is equation 2; a unigram over blocks reaches it."""
    source = SwitchingSource(order, 0.8, 0.7)
    rate, unigram = source.entropy_rate(), source.unigram_entropy()
    if order == 1:
        for r in range(1, 9):
            assert math.isclose(block_loss(source, r), rate * (1 - 1 / r) + unigram / r, rel_tol=1e-12)
    text = np.asarray(source.sample(KEY, (30, 27_720)))
    for r in (1, 2, 3, 5):
        tokenizer = BlockTokenizer(2, r)
        losses = [plug_in_loss([tokenizer.encode(row)], size=len(tokenizer), order=1, symbols=len(row)) for row in text]
        bias = 2**r / 2 / text.shape[1]
        assert abs(np.mean(losses) + bias - block_loss(source, r)) < 4 * np.std(losses) / math.sqrt(len(losses)) + bias


@pytest.mark.parametrize("source", SOURCES)
def test_log_probability_of_strings(source: MarkovSource | SwitchingSource) -> None:
    """Probabilities of all strings of one length sum to 1, and their entropy is the block entropy."""
    for length in (1, 2, 4):
        strings = np.stack(np.meshgrid(*[np.arange(source.alphabet)] * length, indexing="ij"), -1)
        probabilities = np.exp(log_probability(source, strings))
        assert probabilities.shape == (source.alphabet,) * length
        assert math.isclose(probabilities.sum(), 1.0, abs_tol=1e-12)
        assert math.isclose(entropy(probabilities), source.block_entropy(length), abs_tol=1e-10)
    assert log_probability(source, []) == pytest.approx(0.0, abs=1e-12)


def test_impossible_strings() -> None:
    assert log_probability(SwitchingSource(1, 1.0, 1.0), [0, 0]) == -math.inf
    with pytest.raises(ValueError, match="symbols: got 0..2"):
        log_probability(SwitchingSource(1, 0.5, 0.5), [0, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theorem_4_1_bound(FAST, 5), "eps = .*expected eps"),
        (lambda: theorem_4_1_bound(FAST, 1), "size: got 1"),
        (lambda: theorem_4_1_bound(SwitchingSource(1, 1.0, 0.5), 100), "source: got delta = 0.0"),
        (lambda: theorem_4_1_bound(MarkovSource([[1.0]]), 100), "source: got delta = 1.0"),
        (lambda: theorem_4_3_bound(FAST, math.log(5) - 1e-9), "eps = 1"),
        (lambda: theorem_4_3_bound(FAST, 0.0), "eps = inf"),
        (lambda: theorem_4_5_bound(FAST, 100, training_symbols=101), "training_symbols: got 101"),
        (lambda: theorem_4_1_bound(SwitchingSource(2, 0.8, 0.8), 500), "source: got order 2"),
        (lambda: theorem_4_3_bound(SwitchingSource(3, 0.8, 0.8), 3.3), "source: got order 3"),
        (lambda: theorem_4_5_bound(MarkovSource.random(KEY, 4, 2), 200, training_symbols=200), "source: got order 4"),
        (lambda: block_loss(SwitchingSource(1, 0.5, 0.5), 0), "block: got 0"),
    ],
)
def test_hypotheses_are_enforced(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
