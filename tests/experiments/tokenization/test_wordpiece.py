"""WordPiece: the engine's encoding where that is lossless, and lossless where that is not."""

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer as Engine
from tokenizers import models

from experiments.tokenization import WordPieceTokenizer
from tests.experiments.tokenization.made_up import random_sequence

GENERATOR = np.random.default_rng(37)
BLANK = 3


def words(sequence: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A word begins at the start of the sequence and at each blank."""
    return [word for word in np.split(sequence, np.flatnonzero(sequence == BLANK)) if len(word)]


def engine(tokenizer: WordPieceTokenizer) -> Engine:
    """Hugging Face's WordPiece with the same dictionary."""
    strings = ["".join(chr(97 + symbol) for symbol in token) for token in tokenizer.vocabulary]
    vocabulary = {
        string if begins else f"##{string}": i
        for i, (string, begins) in enumerate(zip(strings, tokenizer.starts_word.tolist(), strict=True))
    }
    return Engine(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))


def test_words_are_encoded_as_the_engine_does() -> None:
    tokenizer = WordPieceTokenizer.train(GENERATOR.integers(0, 4, (5, 400)), 60, separator=BLANK)
    theirs = engine(tokenizer)
    for _ in range(100):
        sequence = random_sequence(GENERATOR, 4)
        short = [word[:100] for word in words(sequence)]
        expected = [i for word in short for i in theirs.encode("".join(chr(97 + symbol) for symbol in word)).ids]
        assert tokenizer.encode(np.concatenate([np.zeros(0, int), *short])).tolist() == expected


def test_tokens_stay_inside_words() -> None:
    tokenizer = WordPieceTokenizer.train(GENERATOR.integers(0, 4, (5, 400)), 60, separator=BLANK)
    assert all(BLANK not in token[1:] for token in tokenizer.vocabulary)
    sequence = GENERATOR.integers(0, 4, 3000)
    ids = tokenizer.encode(sequence)
    starts = np.cumsum(tokenizer.lengths[ids]) - tokenizer.lengths[ids]
    begins = (sequence[starts] == BLANK) | (starts == 0)
    np.testing.assert_array_equal(tokenizer.starts_word[ids], begins)


def test_a_long_word_is_not_lost() -> None:
    tokenizer = WordPieceTokenizer.train([GENERATOR.integers(0, 2, 500)], 20)
    long = GENERATOR.integers(0, 2, 101)
    assert tokenizer.decode(tokenizer.encode(long)).tolist() == long.tolist()
    with pytest.raises(Exception, match="UNK"):  # the engine wants a token for what it cannot encode
        engine(tokenizer).encode("".join(chr(97 + symbol) for symbol in long))


def test_both_forms_of_a_symbol_have_their_token() -> None:
    tokenizer = WordPieceTokenizer.train([[2, 5, 2, 5]], 5)
    assert tokenizer.vocabulary[:4] == ((2,), (5,), (2,), (5,))
    assert tokenizer.starts_word[:4].tolist() == [False, False, True, True]
    assert tokenizer.alphabet == (2, 5)
    with pytest.raises(ValueError, match="size: got 3; expected at least 4"):
        WordPieceTokenizer.train([[0, 1]], 3)
    with pytest.raises(ValueError, match="marked: got the symbols"):
        WordPieceTokenizer([(0,), (1,), (2,)], (0, 1))
    with pytest.raises(ValueError, match="separator: got 7"):
        WordPieceTokenizer.train([[0, 1]], 4, separator=7)
