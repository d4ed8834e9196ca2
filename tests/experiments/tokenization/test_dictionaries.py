"""Dictionaries that are written down: what a memory and theorem E.2's runs encode to."""

import math

import numpy as np
import pytest

from experiments.tokenization import (
    GreedyTokenizer,
    MinimalTokenizer,
    longest_run,
    memorising_dictionary,
    run_dictionary,
)

GENERATOR = np.random.default_rng(43)


def test_the_memory_is_one_token() -> None:
    text = GENERATOR.integers(0, 2, 300)
    dictionary = memorising_dictionary([text])
    assert dictionary == [(0,), (1,), tuple(text.tolist())]
    for kind in (GreedyTokenizer, MinimalTokenizer):
        tokenizer = kind(dictionary)
        assert tokenizer.encode(np.tile(text, 3)).tolist() == [2, 2, 2]
        np.testing.assert_array_equal(tokenizer.encode(1 - text), 1 - text)


def test_memories_of_several_and_of_no_texts() -> None:
    assert memorising_dictionary([[0, 1], [0, 1], [0], []], alphabet=3) == [(0,), (1,), (2,), (0, 1)]
    assert memorising_dictionary([0, 1, 1]) == [(0,), (1,), (0, 1, 1)]
    with pytest.raises(ValueError, match="got no symbol at all"):
        memorising_dictionary([])


@pytest.mark.parametrize("longest", [1, 2, 9])
def test_runs(longest: int) -> None:
    dictionary = run_dictionary(longest)
    assert len(set(dictionary)) == len(dictionary) == 3 * longest
    assert all(len(token) == 1 or (token[0] == 1 and len(set(token[1:])) == 1) for token in dictionary)
    assert GreedyTokenizer(dictionary).prefix_closed


def test_greedy_gives_the_one_to_the_wrong_run() -> None:
    dictionary = run_dictionary(8)
    sequence = np.repeat([1, 0, 1, 2], [4, 7, 3, 6])
    assert GreedyTokenizer(dictionary).lengths[GreedyTokenizer(dictionary).encode(sequence)].tolist() == [
        *(4, 1, 1, 1, 1, 1, 1, 1),
        *(3, 1, 1, 1, 1, 1, 1),
    ]
    assert MinimalTokenizer(dictionary).lengths[MinimalTokenizer(dictionary).encode(sequence)].tolist() == [3, 8, 2, 7]


def test_length_of_the_longest_run() -> None:
    for delta in (0.02, 0.3, 0.49):
        exact = 1 + 2 * math.log(1 / delta) / delta
        assert exact <= longest_run(delta) < exact + 1
    for delta in (0.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="delta: got"):
            longest_run(delta)
    with pytest.raises(ValueError, match="longest: got 0"):
        run_dictionary(0)
