"""BPE: the dictionary against a trainer written out, the encoder against the rules applied in order."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from experiments.tokenization import BPETokenizer

GENERATOR = np.random.default_rng(13)


def merge(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace a pair from left to right, without overlap."""
    merged: list[int] = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged


def train_by_definition(chunks: list[list[int]], alphabet: int, size: int) -> list[tuple[int, int]]:
    """Merge the most frequent pair, ties to the smallest ids, until there are `size` tokens."""
    rules: list[tuple[int, int]] = []
    while alphabet + len(rules) < size:
        counts = Counter(pair for chunk in chunks for pair in pairwise(chunk))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        chunks = [merge(chunk, best, alphabet + len(rules)) for chunk in chunks]
        rules.append(best)
    return rules


@pytest.mark.parametrize("alphabet", [2, 4])
def test_training_and_encoding_follow_the_definition(alphabet: int) -> None:
    texts = GENERATOR.integers(0, alphabet, (6, 512)) * GENERATOR.integers(0, 2, (6, 512))
    tokenizer = BPETokenizer.train(texts, alphabet + 25, alphabet=alphabet)
    rules = train_by_definition(texts.tolist(), alphabet, len(tokenizer))
    strings = [(symbol,) for symbol in range(alphabet)]
    for left, right in rules:
        strings.append(strings[left] + strings[right])
    assert list(tokenizer.vocabulary) == strings
    for length in (0, 1, 2, 50, 400):
        tokens = GENERATOR.integers(0, alphabet, length).tolist()
        found = tokenizer.encode(tokens).tolist()
        for new, rule in enumerate(rules, start=alphabet):
            tokens = merge(tokens, rule, new)
        assert found == tokens


def test_training_text_is_cut_into_chunks() -> None:
    text = GENERATOR.integers(0, 2, 512 * 3 + 100)
    cut = [text[start : start + 512] for start in range(0, len(text), 512)]
    assert BPETokenizer.train([text], 40).vocabulary == BPETokenizer.train(cut, 40).vocabulary


def test_a_smaller_dictionary_is_the_beginning_of_a_larger() -> None:
    text = GENERATOR.integers(0, 2, (2, 3000))
    large = BPETokenizer.train(text, 60).vocabulary
    for size in (2, 3, 31):
        assert BPETokenizer.train(text, size).vocabulary == large[:size]


def test_a_text_too_short_for_the_dictionary_is_refused() -> None:
    with pytest.raises(ValueError, match="size: got 50, but the training text gives only"):
        BPETokenizer.train([[0, 1, 0, 1]], 50)


@pytest.mark.parametrize("alphabet", [6400, 6401, 65_534])
def test_large_alphabets(alphabet: int) -> None:
    tokenizer = BPETokenizer.train([[0, alphabet - 1] * 3], alphabet + 1, alphabet=alphabet)
    assert tokenizer.vocabulary[-1] in {(0, alphabet - 1), (alphabet - 1, 0)}
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode([alphabet - 1, 0, 5])), [alphabet - 1, 0, 5])
    with pytest.raises(ValueError, match="alphabet: got 65535"):
        BPETokenizer.train([], 70_000, alphabet=65_535)


def test_long_sequence_is_encoded_whole() -> None:
    tokenizer = BPETokenizer.train(GENERATOR.integers(0, 2, (20, 512)), 50)
    text = GENERATOR.integers(0, 2, 300_000)
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(text)), text)
