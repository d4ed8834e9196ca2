"""Markov sources: exact laws, exact entropies, and samples that follow them."""

import itertools
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.sources import MarkovSource, SwitchingSource, clipped_dirichlet_source
from experiments.sources.markov import _thresholds, entropy, follow, follow_in_blocks, stationary_distribution

KEY = jax.random.key(20)
CASES = [(0, 3), (1, 2), (1, 4), (2, 3), (3, 2), (4, 2)]


def random_source(order: int, alphabet: int) -> MarkovSource:
    return MarkovSource.random(jax.random.fold_in(KEY, 10 * order + alphabet), order, alphabet, minimum=0.02)


def string_probability(source: MarkovSource | SwitchingSource, string: tuple[int, ...]) -> float:
    """P(string), by summing over everything that may come before it."""
    total = 0.0
    for context in itertools.product(range(source.alphabet), repeat=source.order):
        probability, past = float(source.stationary[context]), context
        for symbol in string:
            probability *= float(source.kernel[(*past, symbol)])
            past = (*past, symbol)[len(past) + 1 - source.order :] if source.order else ()
        total += probability
    return total


def enumerated_entropy(source: MarkovSource | SwitchingSource, r: int) -> float:
    return entropy([string_probability(source, s) for s in itertools.product(range(source.alphabet), repeat=r)])


def sequential_path(thresholds: NDArray, start: int, words: NDArray, alphabet: int) -> list[int]:
    """The definition of a path, one symbol at a time."""
    state, path = start, []
    for word in words:
        symbol = int(sum(word >= thresholds[state]))
        path.append(symbol)
        state = (state * alphabet + symbol) % len(thresholds)
    return path


@pytest.mark.parametrize(("order", "alphabet"), CASES)
def test_stationary_law_is_invariant(order: int, alphabet: int) -> None:
    source = random_source(order, alphabet)
    joint = source.stationary[..., None] * source.kernel
    assert source.stationary.shape == (alphabet,) * order
    assert math.isclose(float(source.stationary.sum()), 1.0, abs_tol=1e-12)
    if order:
        np.testing.assert_allclose(joint.sum(axis=0), source.stationary, atol=1e-12)


@pytest.mark.parametrize(("order", "alphabet"), CASES)
def test_entropies_equal_enumeration(order: int, alphabet: int) -> None:
    source = random_source(order, alphabet)
    longest = 10 if alphabet == 2 else 6
    blocks = [source.block_entropy(r) for r in range(longest + 1)]
    np.testing.assert_allclose(blocks, [enumerated_entropy(source, r) for r in range(longest + 1)], atol=1e-10)
    assert math.isclose(blocks[0], 0.0, abs_tol=1e-15)  # of a sum of probabilities that may be 1 + 2e-16
    assert math.isclose(blocks[1], source.unigram_entropy(), abs_tol=1e-12)
    assert math.isclose(blocks[-1] - blocks[-2], source.entropy_rate(), abs_tol=1e-10)
    assert isinstance(source.entropy_rate(), float)


