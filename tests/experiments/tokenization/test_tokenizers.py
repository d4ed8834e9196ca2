"""What every tokenizer promises: no loss, whatever the sequence; clear refusals."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.tokenization import (
    BlockTokenizer,
    BPETokenizer,
    CharacterTokenizer,
    GreedyTokenizer,
    LZWTokenizer,
    Tokenizer,
)

GENERATOR = np.random.default_rng(7)


def random_sequence(generator: np.random.Generator, alphabet: int) -> NDArray[np.int64]:
    length = int(generator.choice([0, 1, 2, 3, 17, 64, 200]))
    kind = generator.integers(4)
    if kind == 0:
        return np.full(length, generator.integers(alphabet))
    if kind == 1:
        return np.arange(length) % alphabet
    return generator.integers(0, alphabet, length)


def random_dictionary(generator: np.random.Generator, alphabet: int) -> list[tuple[int, ...]]:
    tokens = {tuple(generator.integers(0, alphabet, generator.integers(1, 7)).tolist()) for _ in range(12)}
    return [*((s,) for s in range(alphabet)), *sorted(token for token in tokens if len(token) > 1)]


def trained(alphabet: int) -> list[Tokenizer]:
    text = GENERATOR.integers(0, alphabet, (3, 400))
    return [
        CharacterTokenizer.train(text),
        BPETokenizer.train(text, alphabet + 12),
        LZWTokenizer.train(text, alphabet + 12),
        LZWTokenizer.train(text, 10_000),
        BlockTokenizer(alphabet, 3),
    ]


def longest_match(sequence: NDArray, vocabulary: tuple[tuple[int, ...], ...]) -> list[int]:
    """The greedy encoder as defined: the longest token that is a prefix of the rest."""
    ids, rest = [], tuple(sequence.tolist())
    while rest:
        best = max((token for token in vocabulary if rest[: len(token)] == token), key=len)
        ids.append(vocabulary.index(best))
        rest = rest[len(best) :]
    return ids


@pytest.mark.parametrize("alphabet", [2, 3, 7])
def test_no_loss(alphabet: int) -> None:
    for tokenizer in trained(alphabet):
        sequences = [random_sequence(GENERATOR, alphabet) for _ in range(40)]
        batch = tokenizer.encode_batch(sequences)
        for sequence, from_batch in zip(sequences, batch, strict=True):
            ids = tokenizer.encode(sequence)
            np.testing.assert_array_equal(tokenizer.decode(ids), sequence)
            np.testing.assert_array_equal(ids, from_batch)
            assert ids.ndim == 1 and ids.dtype == np.int32
            assert tokenizer.lengths[ids].sum() == len(sequence)


def test_no_loss_with_random_dictionaries() -> None:
    for _ in range(1000):
        alphabet = int(GENERATOR.integers(1, 5))
        tokenizer = GreedyTokenizer(random_dictionary(GENERATOR, alphabet))
        sequence = random_sequence(GENERATOR, alphabet)
        np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(sequence)), sequence)


def test_greedy_takes_the_longest_token() -> None:
    for _ in range(100):
        alphabet = int(GENERATOR.integers(1, 4))
        tokenizer = GreedyTokenizer(random_dictionary(GENERATOR, alphabet))
        sequence = random_sequence(GENERATOR, alphabet)
        assert tokenizer.encode(sequence).tolist() == longest_match(sequence, tokenizer.vocabulary)


def test_greedy_and_prefix_closed_walks_agree() -> None:
    from experiments.tokenization.greedy import encode_longest, encode_prefix_closed

    tokenizer = LZWTokenizer.train(GENERATOR.integers(0, 3, (1, 2000)), 100)
    symbols = GENERATOR.integers(0, 3, 3000).tolist()
    assert encode_prefix_closed(symbols, *tokenizer._trie) == encode_longest(symbols, *tokenizer._trie)


def test_blocks_match_their_dictionary() -> None:
    tokenizer = BlockTokenizer(3, 2)
    assert len(tokenizer) == 12
    for length in range(6):
        for sequence in itertools.product(range(3), repeat=length):
            ids = tokenizer.encode(np.array(sequence, dtype=int))
            assert len(ids) == length // 2 + length % 2
            assert tokenizer.decode(ids).tolist() == list(sequence)
    assert BlockTokenizer(2, 1).vocabulary == ((0,), (1,))


@pytest.mark.parametrize("kind", [CharacterTokenizer, BPETokenizer, LZWTokenizer])
def test_alphabet_is_what_was_seen_or_declared(kind: type) -> None:
    assert kind.train([[5, 9, 5, 9, 5]], 2).alphabet == (5, 9)
    assert kind.train([[1, 0, 1]], 4, alphabet=4).alphabet == (0, 1, 2, 3)
    assert kind.train([], 3, alphabet=3).vocabulary == ((0,), (1,), (2,))
    sparse = kind.train([[5, 900, 5, 900, 5]], 2)
    np.testing.assert_array_equal(sparse.decode(sparse.encode([900, 900, 5])), [900, 900, 5])


@pytest.mark.parametrize("kind", [CharacterTokenizer, BPETokenizer, LZWTokenizer])
@pytest.mark.parametrize(
    ("sequences", "size", "alphabet", "message"),
    [
        ([[0, 1, 2]], 2, None, "size: got 2; expected at least 3"),
        ([[0, 1]], 3, 4, "size: got 3; expected at least 4"),
        ([], 5, None, "got no symbol at all"),
        ([[]], 5, None, "got no symbol at all"),
        ([[0, 4]], 9, 3, "got symbols 0..4; expected symbols in 0..2"),
        ([[0, -1]], 9, None, "got symbols -1..0"),
        ([[0.5]], 9, None, "expected integers"),
        ([[[0]]], 9, None, "expected one axis"),
    ],
)
def test_training_arguments_are_checked(
    kind: type, sequences: list, size: int, alphabet: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind.train(sequences, size, alphabet=alphabet)


@pytest.mark.parametrize("wrong", [[0, 2], [-1], [0, 10**12], [1, 1, 1, 5]])
def test_a_symbol_outside_the_alphabet_is_refused(wrong: list[int]) -> None:
    for tokenizer in [*trained(2), CharacterTokenizer([(0,), (1,), (3,)])]:
        with pytest.raises(ValueError, match="sequence: got the symbol"):
            tokenizer.encode(wrong)
        with pytest.raises(ValueError, match="sequence: got the symbol"):
            tokenizer.encode_batch([[0, 1], wrong])


@pytest.mark.parametrize("wrong", [[[0, 1]], 3, [0.5], ["a"]])
def test_a_sequence_is_one_axis_of_integers(wrong: object) -> None:
    for tokenizer in trained(2):
        with pytest.raises(ValueError, match="sequence: got"):
            tokenizer.encode(wrong)  # type: ignore[arg-type]


def test_unknown_ids_are_refused() -> None:
    for tokenizer in trained(2):
        for wrong in ([-1], [0, len(tokenizer)]):
            with pytest.raises(ValueError, match="ids: got"):
                tokenizer.decode(wrong)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ([], "none at all"),
        ([(0,), ()], "empty token"),
        ([(0,), (0,)], "twice"),
        ([(0,), (0, 1)], "the symbol 1 is part of a token"),
    ],
)
def test_vocabulary_is_checked(vocabulary: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GreedyTokenizer(vocabulary)


def test_block_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="block: got 0"):
        BlockTokenizer(2, 0)


@pytest.mark.parametrize("kind", [BPETokenizer, LZWTokenizer])
def test_a_single_flat_sequence_counts_as_one(kind: type[Tokenizer]) -> None:
    flat = [0, 1, 0, 0, 1, 1, 1]
    assert (
        kind.train(flat, 3).vocabulary == kind.train([flat], 3).vocabulary == kind.train(np.array(flat), 3).vocabulary
    )


@pytest.mark.parametrize("kind", [BPETokenizer, LZWTokenizer])
def test_a_size_that_is_no_integer_is_refused(kind: type[Tokenizer]) -> None:
    with pytest.raises(ValueError, match="size: got 3.5; expected an integer"):
        kind.train([[0, 1, 0, 0]], 3.5)
