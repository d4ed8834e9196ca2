"""Predictions in context: each against its definition, by counting, and against the losses that are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sources.in_context import InContextChains, stationary_contexts
from experiments.sources.predictors import (
    kgram_predictions,
    mixture_predictions,
    oracle_predictions,
    position_losses,
    uniform_predictions,
    unigram_predictions,
)

KEY = jax.random.key(4)


def counted(sequence: list[int], t: int, alphabet: int, order: int, pseudo_count: float) -> list[float]:
    """The k-gram at position t of one sequence, from its definition."""
    seen = [pseudo_count] * alphabet
    for i in range(order, t):
        if t >= order and sequence[i - order : i] == sequence[t - order : t]:
            seen[sequence[i]] += 1
    return [n / sum(seen) for n in seen]


@pytest.mark.parametrize(("alphabet", "order", "length"), [(2, 0, 9), (3, 2, 41), (2, 3, 2)])
@pytest.mark.parametrize("pseudo_count", [1.0, 0.3])
def test_kgram_counts(alphabet: int, order: int, length: int, pseudo_count: float) -> None:
    symbols = np.random.default_rng(length).integers(0, alphabet, (3, length))
    found = kgram_predictions(jnp.asarray(symbols), alphabet, order, pseudo_count)
    expected = [[counted(row, t, alphabet, order, pseudo_count) for t in range(length)] for row in symbols.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_strategies_on_a_sequence_by_hand() -> None:
    """0 0 1 0 0: laws before each symbol, and the losses of the two strategies."""
    symbols = jnp.array([[0, 0, 1, 0, 0]])
    unigram, bigram = unigram_predictions(symbols, 2), kgram_predictions(symbols, 2, 1)
    np.testing.assert_allclose(unigram[0, :, 0], [1 / 2, 2 / 3, 3 / 4, 3 / 5, 4 / 6], rtol=1e-6)
    np.testing.assert_allclose(bigram[0, :, 0], [1 / 2, 1 / 2, 2 / 3, 1 / 2, 1 / 2], rtol=1e-6)
    losses = position_losses(bigram, symbols)
    np.testing.assert_allclose(losses, -np.log([[1 / 2, 1 / 2, 1 / 3, 1 / 2, 1 / 2]]), rtol=1e-6)
    np.testing.assert_allclose(position_losses(uniform_predictions(symbols, 2), symbols), math.log(2), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("alphabet", "order"), [(2, 3)])
def test_the_oracle_gives_the_probability_of_a_sequence(alphabet: int, order: int) -> None:
    chains = InContextChains(alphabet, order).sample(KEY, (4, 11))
    found = position_losses(oracle_predictions(*chains), chains.symbols).sum(axis=1)
    laws = np.asarray(stationary_contexts(chains.kernels))
    for row, kernel, law, loss in zip(np.asarray(chains.symbols), np.asarray(chains.kernels), laws, found, strict=True):
        context = int(np.polyval(row[:order], alphabet))
        expected = -math.log(law[context])
        for symbol in row[order:]:
            expected -= math.log(kernel[context, symbol])
            context = (context * alphabet + int(symbol)) % len(kernel)
        assert math.isclose(loss, expected, rel_tol=1e-4)
    assert oracle_predictions(chains.kernels, chains.symbols[:, :1]).shape == (4, 1, alphabet)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alphabet", "published"), [(2, (0.6931, 0.5760, 0.5057, 0.4769)), (3, (1.0986, 0.9992, 0.8837, 0.8178))]
)
def test_losses_on_random_chains(alphabet: int, published: tuple[float, ...]) -> None:
    """Known from 512 sequences of 100 predictions; here from 2048 others, so within 4 standard errors of both."""
    kernels, symbols = InContextChains(alphabet).sample(KEY, (2048, 101))
    predictions = [
        uniform_predictions(symbols, alphabet),
        unigram_predictions(symbols, alphabet),
        kgram_predictions(symbols, alphabet, 1),
        oracle_predictions(kernels, symbols),
    ]
    losses = [np.asarray(position_losses(law, symbols))[:, 1:].mean(axis=1) for law in predictions]
    for loss, value in zip(losses, published, strict=True):
        assert abs(loss.mean() - value) < 4 * loss.std() * math.sqrt(1 / 2048 + 1 / 512) + 1e-4
    means = [float(loss.mean()) for loss in losses]
    assert means == sorted(means, reverse=True)


def test_the_unigram_is_optimal_on_equal_rows() -> None:
    """Rows ~ Dir(1, ..., 1): all counts of 0..T symbols are equally likely, so sequences have probability
    prod n_x! (K - 1)! / (T + K - 1)!, which is what the predictions multiply to."""
    symbols = jnp.asarray(np.random.default_rng(0).integers(0, 3, (5, 12)))
    total = position_losses(unigram_predictions(symbols, 3), symbols).sum(axis=1)
    for row, loss in zip(np.asarray(symbols), total, strict=True):
        counts = np.bincount(row, minlength=3)
        expected = math.lgamma(12 + 3) - math.lgamma(3) - sum(math.lgamma(n + 1) for n in counts)
        assert math.isclose(loss, expected, rel_tol=1e-5)


@pytest.mark.slow
def test_a_mixture_is_bayes() -> None:
    """Its sequence probability is the average of those of its hypotheses; a hypothesis that failed is out for good."""
    symbols = InContextChains(2).sample(KEY, (6, 40)).symbols
    parts = [unigram_predictions(symbols, 2), kgram_predictions(symbols, 2, 1)]
    mixed = position_losses(mixture_predictions(parts, symbols, [1.0, 3.0]), symbols).sum(axis=1)
    totals = np.stack([position_losses(law, symbols).sum(axis=1) for law in parts])
    np.testing.assert_allclose(mixed, -np.log([0.25, 0.75] @ np.exp(-totals)), rtol=1e-4)
    wrong = jnp.zeros((6, 40, 2)).at[jnp.arange(6)[:, None], jnp.arange(40), 1 - symbols].set(1.0)
    left = mixture_predictions([wrong, parts[1]], symbols, [1.0, 1.0])
    np.testing.assert_allclose(left[:, 1:], parts[1][:, 1:], rtol=1e-6)


def test_arguments_are_checked() -> None:
    symbols = jnp.zeros((1, 3), jnp.int32)
    half = uniform_predictions(symbols, 2)
    with pytest.raises(ValueError, match="order: got -1"):
        kgram_predictions(symbols, 2, -1)
    with pytest.raises(ValueError, match="pseudo_count: got 0"):
        unigram_predictions(symbols, 2, 0)
    for prior in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="prior: got"):
            mixture_predictions([half, half], symbols, prior)
    with pytest.raises(ValueError, match="prior: got"):
        mixture_predictions([], symbols, [])