@pytest.mark.parametrize(("order", "alphabet"), CASES)
@pytest.mark.parametrize("shape", [(3000, 37), (1, 100_003)])
def test_sample_frequencies(order: int, alphabet: int, shape: tuple[int, int]) -> None:
    """k-gram frequencies within 4 standard errors, estimated from independent sequences or blocks."""
    source = random_source(order, alphabet)
    sample = np.asarray(source.sample(KEY, shape))
    assert sample.shape == shape
    assert sample.dtype == np.int32
    rows = sample if shape[0] > 100 else sample[:, : shape[1] // 400 * 400].reshape(-1, 400)
    for string in itertools.product(range(alphabet), repeat=2):
        match = np.mean((rows[:, :-1] == string[0]) & (rows[:, 1:] == string[1]), axis=1)
        error = abs(match.mean() - string_probability(source, string))
        assert error < 4 * match.std() / math.sqrt(len(match)) + 1e-9, string


def test_first_symbols_are_stationary() -> None:
    source = random_source(2, 3)
    first = np.asarray(source.sample(KEY, (60_000, 2)))
    frequency = np.bincount(first[:, 0] * 3 + first[:, 1], minlength=9) / len(first)
    expected = source.stationary.ravel()
    assert np.all(np.abs(frequency - expected) < 4 * np.sqrt(expected * (1 - expected) / len(first)))


@pytest.mark.slow
@pytest.mark.parametrize(("order", "alphabet"), [(0, 2), (1, 2), (2, 3), (4, 4)])
@pytest.mark.parametrize(("lanes", "length", "blocks"), [(1, 600, 6), (3, 640, 10), (2, 64, 64), (5, 70, 1)])
def test_blocks_equal_the_sequential_path(order: int, alphabet: int, lanes: int, length: int, blocks: int) -> None:
    source = random_source(order, alphabet)
    generator = np.random.default_rng(length)
    words = generator.integers(0, 2**31, (length, lanes), dtype=np.uint32)
    starts = generator.integers(0, alphabet**order, lanes).astype(np.int32)
    thresholds = _thresholds(source.kernel.reshape(-1, alphabet))[:, :-1]
    expected = [sequential_path(thresholds, starts[i], words[:, i], alphabet) for i in range(lanes)]
    arguments = [jax.numpy.asarray(array) for array in (thresholds, starts, words)]
    np.testing.assert_array_equal(np.asarray(follow(*arguments, alphabet)[0]).T, expected)
    np.testing.assert_array_equal(np.asarray(follow_in_blocks(*arguments, alphabet, blocks)).T, expected)


def test_blocks_of_a_chain_that_never_forgets() -> None:
    """A period of 3 in 64 blocks: the guesses do not settle within the allowed rounds, the path must still be exact."""
    thresholds = _thresholds(np.roll(np.eye(3), 1, axis=1))[:, :-1]
    words = jax.numpy.asarray(np.random.default_rng(0).integers(0, 2**31, (64 * 4, 1), dtype=np.uint32))
    path = follow_in_blocks(jax.numpy.asarray(thresholds), jax.numpy.array([2]), words, 3, 64)
    np.testing.assert_array_equal(np.asarray(path)[:, 0], np.arange(256) % 3)


def test_zero_probabilities_are_exact() -> None:
    """A forbidden symbol never appears, also where 31 random bits are all zeros or all ones."""
    kernel = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.3, 0.7]])
    source = MarkovSource(kernel)
    sample = np.asarray(source.sample(KEY, (8, 20_000)))
    pairs = np.zeros((3, 3), dtype=bool)
    pairs[sample[:, :-1], sample[:, 1:]] = True
    np.testing.assert_array_equal(pairs, kernel > 0)
    extremes = jax.numpy.asarray(np.repeat(np.array([0, 2**31 - 1], np.uint32), 3)[None])
    states = jax.numpy.tile(jax.numpy.arange(3), 2)
    symbols, _ = follow(jax.numpy.asarray(_thresholds(kernel)[:, :-1]), states, extremes, 3)
    assert np.asarray(symbols).tolist() == [[1, 0, 1, 1, 2, 2]]


def test_transient_states_get_probability_zero() -> None:
    source = MarkovSource([[0.5, 0.5], [0.0, 1.0]])
    assert source.stationary.tolist() == [0.0, 1.0]
    assert source.entropy_rate() == 0.0
    assert np.asarray(source.sample(KEY, (2, 50))).min() == 1


def test_sample_is_a_function_of_the_key_and_jittable() -> None:
    source = random_source(2, 2)
    first = np.asarray(source.sample(KEY, (2, 500)))
    np.testing.assert_array_equal(first, source.sample(KEY, (2, 500)))
    np.testing.assert_array_equal(first, jax.jit(lambda key: source.sample(key, (2, 500)))(KEY))
    assert np.any(first != np.asarray(source.sample(jax.random.key(21), (2, 500))))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 129)])
def test_awkward_shapes(shape: tuple[int, int]) -> None:
    assert random_source(1, 3).sample(KEY, shape).shape == shape
    assert SwitchingSource(3, 0.2, 0.6).sample(KEY, shape).shape == shape


