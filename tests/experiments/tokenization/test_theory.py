"""Bounds and closed forms: hypotheses are enforced, conclusions hold."""

import itertools
import math

import jax
import numpy as np
import pytest

from experiments.sources import MarkovSource, Source, SwitchingSource, ThreeStateSource
from experiments.sources.dirichlet import clip_rows
from experiments.sources.markov import entropy
from experiments.tokenization import BlockTokenizer, GreedyTokenizer, LZWTokenizer
from experiments.tokenization.exact import exact_losses
from experiments.tokenization.losses import plug_in_loss
from experiments.tokenization.theory import (
    block_length,
    block_loss,
    conjecture_1_bound,
    log_probability,
    smallest_transition,
    theorem_2_1_ratio,
    theorem_4_1_bound,
    theorem_4_1_size,
    theorem_4_3_bound,
    theorem_4_5_bound,
    token_cross_entropy,
)

KEY = jax.random.key(5)
RANDOM = np.random.default_rng(5)
FAST = SwitchingSource(1, 0.8, 0.8)
SOURCES = [
    SwitchingSource(1, 0.8, 0.8),
    SwitchingSource(2, 0.3, 0.2),
    MarkovSource(RANDOM.dirichlet(np.ones(3))),
    MarkovSource(clip_rows(RANDOM.dirichlet(np.ones(2), (2, 2, 2)), 0.05)),
    MarkovSource(clip_rows(RANDOM.dirichlet(np.ones(4), 4), 0.05)),
]


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_conclusion_of_theorem_4_5_on_the_whole_grid() -> None:
    """All p and q in 0.1, 0.2, ..., 0.9, so that delta is 0.1 at least, as far as eps is below 1."""
    tried = 0
    for p, q in itertools.product(np.arange(1, 10) / 10, repeat=2):
        source = SwitchingSource(1, p, q)
        text = np.asarray(source.sample(jax.random.fold_in(KEY, round(100 * p + 10 * q)), (1, 500)))[0]
        for size in (20, 50, 200, 500):
            tokenizer = LZWTokenizer.train_on_prefix(text, size, alphabet=2)
            bound = theorem_4_5_bound(source, size, training_symbols=size)
            assert exact_losses(tokenizer, source).unigram <= bound, (p, q, size)
            tried += 1
    assert tried == 324


@pytest.mark.slow
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


@pytest.mark.parametrize("factor", [1.2, 2.0, 5.0])
def test_sizes_are_where_the_bounds_reach_the_factor(factor: float) -> None:
    """Theorem 4.1 at its size gives exactly the factor; blocks of the length do not exceed it, shorter ones do."""
    for source in (FAST, SwitchingSource(1, 0.05, 0.1)):
        size = theorem_4_1_size(source, factor)
        assert math.isclose(theorem_4_1_bound(source, size), factor * source.entropy_rate(), rel_tol=1e-9)
        length = block_length(source, factor)
        assert block_loss(source, length) <= factor * source.entropy_rate() * (1 + 1e-12)
        assert length == 1 or block_loss(source, length - 1) > factor * source.entropy_rate()


def test_blocks_need_many_more_tokens_than_the_theorem() -> None:
    """The headline: for slow switching, factor 2 needs about 1 / delta^2 tokens, blocks need exponentially many."""
    log_sizes = [block_length(SwitchingSource(1, delta, delta), 2) * math.log(2) for delta in (0.05, 0.01, 0.001)]
    bounds = [math.log(theorem_4_1_size(SwitchingSource(1, delta, delta), 2)) for delta in (0.05, 0.01, 0.001)]
    assert log_sizes[-1] > 4 * bounds[-1]
    assert log_sizes[-1] / log_sizes[0] > 20
    assert math.isclose(bounds[1], 2 / 0.99 * math.log(100))


def test_sizes_beyond_any_float() -> None:
    assert theorem_4_1_size(FAST, 1.0001) == math.inf
    assert math.isclose(theorem_4_1_size(FAST, math.inf), 5 ** (1 / 0.99), rel_tol=1e-12)


