"""What every tokenizer promises: no loss, whatever the sequence; clear refusals."""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest

from experiments.tokenization import (
    BlockTokenizer,
    BPETokenizer,
    CharacterTokenizer,
    GreedyTokenizer,
    LZWTokenizer,
    MinimalTokenizer,
    SequentialBPETokenizer,
    SplitTokenizer,
    Tokenizer,
    UnigramTokenizer,
    ViterbiTokenizer,
    WordPieceTokenizer,
    memorising_dictionary,
    run_dictionary,
)
from tests.experiments.tokenization.made_up import random_dictionary, random_sequence

GENERATOR = np.random.default_rng(7)


TRAINED = [CharacterTokenizer, BPETokenizer, LZWTokenizer, UnigramTokenizer]


@cache
def trained(alphabet: int) -> list[Tokenizer]:
    text = GENERATOR.integers(0, alphabet, (3, 400))
    bpe = BPETokenizer.train(text, alphabet + 12)
    memory = memorising_dictionary(text)
    return [
        CharacterTokenizer.train(text),
        bpe,
        BPETokenizer.train_whole(text, alphabet + 12, overlapping=False),
        GreedyTokenizer(bpe.vocabulary),
        MinimalTokenizer(bpe.vocabulary),
        ViterbiTokenizer(bpe.vocabulary, np.log(GENERATOR.dirichlet(np.ones(len(bpe))))),
        SplitTokenizer(bpe, 7),
        SplitTokenizer(WordPieceTokenizer.train(text, 2 * alphabet + 5, separator=0), 10),
        LZWTokenizer.train(text, alphabet + 12),
        LZWTokenizer.train(text, 10_000),
        LZWTokenizer.train_on_prefix(text[0], 200, alphabet=alphabet),
        BlockTokenizer(alphabet, 3),
        SequentialBPETokenizer.train(text.reshape(1, -1), 30, epsilon=0.1),
        SequentialBPETokenizer.train(text.reshape(1, -1), 30, epsilon=0.9),
        WordPieceTokenizer.train(text, 2 * alphabet + 10, separator=1),
        WordPieceTokenizer.train(text, 2 * alphabet + 10),
        UnigramTokenizer.train(text, alphabet + 12),
        GreedyTokenizer(memory),
        MinimalTokenizer(memory),
        *([GreedyTokenizer(run_dictionary(5)), MinimalTokenizer(run_dictionary(5))] if alphabet == 3 else []),
    ]


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
    for _ in range(350):
        alphabet = int(GENERATOR.integers(1, 5))
        vocabulary = random_dictionary(GENERATOR, alphabet)
        scores = np.log(GENERATOR.dirichlet(np.ones(len(vocabulary))) + 1e-9)
        sequence = random_sequence(GENERATOR, alphabet)
        for tokenizer in (
            GreedyTokenizer(vocabulary),
            MinimalTokenizer(vocabulary),
            ViterbiTokenizer(vocabulary, scores),
        ):
            ids = tokenizer.encode(sequence)
            np.testing.assert_array_equal(tokenizer.decode(ids), sequence)
            assert tokenizer.lengths[ids].sum() == len(sequence)


def test_blocks_match_their_dictionary() -> None:
    tokenizer = BlockTokenizer(3, 2)
    assert len(tokenizer) == 12
    for length in range(6):
        for sequence in itertools.product(range(3), repeat=length):
            ids = tokenizer.encode(np.array(sequence, dtype=int))
            assert len(ids) == length // 2 + length % 2
            assert tokenizer.decode(ids).tolist() == list(sequence)
    assert BlockTokenizer(2, 1).vocabulary == ((0,), (1,))


@pytest.mark.parametrize("kind", TRAINED)
def test_alphabet_is_what_was_seen_or_declared(kind: Any) -> None:
    assert kind.train([[5, 9, 5, 9, 5]], 2).alphabet == (5, 9)
    assert kind.train([[1, 0, 1]], 4, alphabet=4).alphabet == (0, 1, 2, 3)
    assert kind.train([], 3, alphabet=3).vocabulary == ((0,), (1,), (2,))
    sparse = kind.train([[5, 900, 5, 900, 5]], 2)
    np.testing.assert_array_equal(sparse.decode(sparse.encode([900, 900, 5])), [900, 900, 5])


@pytest.mark.parametrize("kind", TRAINED)
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
        ([[0, 10**12]], 9, None, r"got symbols 0..1000000000000; expected symbols in 0..16777215"),
        ([], 9, 0, "alphabet: got 0; expected an integer from 1"),
        ([], 9, 2.5, "alphabet: got 2.5; expected an integer from 1"),
        ([], 9, 10**12, "alphabet: got 1000000000000; expected an integer from 1"),
    ],
)
def test_training_arguments_are_checked(
    kind: Any, sequences: list, size: int, alphabet: int | None, message: str
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
        ([(-1,), (0,)], "got symbols -1..0"),
        ([(0,), (10**12,)], "got symbols 0..1000000000000"),
        ([(0.5,), (1,)], "expected a sequence of integers"),
        ([0, 1], "expected a sequence of integers"),
    ],
)
def test_vocabulary_is_checked(vocabulary: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GreedyTokenizer(vocabulary)


@pytest.mark.parametrize(
    ("alphabet", "block", "message"),
    [
        (2, 0, "block: got 0"),
        (2, 1.5, "block: got 1.5; expected an integer"),
        (0, 2, "alphabet: got 0"),
        (2, 64, "block: got 64 with 2 symbols; expected 2..20 blocks at most"),
    ],
)
def test_block_arguments_are_checked(alphabet: Any, block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockTokenizer(alphabet, block)


def test_characters_in_any_order_of_ids() -> None:
    tokenizer = CharacterTokenizer([(4,), (1,), (0,)])
    assert tokenizer.encode([1, 0, 4]).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="vocabulary: got a token of 2 symbols"):
        CharacterTokenizer([(0,), (1,), (0, 1)])


@pytest.mark.parametrize("train", [BPETokenizer.train, BPETokenizer.train_whole, UnigramTokenizer.train])
@pytest.mark.parametrize("size", [10**10, 10**30])
def test_a_size_that_no_text_can_fill_is_refused(train: Any, size: int) -> None:
    with pytest.raises(ValueError, match=f"size: got {size}, but the training text gives only"):
        train([[0, 1, 1, 0, 1]], size)


@pytest.mark.parametrize("kind", [BPETokenizer, LZWTokenizer])
def test_a_single_flat_sequence_counts_as_one(kind: Any) -> None:
    flat = [0, 1, 0, 0, 1, 1, 1]
    assert (
        kind.train(flat, 3).vocabulary == kind.train([flat], 3).vocabulary == kind.train(np.array(flat), 3).vocabulary
    )


@pytest.mark.parametrize("kind", TRAINED[1:])
def test_a_size_that_is_no_integer_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="size: got 3.5; expected an integer"):
        kind.train([[0, 1, 0, 0]], 3.5)
