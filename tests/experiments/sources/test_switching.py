"""Switching sources: the closed forms, the lifted chain and the samples agree."""

import math

import jax
import numpy as np
import pytest

from experiments.sources import MarkovSource, SwitchingSource

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("p", "q", "rate", "unigram"),
    [
        (0.8, 0.8, 0.500402, 0.693147),
        (0.2, 0.3, 0.544587, 0.673012),
        (0.5, 0.8, 0.619015, 0.666278),
        (0.1, 0.1, 0.325083, 0.693147),
        (0.05, 0.05, 0.198515, 0.693147),
    ],
)
@pytest.mark.parametrize("order", [1, 2, 5])
def test_known_entropies(order: int, p: float, q: float, rate: float, unigram: float) -> None:
    source = SwitchingSource(order, p, q)
    assert abs(source.entropy_rate() - rate) < 1e-6
    assert abs(source.unigram_entropy() - unigram) < 1e-6


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("rare", ["staying", "switching"])
def test_unigram_entropy_over_entropy_rate_is_unbounded(order: int, rare: str) -> None:
    """H(pi) / H_inf = log 2 / h(delta) for p = q = 1 - delta and for p = q = delta: it grows beyond any number."""
    ratios = []
    for delta in (0.1, 1e-2, 1e-4, 1e-6):
        p = 1 - delta if rare == "staying" else delta
        source = SwitchingSource(order, p, p)
        ratios.append(source.unigram_entropy() / source.entropy_rate())
        entropy = -delta * math.log(delta) - (1 - delta) * math.log1p(-delta)
        assert math.isclose(ratios[-1], math.log(2) / entropy, rel_tol=1e-8)
    assert ratios == sorted(ratios)
    assert ratios[-1] > 10_000


@pytest.mark.parametrize(("order", "p", "q"), [(1, 0.3, 0.9), (2, 0.8, 0.8), (3, 0.05, 0.4), (4, 1.0, 0.5)])
def test_lifted_chain_agrees(order: int, p: float, q: float) -> None:
    source = SwitchingSource(order, p, q)
    lifted = MarkovSource(source.kernel)
    np.testing.assert_allclose(source.stationary, lifted.stationary, atol=1e-12)
    assert math.isclose(source.entropy_rate(), lifted.entropy_rate(), abs_tol=1e-12)
    assert math.isclose(source.unigram_entropy(), lifted.unigram_entropy(), abs_tol=1e-12)
    for r in range(9):
        assert math.isclose(source.block_entropy(r), lifted.block_entropy(r), abs_tol=1e-12)


def test_kernel_depends_on_the_oldest_symbol_alone() -> None:
    kernel = SwitchingSource(2, 0.7, 0.4).kernel
    np.testing.assert_allclose(kernel, [[[0.3, 0.7]] * 2, [[0.4, 0.6]] * 2], atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 200_000), (2000, 101)])
@pytest.mark.parametrize(("order", "p", "q"), [(1, 0.8, 0.8), (2, 0.3, 0.2), (3, 0.05, 0.1), (4, 0.9, 0.6)])
def test_correlations(order: int, p: float, q: float, shape: tuple[int, int]) -> None:
    """Lag j k has correlation (1 - p - q)**j, any other lag 0; within 4 standard errors over independent pieces."""
    source = SwitchingSource(order, p, q)
    sample = np.asarray(source.sample(KEY, shape))
    assert sample.shape == shape
    assert set(np.unique(sample)) <= {0, 1}
    pieces = sample[:, : shape[1] // 100 * 100].reshape(-1, 100) - p / (p + q)
    variance = p * q / (p + q) ** 2
    for lag in range(1, 2 * order + 2):
        products = np.mean(pieces[:, lag:] * pieces[:, :-lag], axis=1) / variance
        expected = (1 - p - q) ** (lag // order) if lag % order == 0 else 0.0
        spread = products.reshape(-1, 20).mean(axis=1)  # neighbours in a long sequence are dependent
        assert abs(products.mean() - expected) < 4 * spread.std(ddof=1) / math.sqrt(len(spread)) + 1e-9, lag


def test_likelihood_of_a_sample() -> None:
    """E[-log P(x)] / m = H_inf + (k / m) (H(pi) - H_inf), within 4 standard errors."""
    from experiments.tokenization.theory import log_probability

    source, length = SwitchingSource(2, 0.3, 0.2), 16
    losses = -log_probability(source, source.sample(KEY, (4000, length))) / length
    assert abs(losses.mean() - source.block_entropy(length) / length) < 4 * losses.std() / math.sqrt(len(losses))


@pytest.mark.slow
def test_sample_is_jittable() -> None:
    source = SwitchingSource(3, 0.2, 0.6)
    inside = jax.jit(lambda key: source.sample(key, (2, 100)))(KEY)
    np.testing.assert_array_equal(inside, source.sample(KEY, (2, 100)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5, 0.5), "order: got 0"),
        ((1.5, 0.5, 0.5), "order: got 1.5"),
        ((1, -0.1, 0.5), "p: got -0.1"),
        ((1, 0.1, 1.5), "q: got 1.5"),
        ((1, float("nan"), 0.5), "p: got nan"),
        ((2, 0.0, 0.0), "p, q: got 0 and 0"),
    ],
)
def test_arguments_are_checked(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwitchingSource(*arguments)


def test_negative_block_is_refused() -> None:
    with pytest.raises(ValueError, match="r: got -2"):
        SwitchingSource(1, 0.5, 0.5).block_entropy(-2)