@pytest.mark.parametrize("source", SOURCES)
def test_block_loss_falls_to_the_entropy_rate(source: Source) -> None:
    """H_m / m = H_inf + (H_k - k H_inf) / m."""
    k, rate = source.order, source.entropy_rate()
    for m in (k + 1, 512):
        assert math.isclose(block_loss(source, m), rate + (source.block_entropy(k) - k * rate) / m, rel_tol=1e-12)
    assert math.isclose(block_loss(source, 1), source.unigram_entropy(), rel_tol=1e-9)


def test_conjecture_1() -> None:
    """On an i.i.d. source eps is 0; on the chain with zeros by hand."""
    assert conjecture_1_bound(MarkovSource([0.3, 0.7]), 10) == pytest.approx(entropy([0.3, 0.7]), rel=1e-9)
    source = ThreeStateSource(0.2)
    epsilon = math.log(source.unigram_entropy() / source.entropy_rate()) / (0.99 * math.log(50))
    assert conjecture_1_bound(source, 50) == pytest.approx(source.entropy_rate() / (1 - epsilon), rel=1e-12)


def test_published_scale_of_the_bounds() -> None:
    """Values worked out by hand from the formulas."""
    source = SwitchingSource(1, 0.1, 0.1)
    rate = source.entropy_rate()
    assert math.isclose(theorem_4_1_bound(source, 10_000), rate / (1 - 1 / (4 * 0.99)), rel_tol=1e-12)
    assert math.isclose(theorem_4_3_bound(source, math.log(1000)), 1.5 * rate, rel_tol=1e-12)


@pytest.mark.parametrize("order", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 3))])
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
def test_log_probability_of_strings(source: Source) -> None:
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
        (lambda: theorem_4_5_bound(FAST, 100, training_symbols=-1), "training_symbols: got -1"),
        (lambda: theorem_4_5_bound(FAST, 100, training_symbols=math.nan), "training_symbols: got nan"),
        (lambda: conjecture_1_bound(FAST, math.nan), "size: got nan"),
        (lambda: log_probability(FAST, [0.7, 0.2]), "symbols: got float64"),
        (lambda: log_probability(FAST, 1), "symbols: got int64 of shape"),
        (lambda: token_cross_entropy(np.array([1.0]), [(0,), (1,)], FAST), "frequencies: got shape"),
        (lambda: theorem_4_1_bound(SwitchingSource(2, 0.8, 0.8), 500), "source: got order 2"),
        (lambda: theorem_4_3_bound(SwitchingSource(3, 0.8, 0.8), 3.3), "source: got order 3"),
        (lambda: theorem_4_5_bound(SwitchingSource(4, 0.5, 0.5), 200, training_symbols=200), "source: got order 4"),
        (lambda: block_loss(SwitchingSource(1, 0.5, 0.5), 0), "block: got 0"),
        (lambda: theorem_2_1_ratio(SwitchingSource(1, 1.0, 1.0)), "entropy rate 0"),
        (lambda: theorem_4_1_size(FAST, 1.0), "factor: got 1.0"),
        (lambda: theorem_4_1_size(SwitchingSource(2, 0.8, 0.8), 2), "source: got order 2"),
        (lambda: block_length(FAST, 1.0), "factor: got 1.0"),
        (lambda: block_length(SwitchingSource(2, 0.8, 0.8), 2), "source: got order 2"),
        (lambda: conjecture_1_bound(SwitchingSource(2, 0.8, 0.8), 500), "source: got order 2"),
        (lambda: conjecture_1_bound(FAST, 1), "size: got 1"),
        (lambda: conjecture_1_bound(SwitchingSource(1, 1e-6, 1e-6), 3), "eps = .*expected eps"),
    ],
)
def test_hypotheses_are_enforced(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("source", SOURCES)
def test_no_unigram_over_characters_is_below_the_unigram_entropy(source: Source) -> None:
    """Theorem 2.1: its loss is the cross-entropy from the law of a character, which is least at that law."""
    law = np.array([np.exp(log_probability(source, [symbol])) for symbol in range(source.alphabet)])
    assert -law @ np.log(law) == pytest.approx(source.unigram_entropy(), abs=1e-12)
    for concentration in (0.3, 1.0, 30.0):
        for other in RANDOM.dirichlet(concentration * np.ones(source.alphabet), 100):
            assert -law @ np.log(np.maximum(other, 1e-300)) >= source.unigram_entropy() - 1e-12
