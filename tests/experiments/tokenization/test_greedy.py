"""The greedy encoder: the longest token each time, with any dictionary and in one pass."""

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.tokenization import GreedyTokenizer, memorising_dictionary
from experiments.tokenization.trie import Trie
from tests.experiments.tokenization.made_up import random_dictionary, random_sequence

GENERATOR = np.random.default_rng(17)


def longest_match(sequence: NDArray, vocabulary: tuple[tuple[int, ...], ...]) -> list[int]:
    """The greedy encoder as defined: the longest token that is a prefix of the rest."""
    ids, rest = [], tuple(sequence.tolist())
    while rest:
        best = max((token for token in vocabulary if rest[: len(token)] == token), key=len)
        ids.append(vocabulary.index(best))
        rest = rest[len(best) :]
    return ids


def test_takes_the_longest_token() -> None:
    for _ in range(1000):
        alphabet = int(GENERATOR.integers(1, 5))
        tokenizer = GreedyTokenizer(random_dictionary(GENERATOR, alphabet, longest=9))
        for _ in range(2):  # the second time from its tables
            sequence = random_sequence(GENERATOR, alphabet, longest=100)
            assert tokenizer.encode(sequence).tolist() == longest_match(sequence, tokenizer.vocabulary)


def test_gives_up_a_long_token_at_its_end() -> None:
    """Tokens far longer than the recursion limit, missed by their last symbol again and again."""
    long = (0,) * 3000
    tokenizer = GreedyTokenizer([(0,), (1,), (0, 0), long])
    almost = np.tile([0] * 2999 + [1], 50)
    np.testing.assert_array_equal(tokenizer.encode(almost), np.tile([2] * 1499 + [0, 1], 50))
    assert tokenizer.encode([*long, 0, 0, 0]).tolist() == [3, 2, 0]


def test_remembers_a_text_and_survives_its_fragments() -> None:
    text = GENERATOR.integers(0, 2, 5000)
    tokenizer = GreedyTokenizer(memorising_dictionary([text]))
    assert tokenizer.encode(text).tolist() == [2]
    np.testing.assert_array_equal(tokenizer.encode(text[:-1]), text[:-1])
    other = np.concatenate([text[:-1], text, text[100:]])
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(other)), other)


def test_sparse_alphabet() -> None:
    tokenizer = GreedyTokenizer([(900,), (5,), (900, 5, 900)])
    assert tokenizer.encode([5, 900, 5, 900, 5, 5]).tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize(("vocabulary", "closed"), [([(0,), (1,), (0, 1)], True), ([(0,), (1,), (0, 1, 1)], False)])
def test_prefix_closed(vocabulary: list[tuple[int, ...]], closed: bool) -> None:
    assert GreedyTokenizer(vocabulary).prefix_closed is closed


def test_trie_lists_short_prefixes_first() -> None:
    trie = Trie.of([(0,), (0, 1, 1, 0), (1,), (1, 1, 0)])
    depth = {0: 0}
    for key, node in trie.by_depth():
        depth[node] = depth[key - key % 2] + 1
    assert sorted(depth.values()) == list(depth.values()) == [0, 1, 1, 2, 2, 3, 3, 4]