@pytest.mark.parametrize("shape", [(5,), (1, 2, 3), (-1, 4), (1.5, 2)])
def test_shape_is_checked(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"shape: got .* expected \(batch, length\)"):
        random_source(1, 2).sample(KEY, shape)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones((2, 3)) / 3, "all axes equal"),
        (1.0, "all axes equal"),
        (np.zeros((0, 0)), "all axes equal"),
        ([[0.5, 0.6], [0.5, 0.5]], "rows summing to 1"),
        ([[1.5, -0.5], [0.5, 0.5]], "at least 0"),
        ([[np.nan, 0.5], [0.5, 0.5]], "at least 0"),
        ([[1.0, 0.0], [0.0, 1.0]], "2 closed classes"),
    ],
)
def test_kernel_is_checked(kernel: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^kernel: .*{message}"):
        MarkovSource(kernel)  # type: ignore[arg-type]


def test_other_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="r: got -1"):
        random_source(1, 2).block_entropy(-1)
    with pytest.raises(ValueError, match="minimum: got 0.6"):
        MarkovSource.random(KEY, 1, 2, minimum=0.6)


@pytest.mark.parametrize("make", [MarkovSource.random, clipped_dirichlet_source])
@pytest.mark.parametrize(
    ("order", "alphabet", "message"),
    [(-1, 2, "order: got -1"), (1, 0, "alphabet: got 0"), (40, 2, "order: got 40 with 2 symbols")],
)
def test_a_kernel_that_cannot_be_is_refused(make: Callable, order: int, alphabet: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(KEY, order, alphabet)


def test_stationary_distribution_of_a_periodic_chain() -> None:
    np.testing.assert_allclose(stationary_distribution(np.roll(np.eye(5), 1, axis=1)), np.full(5, 0.2), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("alphabet", [2, 3, 4, 8])
def test_random_rows_have_the_entropy_of_a_flat_dirichlet(alphabet: int) -> None:
    """E H(row) = (1/2 + ... + 1/A) for Dir(1, ..., 1)."""
    kernel = MarkovSource.random(KEY, 3, alphabet).kernel if alphabet > 4 else None
    if kernel is None:
        keys = jax.random.split(KEY, 10)
        kernel = np.concatenate([MarkovSource.random(k, 3, alphabet).kernel.reshape(-1, alphabet) for k in keys])
    entropies = [entropy(row) for row in kernel.reshape(-1, alphabet)]
    expected = sum(1 / i for i in range(2, alphabet + 1))
    assert abs(np.mean(entropies) - expected) < 4 * np.std(entropies) / math.sqrt(len(entropies))


def test_minimum_is_respected() -> None:
    kernel = MarkovSource.random(KEY, 2, 4, minimum=0.05).kernel
    assert kernel.min() >= 0.05
    np.testing.assert_allclose(kernel.sum(axis=-1), 1.0, atol=1e-12)


@pytest.mark.parametrize("shape", [5, (5,), (2, 3, 4), (2.0, 3), (True, 3), (-1, 3), "23"])
def test_a_shape_that_is_no_pair_of_counts_is_refused(shape: object) -> None:
    with pytest.raises(ValueError, match="shape: got .*; expected \\(batch, length\\)"):
        random_source(1, 2).sample(KEY, shape)


@pytest.mark.parametrize("r", [1.5, 2.0, -1, True])
@pytest.mark.parametrize("source", [MarkovSource([[0.2, 0.8], [0.7, 0.3]]), SwitchingSource(2, 0.3, 0.2)])
def test_a_block_length_that_is_no_count_is_refused(source: MarkovSource | SwitchingSource, r: object) -> None:
    with pytest.raises(ValueError, match="r: got .*; expected an integer, 0 or more"):
        source.block_entropy(r)
    assert type(source.block_entropy(np.int64(3))) is float


@pytest.mark.parametrize("kernel", [[[0.5, 0.5], [1.0]], "kernel", [[None, 1]]])
def test_a_kernel_that_is_no_rectangle_of_numbers_is_refused(kernel: object) -> None:
    with pytest.raises(ValueError, match="kernel: got "):
        MarkovSource(kernel)
